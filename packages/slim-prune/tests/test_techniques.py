"""``prune.global`` and ``prune.latency`` as steps: their contracts, their options, and what they refuse."""

from __future__ import annotations

from types import ModuleType

import allocation_hand as hand
import pytest
from pydantic import ValidationError

from slim_core import hookimpl
from slim_core.errors import BudgetError, UnknownNameError
from slim_core.graph import analyse, record
from slim_core.plugins import load_plugins
from slim_core.technique import Run
from slim_core.testing.contracts import TechniqueCase, TechniqueContract
from slim_core.testing.oracle import assert_equals_masked_original
from slim_core.testing.workloads import tiny_workload
from slim_prune import allocation as allocations
from slim_prune.errors import PlanError
from slim_prune.prune_plan import PrunePlan
from slim_prune.technique import UniformConfig, UniformPruning
from slim_prune.techniques import GlobalConfig, GlobalPruning, LatencyConfig, LatencyPruning

LATENCY = "latency:made-up"


@pytest.fixture(scope="module")
def stairs_registry():
    module = ModuleType("made_up")

    @hookimpl
    def slim_register_cost_models(register) -> None:
        register(LATENCY, hand.Staircase())

    module.slim_register_cost_models = slim_register_cost_models
    return load_plugins(select=["slim-prune"], extra=[module], strict=True).registry


class TestGlobalPruning(TechniqueContract):
    @pytest.fixture
    def case(self) -> TechniqueCase:
        config = {"budget": {"macs": 0.5}, "round_to": 2, "max_pruned": 0.8, "per": "budget", "normalize": "sum"}
        return TechniqueCase(GlobalPruning, config=config)


class TestLatencyPruning(TechniqueContract):
    @pytest.fixture
    def registry(self, stairs_registry):
        return stairs_registry

    @pytest.fixture
    def case(self) -> TechniqueCase:
        return TechniqueCase(LatencyPruning, config={"budget": {LATENCY: 0.6}, "round_to": 2})


def step(technique, config, tmp_path, registry):
    workload = tiny_workload()
    config = technique.Config.model_validate(config)
    return workload, technique().run(workload, config, Run(folder=tmp_path / "step", seed=0, registry=registry))


def test_the_latency_budget_holds_for_the_pruned_model_itself(tmp_path, stairs_registry) -> None:
    workload, result = step(LatencyPruning, {"budget": {LATENCY: 0.6}, "round_to": 1}, tmp_path, stairs_registry)
    whole = hand.Staircase().total(record(workload.model, workload.example_inputs))
    left = hand.Staircase().total(record(result.workload.model, workload.example_inputs))
    assert left <= 0.6 * whole
    assert result.details["after"][LATENCY] == pytest.approx(left)
    assert any(line.startswith(f"{LATENCY}: ") for line in result.details["budget"])
    plan = PrunePlan.load(tmp_path / "step" / "plan.json")
    coupling = analyse(workload.model, workload.example_inputs)
    assert_equals_masked_original(workload.model, result.workload.model, coupling, plan.kept, workload.example_inputs)


def test_options_reach_the_allocation(tmp_path, stairs_registry) -> None:
    config = {"budget": {"macs": 0.6}, "round_to": 1, "max_pruned": 0.55, "normalize": "max"}
    _, result = step(GlobalPruning, config, tmp_path, stairs_registry)
    plan = PrunePlan.load(tmp_path / "step" / "plan.json")
    assert plan.allocation == "global(normalize='max', per=None, max_pruned=0.55)"
    assert all(row["kept"] >= 0.45 * row["total"] for row in result.details["channels"])


def test_a_latency_step_without_a_time_or_with_an_unknown_one_is_refused_when_the_recipe_is_read(
    stairs_registry,
) -> None:
    with pytest.raises(BudgetError) as caught:
        LatencyPruning.check(LatencyConfig.model_validate({"budget": {"macs": 0.5}}), stairs_registry)
    assert LATENCY in caught.value.hint
    with pytest.raises(UnknownNameError, match="latency:made-upp"):
        LatencyPruning.check(LatencyConfig.model_validate({"budget": {"latency:made-upp": "1ms"}}), stairs_registry)
    LatencyPruning.check(LatencyConfig.model_validate({"budget": {LATENCY: "1ms"}}), stairs_registry)


@pytest.mark.parametrize("technique", [GlobalPruning, LatencyPruning])
def test_a_rehearsal_finds_unreachable_budgets_and_cannot_tell_the_structure(
    technique, tmp_path, stairs_registry
) -> None:
    cost = LATENCY if technique is LatencyPruning else "macs"
    run = Run(folder=tmp_path, seed=0, registry=stairs_registry)
    config = technique.Config.model_validate({"budget": {cost: 0.7}, "round_to": 1})
    assert technique().rehearse(tiny_workload(), config, run) is None
    config = technique.Config.model_validate({"budget": {cost: 0.0001}})
    with pytest.raises(BudgetError):
        technique().rehearse(tiny_workload(), config, run)


@pytest.mark.parametrize("options", [{"max_pruned": 0}, {"max_pruned": 1.5}, {"normalize": "median"}, {"per": 3}])
def test_wrong_options_are_refused_by_the_schema(options) -> None:
    with pytest.raises(ValidationError):
        GlobalConfig.model_validate({"budget": {"macs": 0.5}, **options})


# --- allocations by name, by function, by plugin; what they give is checked ---


def test_a_plugin_adds_an_allocation_and_a_plan_uses_it_by_name() -> None:
    import slim_prune

    module = ModuleType("third_party")

    def smallest(problem, context, *, but: str = ""):
        return {choice.name: choice.counts[-1 if choice.name == but else 0] for choice in problem.choices}

    @hookimpl
    def slim_register_allocations(register) -> None:
        register("smallest", smallest)

    module.slim_register_allocations = slim_register_allocations
    registry = load_plugins(select=["slim-prune"], extra=[module], strict=True).registry
    assert registry.names("allocations").count("smallest") == 1
    plan = slim_prune.plan(
        hand.model(), hand.INPUTS, {"macs": 0.9}, allocation={"name": "smallest", "but": "d"}, registry=registry
    )
    assert plan.allocation == "smallest(but='d')"
    assert {group.name: len(group.kept) for group in plan.groups} == {"a": 8, "b": 8, "d": 32}


@pytest.mark.parametrize(
    ("counts", "error", "message"),
    [
        ({"nothing": 8}, PlanError, "no channel group 'nothing'"),
        ({"a": 9}, PlanError, "not permitted"),
        ({"a": 0}, PlanError, "not permitted"),
        ({"b": 8}, PlanError, "not permitted"),  # its ratio is fixed
        ({}, BudgetError, "the allocation breaks the budget"),
    ],
)
def test_what_an_allocation_gives_is_checked(counts, error, message) -> None:
    import slim_prune

    with pytest.raises(error, match=message) as caught:
        slim_prune.plan(
            hand.model(), hand.INPUTS, {"macs": 0.3}, allocation=lambda problem, context: counts, ratios={"b": 0.67}
        )
    assert "allocation '<lambda>'" in caught.value.where


def test_notes_and_details_of_an_allocation_stand_in_the_plan_and_in_its_file(tmp_path) -> None:
    import slim_prune

    def telling(problem, context):
        context.note("looked twice")
        context.details["tries"] = [1, 2]
        return allocations.resolve("uniform")[1](problem, context)

    plan = slim_prune.plan(hand.model(), hand.INPUTS, {"macs": 0.5}, allocation=telling)
    assert "looked twice" in plan.notes
    plan.save(tmp_path / "plan.json")
    assert PrunePlan.load(tmp_path / "plan.json").details == {"tries": [1, 2]}

    def not_json(problem, context):
        context.details["model"] = context.model
        return {}

    with pytest.raises(PlanError, match="JSON"):
        slim_prune.plan(hand.model(), hand.INPUTS, {"params": "1G"}, allocation=not_json)


def test_the_context_offers_scores_the_best_units_and_data(tmp_path) -> None:
    import slim_prune

    workload = tiny_workload()
    seen = {}

    def looking(problem, context):
        group = problem.choices[0].group
        scores = context.score(group)
        assert context.score(group) is scores
        best = context.best(group, 4)
        assert sorted(scores[best]) == sorted(scores)[-4:]
        assert list(best) == sorted(best)
        assert len(context.best(group, group.units)) == group.units
        assert {name: len(units) for name, units in context.kept({group.name: 3}).items()} == {group.name: 3}
        with pytest.raises(PlanError, match="needs train"):
            context.require("train", by="a test")
        context.require("val", "task", by="a test")
        seen.update(seed=context.seed, folder=context.folder, val=context.val)
        return problem.at(1.0)

    slim_prune.plan(
        workload.model, workload.example_inputs, {"params": "1G"}, allocation=looking, val=workload.val,
        task=workload.task, seed=7, folder=tmp_path,
    )  # fmt: skip
    assert seen == {"seed": 7, "folder": tmp_path, "val": workload.val}


def test_the_uniform_step_is_a_structured_step_too() -> None:
    assert UniformPruning().allocation(UniformConfig()) == "uniform"
