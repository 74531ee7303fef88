"""``prune.uniform`` as a step: what it reports, the plan it leaves behind, and fine-tuning."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from slim_core.errors import BudgetError, PatternError, SlimError
from slim_core.graph import analyse
from slim_core.plugins import load_plugins
from slim_core.technique import Run
from slim_core.testing.oracle import assert_equals_masked_original
from slim_core.testing.workloads import tiny_workload
from slim_prune.prune_plan import PrunePlan
from slim_prune.technique import UniformConfig, UniformPruning


@pytest.fixture(scope="module")
def registry():
    return load_plugins(select=["slim-prune"]).registry


def step(config: dict, tmp_path, registry):
    workload = tiny_workload()
    return workload, UniformPruning().run(
        workload, UniformConfig.model_validate(config), Run(folder=tmp_path / "step", seed=0, registry=registry)
    )


def test_it_prunes_to_the_budget_and_reports_channels_and_costs(tmp_path, registry) -> None:
    workload, result = step({"budget": {"macs": 0.5}, "round_to": 4}, tmp_path, registry)
    before, after = result.details["before"], result.details["after"]
    assert after["macs"] <= 0.5 * before["macs"]
    kept = {row["name"]: row for row in result.details["channels"]}
    model = result.workload.model
    assert kept["stem.0"] == {"name": "stem.0", "kept": model.stem[0].out_channels, "total": 16}
    assert kept["hidden"] == {"name": "hidden", "kept": model.hidden.out_features, "total": 32}
    assert "history" not in result.details
    plan = PrunePlan.load(tmp_path / "step" / "plan.json")
    coupling = analyse(workload.model, workload.example_inputs)
    assert_equals_masked_original(workload.model, model, coupling, plan.kept, workload.example_inputs)
    (transform,) = result.workload.transforms
    assert transform.kind == "prune.channels"
    assert any(note.startswith("frozen: head.weight") for note in result.details["left alone as it must be"])
    assert any(note.startswith("macs: ") for note in result.details["budget"])


def test_fine_tuning_trains_the_pruned_model_and_reports_its_history(tmp_path, registry) -> None:
    fit = {"epochs": 2, "lr": 0.01, "device": "cpu", "seed": 0}
    _, plain = step({"budget": {"macs": 0.5}}, tmp_path, registry)
    _, tuned = step({"budget": {"macs": 0.5}, "fit": fit}, tmp_path / "tuned", registry)
    assert [row["epoch"] for row in tuned.details["history"]] == [1, 2] or len(tuned.details["history"]) == 2
    first, second = plain.workload.model.state_dict(), tuned.workload.model.state_dict()
    assert {name: tensor.shape for name, tensor in first.items()} == {n: t.shape for n, t in second.items()}
    assert not torch.equal(first["stem.0.weight"], second["stem.0.weight"])
    assert tuned.workload.transforms[0].data == plain.workload.transforms[0].data


def test_include_exclude_ratios_and_floors_reach_the_plan(tmp_path, registry) -> None:
    _, result = step({"ratios": {"hidden": 0.5}, "include": ["hidden"]}, tmp_path, registry)
    assert [row["name"] for row in result.details["channels"]] == ["hidden"]
    assert result.workload.model.hidden.out_features == 16
    _, result = step(
        {"budget": {"macs": 0.8}, "exclude": ["head"], "min_channels": {"*": 12}, "round_to": 1}, tmp_path, registry
    )
    assert result.workload.model.stem[0].out_channels >= 12


def test_importance_with_options(tmp_path, registry) -> None:
    step({"budget": {"macs": 0.5}, "importance": {"name": "l2", "normalize": "max"}}, tmp_path, registry)
    plan = PrunePlan.load(tmp_path / "step" / "plan.json")
    assert plan.importance == "l2(normalize='max')"


@pytest.mark.parametrize(
    "config", [{"budgets": {}}, {"round_to": 0}, {"budget": 0.5}, {"fit": {"epoch": 1}}, {"include": "layer"}]
)
def test_a_misspelt_or_mistyped_configuration_is_refused(config) -> None:
    with pytest.raises(ValidationError):
        UniformConfig.model_validate(config)


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ({"budget": {"macs": 0.0001}}, BudgetError),
        ({"budget": {"macs": 0.5}, "exclude": ["nothing.*"]}, PatternError),
    ],
)
def test_a_rehearsal_finds_what_cannot_work(config, error, tmp_path, registry) -> None:
    run = Run(folder=tmp_path, seed=0, registry=registry)
    with pytest.raises(error):
        UniformPruning().rehearse(tiny_workload(), UniformConfig.model_validate(config), run)


def test_a_rehearsal_gives_the_structure_that_the_step_gives(tmp_path, registry) -> None:
    config = UniformConfig.model_validate({"budget": {"macs": 0.5}, "round_to": 4, "importance": "random"})
    run = Run(folder=tmp_path, seed=0, registry=registry)
    workload = tiny_workload()
    before = {name: tensor.clone() for name, tensor in workload.model.state_dict().items()}
    rehearsed = UniformPruning().rehearse(workload, config, run).model.state_dict()
    done = UniformPruning().run(workload, config, run).workload.model.state_dict()
    assert {name: t.shape for name, t in rehearsed.items()} == {name: t.shape for name, t in done.items()}
    assert all(torch.equal(tensor, before[name]) for name, tensor in workload.model.state_dict().items())


@pytest.mark.parametrize("config", [{"ratios": {"hidden": 1.5}}, {"ratios": {"hidden": -1}}, {"min_channels": 0}])
def test_figures_that_no_model_can_have_are_found_when_the_recipe_is_read(config, registry) -> None:
    with pytest.raises(SlimError) as caught:
        UniformPruning.check(UniformConfig.model_validate(config), registry)
    assert caught.value.where
    assert caught.value.hint
