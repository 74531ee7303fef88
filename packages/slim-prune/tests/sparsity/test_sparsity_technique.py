"""The recipe step ``prune.sparsity``."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from slim_core.errors import BudgetError, DataError, PatternError, SlimError
from slim_core.plugins import load_plugins
from slim_core.technique import Run
from slim_core.testing.workloads import differences, fingerprint, tiny_workload
from slim_prune.sparsity import SparsityPlan
from slim_prune.sparsity.selecting import is_n_of_m
from slim_prune.sparsity.technique import NO_LATENCY, SparsityConfig, SparsityPruning

FIT = {"epochs": 2, "lr": 0.01, "device": "cpu"}


@pytest.fixture(scope="module")
def registry():
    return load_plugins(select=["slim-prune"], strict=True).registry


@pytest.fixture
def step(tmp_path, registry):
    def run(config: dict, workload=None):
        folder = tmp_path / "step"
        parsed = SparsityConfig.model_validate(config)
        SparsityPruning.check(parsed, registry)
        workload = workload or tiny_workload()
        result = SparsityPruning().run(workload, parsed, Run(folder=folder, seed=0, registry=registry))
        return result, SparsityPlan.load(folder / "sparsity.safetensors")

    return run


@pytest.mark.parametrize(
    ("config", "share"),
    [
        ({"sparsity": 0.9}, 0.9),
        ({"sparsity": 0.9, "fit": FIT, "mask_gradients": True}, 0.9),
        ({"sparsity": 0.8, "fit": FIT, "schedule": "gmp"}, 0.8),
        ({"sparsity": 0.8, "fit": FIT, "schedule": {"name": "gmp", "begin": 0.1, "end": 1.0, "every": 2}}, 0.8),
        ({"scheme": {"name": "block", "shape": [2, 2]}, "sparsity": 0.5, "fit": FIT, "schedule": "gmp"}, 0.5),
        ({"scheme": {"name": "unstructured", "scope": "erk"}, "sparsity": 0.7}, 0.7),
        ({"sparsity": 0.7, "importance": "taylor", "batches": 2}, 0.7),
        ({"ratios": {"*": 0.25}}, 0.75),
    ],
)
def test_the_model_has_the_zeros_that_were_asked_and_the_plan_is_kept(step, config, share) -> None:
    result, plan = step(config)
    assert plan.sparsity == pytest.approx(share, abs=0.02)
    assert plan.masks.violations(result.workload.model) == 0
    assert result.details["sparsity"] == plan.sparsity
    assert sum(row["kept"] for row in result.details["layers"]) == plan.masks.kept
    assert ("history" in result.details) == ("fit" in config)
    assert result.workload.transforms[-1].kind == "prune.sparse"


@pytest.mark.parametrize("schedule", ["one_shot", "gmp"])
@pytest.mark.parametrize("permute", [False, True])
def test_two_of_four_holds_in_every_group_after_training(step, schedule, permute) -> None:
    scheme = {"name": "2:4", "permute": permute}
    result, plan = step({"scheme": scheme, "fit": FIT, "schedule": schedule})
    state = result.workload.model.state_dict()
    for name in ("hidden.weight", "head.weight"):
        assert is_n_of_m((state[name] != 0).numpy(), 1, plan.scheme)
        assert plan.masks.statistics()[-1]["sparsity"] == 0.5
    assert bool(plan.orders) == permute


def test_it_says_plainly_that_nothing_gets_faster(step) -> None:
    result, _ = step({"scheme": "2:4"})
    assert NO_LATENCY in result.notes
    assert any("not on CPUs" in note for note in result.notes)
    result, _ = step({"scheme": "block", "sparsity": 0.5})
    assert any("blocks pay off" in note for note in result.notes)


def test_a_killed_step_resumes(step, registry, tmp_path) -> None:
    config = {"sparsity": 0.8, "fit": {**FIT, "epochs": 3}, "schedule": "gmp"}
    first, _ = step(config)
    again, _ = step(config)  # the state in the folder is finished: nothing is trained twice
    assert differences(fingerprint(first.workload.model), fingerprint(again.workload.model)) == []


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "how sparse"),
        ({"sparsity": 0.5, "schedule": "gmp"}, "there is no training"),
        ({"budget": {"nonzero": 0.5}, "schedule": "gmp", "fit": FIT}, "goes to a share"),
        ({"sparsity": 0.5, "schedule": "gmp", "fit": FIT, "importance": "taylor"}, "by magnitude"),
        ({"sparsity": 0.5, "schedule": {"name": "gmp", "begin": 0.8}, "fit": FIT}, "begins before it ends"),
        ({"scheme": "2:4", "sparsity": 0.5}, "says itself"),
        ({"scheme": "blok", "sparsity": 0.5}, "did you mean"),
        ({"budget": {"macs": 0.5}}, "changes neither"),
    ],
)
def test_what_needs_no_model_is_found_when_the_recipe_is_read(config, words, registry) -> None:
    with pytest.raises(SlimError) as caught:
        SparsityPruning.check(SparsityConfig.model_validate(config), registry)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "config", [{"sparse": 0.5}, {"sparsity": "0.5"}, {"schedule": "cubic"}, {"importance": "l1"}, {"batches": 0}]
)
def test_a_misspelt_or_mistyped_configuration_is_refused(config) -> None:
    with pytest.raises(ValidationError):
        SparsityConfig.model_validate(config)


def test_a_rehearsal_finds_what_cannot_work_and_leaves_everything_as_it_is(tmp_path, registry) -> None:
    run, work = Run(folder=tmp_path, seed=0, registry=registry), tiny_workload()
    before = fingerprint(work.model)
    for config, error in (
        ({"budget": {"nonzero": 3}}, BudgetError),
        ({"sparsity": 0.5, "include": ["nothing.*"]}, PatternError),
    ):
        with pytest.raises(error):
            SparsityPruning().rehearse(work, SparsityConfig.model_validate(config), run)
    taylor = SparsityConfig.model_validate({"sparsity": 0.5, "importance": "taylor"})
    with pytest.raises(DataError):
        SparsityPruning().rehearse(replace(work, train=None), taylor, run)
    rehearsed = SparsityPruning().rehearse(work, taylor, run)
    assert {n: t.shape for n, t in rehearsed.model.state_dict().items()} == {
        n: t.shape for n, t in work.model.state_dict().items()
    }
    assert differences(before, fingerprint(work.model)) == []
    assert list(tmp_path.iterdir()) == []


def test_the_given_model_keeps_its_weights(step) -> None:
    work = tiny_workload()
    kept = {name: tensor.clone() for name, tensor in work.model.state_dict().items()}
    step({"sparsity": 0.9, "fit": FIT, "schedule": "gmp"}, work)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in work.model.state_dict().items())
