"""``prune.evolution`` as a step of a recipe."""

from __future__ import annotations

import sys

import pytest
import torch
from search_nets import trained

from slim_core.errors import BudgetError, MissingExtraError, UnknownNameError
from slim_core.plugins import load_plugins
from slim_core.technique import Run
from slim_core.testing.contracts import TechniqueCase, TechniqueContract
from slim_core.training import evaluate
from slim_prune.evolution.technique import EvolutionConfig, EvolutionPruning
from slim_prune.prune_plan import PrunePlan

SEARCH = {"trials": 6, "population": 4, "holdout": 200, "samples": 100}


@pytest.fixture(scope="module")
def registry():
    return load_plugins(select=["slim-prune"]).registry


class TestEvolution(TechniqueContract):
    @pytest.fixture
    def case(self) -> TechniqueCase:
        search = {"trials": 3, "population": 2, "holdout": 16, "samples": 16}
        return TechniqueCase(EvolutionPruning, config={"budget": {"macs": 0.5}, "round_to": 4, "search": search})


def step(tmp_path, registry, **config):
    config = EvolutionConfig.model_validate({"budget": {"macs": 0.5}, "round_to": 2, "search": SEARCH, **config})
    return EvolutionPruning().run(trained(), config, Run(folder=tmp_path, seed=0, registry=registry))


def test_the_result_is_the_best_candidate_with_running_statistics_measured_anew(tmp_path, registry) -> None:
    result = step(tmp_path, registry)
    net = trained()
    plan = PrunePlan.load(tmp_path / "plan.json")
    plain = plan.apply(net.model)
    assert torch.equal(plain.head.weight, result.workload.model.head.weight)
    loss = evaluate(result.workload.model, net.task, net.val)["loss"]
    assert loss < evaluate(plain, net.task, net.val)["loss"]
    best = result.details["search"]["best"]
    assert best["counts"] == {group.name: len(group.kept) for group in plan.groups}
    assert best["figures"]["top1"] > 0.3
    titles = [chart["title"] for chart in result.details["curves"]]
    assert titles == [
        "Best top1 so far",
        "top1 against macs: the Pareto front",
        "top1 against params: the Pareto front",
    ]
    assert any("held out of the training data" in note for note in result.notes)
    assert (tmp_path / "search.jsonl").exists()


def test_a_step_that_was_interrupted_goes_on_from_its_journal(tmp_path, registry) -> None:
    first = step(tmp_path, registry)
    lines = (tmp_path / "search.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "search.jsonl").write_text("".join(lines[:3]))
    again = step(tmp_path, registry)
    assert again.details == first.details
    state, other = first.workload.model.state_dict(), again.workload.model.state_dict()
    assert all(torch.equal(state[name], other[name]) for name in state)


def test_a_recipe_is_checked_before_anything_runs(registry, monkeypatch) -> None:
    config = EvolutionConfig.model_validate({"budget": {"macs": 0.5}, "search": {"initial": ["nowhere"]}})
    with pytest.raises(UnknownNameError, match="nowhere"):
        EvolutionPruning.check(config, registry)
    config = EvolutionConfig.model_validate({"budget": {"macs": 0.5}, "search": {"algorithm": "cmaes"}})
    EvolutionPruning.check(config, registry)
    monkeypatch.setitem(sys.modules, "cmaes", None)
    with pytest.raises(MissingExtraError, match="cmaes is not installed"):
        EvolutionPruning.check(config, registry)


def test_a_rehearsal_finds_a_budget_out_of_reach_and_searches_nothing(tmp_path, registry) -> None:
    run = Run(folder=tmp_path, seed=0, registry=registry)
    config = EvolutionConfig.model_validate({"budget": {"macs": 0.0001}})
    with pytest.raises(BudgetError, match="cannot be reached"):
        EvolutionPruning().rehearse(trained(), config, run)
    config = EvolutionConfig.model_validate({"budget": {"macs": 0.5}})
    assert EvolutionPruning().rehearse(trained(), config, run) is None
    assert not (tmp_path / "search.jsonl").exists()
