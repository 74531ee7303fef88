"""The ``schedule:`` block of the structured techniques: contracts, rehearsal, report, and resuming a recipe."""

from __future__ import annotations

import json

import pytest
import torch
from pydantic import ValidationError

from slim_core import checkpoint
from slim_core.errors import BudgetError, Interrupted
from slim_core.plugins import load_plugins
from slim_core.recipe import run as run_recipe
from slim_core.technique import Run
from slim_core.testing.contracts import TechniqueCase, TechniqueContract
from slim_core.testing.workloads import TinyNet, tiny_workload
from slim_prune.edits import state_of
from slim_prune.prune_plan import PrunePlan
from slim_prune.technique import UniformConfig, UniformPruning

FIT = {"epochs": 2, "lr": 0.02, "device": "cpu", "channels_last": False}
ONE = {**FIT, "epochs": 1}
SCHEDULES = {
    "one_shot": {"kind": "one_shot"},
    "iterative": {"kind": "iterative", "steps": 2, "fit": {**FIT, "epochs": 1}},
    "soft": {"kind": "soft", "fit": {**FIT, "epochs": 1}},
    "gradual": {"kind": "gradual", "steps": 2, "end": 0.5},
    "masked": {"kind": "gradual", "at_epochs": [0.5, 1.0], "masked": True},
}


def config(name: str, **more) -> dict:
    return {"budget": {"macs": 0.4}, "round_to": 1, "schedule": SCHEDULES[name], "fit": FIT, **more}


@pytest.fixture(scope="module")
def registry():
    return load_plugins(select=["slim-prune"]).registry


class TestIterative(TechniqueContract):
    @pytest.fixture
    def case(self):
        return TechniqueCase(UniformPruning, config("iterative", schedule={"kind": "iterative", "steps": 2}, fit=ONE))


class TestSoft(TechniqueContract):
    @pytest.fixture
    def case(self):
        return TechniqueCase(UniformPruning, config("soft", schedule={"kind": "soft"}, fit=ONE))


class TestGradual(TechniqueContract):
    @pytest.fixture
    def case(self):
        return TechniqueCase(UniformPruning, config("gradual", fit=ONE))


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_meets_the_budget_and_says_what_it_did(name, tmp_path, registry) -> None:
    workload = tiny_workload()
    step = Run(folder=tmp_path, seed=0, registry=registry)
    result = UniformPruning().run(workload, UniformConfig.model_validate(config(name)), step)
    details = result.details
    assert details["after"]["macs"] <= 0.4 * details["before"]["macs"]
    plan = PrunePlan.load(tmp_path / "plan.json")
    assert plan.budget == {"macs": 0.4}
    shapes = {n: t.shape for n, t in state_of(plan.apply(workload.model)).items()}
    assert shapes == {n: t.shape for n, t in state_of(result.workload.model).items()}
    epochs = {"one_shot": 2, "iterative": 3, "soft": 3, "gradual": 2, "masked": 2}[name]
    assert [row["epoch"] for row in details["history"]] == list(range(1, epochs + 1))
    assert len([line for line in details["budget"] if line.startswith("macs: ")]) == 1
    if name != "one_shot":
        assert len(details["schedule"]) == 2
        (curve,) = details["curves"]
        assert all(len(line["x"]) == len(line["y"]) == 2 for line in curve["series"])
    json.dumps(details, allow_nan=False)
    assert not [note for note in result.notes if note.startswith("macs: ")]


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_rehearsal_gives_the_structure_that_the_step_gives(name, tmp_path, registry) -> None:
    workload = tiny_workload()
    step = Run(folder=tmp_path / name, seed=0, registry=registry)
    options = UniformConfig.model_validate(config(name))
    rehearsed = UniformPruning().rehearse(workload, options, step).model.state_dict()
    done = UniformPruning().run(workload, options, step).workload.model.state_dict()
    assert {n: t.shape for n, t in rehearsed.items()} == {n: t.shape for n, t in done.items()}


def test_a_rehearsal_finds_a_budget_out_of_reach_before_any_training(tmp_path, registry) -> None:
    step = Run(folder=tmp_path, seed=0, registry=registry)
    for name in SCHEDULES:
        options = UniformConfig.model_validate(config(name, budget={"macs": 0.0001}))
        with pytest.raises(BudgetError):
            UniformPruning().rehearse(tiny_workload(), options, step)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"schedule": {"kind": "soft"}, "fit": None}, "prunes during training"),
        ({"schedule": {"kind": "gradual"}, "fit": None}, "prunes during training"),
        ({"schedule": {"kind": "often"}}, "kind"),
        ({"schedule": {"kind": "iterative", "step": 3}}, "step"),
        ({"schedule": {"kind": "iterative", "steps": 0}}, "greater than or equal to 1"),
        ({"schedule": {"kind": "gradual", "start": 0.9, "end": 0.5}}, "is after end"),
        ({"schedule": {"kind": "gradual", "at_epochs": [2, 1]}}, "growing"),
    ],
)
def test_a_wrong_block_is_refused_when_the_recipe_is_read(block, message) -> None:
    with pytest.raises(ValidationError, match=message):
        UniformConfig.model_validate({"budget": {"macs": 0.5}, "fit": FIT, **block})


def test_iterative_pruning_without_any_training_says_so(tmp_path, registry) -> None:
    block = {"budget": {"macs": 0.5}, "schedule": {"kind": "iterative", "steps": 2}}
    step = Run(folder=tmp_path, seed=0, registry=registry)
    result = UniformPruning().run(tiny_workload(), UniformConfig.model_validate(block), step)
    assert any("without training between them" in note for note in result.notes)
    assert "history" not in result.details


class Dying:
    """A source of batches that raises Ctrl-C after so many batches."""

    def __init__(self, batches, after: int | None) -> None:
        self.batches, self.left = batches, after

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self):
        for batch in self.batches:
            if self.left is not None:
                self.left -= 1
                if self.left < 0:
                    raise KeyboardInterrupt
            yield batch


@pytest.mark.parametrize("name", ["iterative", "soft", "gradual", "masked"])
def test_an_interrupted_recipe_goes_on_and_gives_the_same_model(name, tmp_path, registry) -> None:
    from dataclasses import replace

    recipe = {"version": 1, "steps": [{"kind": "prune.uniform", **config(name)}]}

    def go(out, after=None):
        workload = tiny_workload()
        run_recipe(recipe, out, workload=replace(workload, train=Dying(workload.train, after)), registry=registry)
        return checkpoint.load(out / "model.safetensors", registry=registry, factory=TinyNet).model

    expected = go(tmp_path / "whole")
    with pytest.raises(Interrupted):
        go(tmp_path / "killed", after=6)
    again = go(tmp_path / "killed")
    assert all(torch.equal(tensor, state_of(again)[name]) for name, tensor in state_of(expected).items())
    report = json.loads((tmp_path / "killed" / "report.json").read_text())
    assert report["steps"][1]["history"]
