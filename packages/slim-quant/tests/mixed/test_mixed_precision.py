"""Bits for each layer: budgets are met exactly, goals are measured, and the file is as large as was counted."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import torch
from quant_nets import pictures, trained
from torch import nn

from slim_core.errors import BudgetError, SlimError
from slim_core.tasks import ClassificationTask
from slim_core.training.evaluate import evaluate
from slim_quant.bits import FLOAT, parse_bits
from slim_quant.mixed.choose import Mixed, choose
from slim_quant.mixed.costs import stored_bytes
from slim_quant.schemes import Scheme

TASK = ClassificationTask(num_classes=10)
VAL = [pictures(100, 61), pictures(100, 62)]
CALIBRATION = [pictures(32, 60)[0]]
EXAMPLE = (CALIBRATION[0][:1],)
WEIGHTS = ("stem", "depthwise", "point", "left", "right", "hidden", "head")


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return trained()


def chosen(model: nn.Module, **options) -> Mixed:
    return choose(model, CALIBRATION, example_inputs=EXAMPLE, task=TASK, val=VAL, **options)


@pytest.fixture(scope="module")
def small(model: nn.Module) -> Mixed:
    return chosen(model, budget={"bytes": 0.2})


def test_a_budget_is_met_with_the_least_noise(small: Mixed) -> None:
    """The knapsack over the seven weighted layers, against all 3^7 choices."""
    assert small.cost_after <= 0.2 * small.cost_before
    names = ["w4a8", "w8a8", FLOAT]
    base = small.cost_after - sum(_bytes(small, unit, small.assignment[unit]) for unit in WEIGHTS)
    best = min(
        (sum(small.losses[unit][choice] for unit, choice in zip(WEIGHTS, picks, strict=True)))
        for picks in product(names, repeat=len(WEIGHTS))
        if base + sum(_bytes(small, u, c) for u, c in zip(WEIGHTS, picks, strict=True)) <= 0.2 * small.cost_before
    )
    assert sum(small.losses[unit][small.assignment[unit]] for unit in WEIGHTS) == pytest.approx(best)
    assert {small.assignment[unit] for unit in WEIGHTS} == {"w4a8", "w8a8"}


SHAPES = {
    "stem": (16, 3, 3, 3), "depthwise": (16, 1, 3, 3), "point": (16, 16, 1, 1), "left": (8, 16, 1, 1),
    "right": (8, 16, 3, 3), "hidden": (32, 16), "head": (10, 32),
}  # fmt: skip


def _bytes(found: Mixed, unit: str, choice: str) -> float:
    count = int(torch.tensor(SHAPES[unit]).prod())
    if choice == FLOAT:
        return 4 * count
    return stored_bytes(count, SHAPES[unit], parse_bits(choice).weight)


def test_bits_are_where_they_were_chosen(small: Mixed) -> None:
    bits = {row["name"]: row["bits"] for row in small.result.report.layers}
    assert bits == {unit: int(small.assignment[unit][1]) for unit in WEIGHTS}


def test_what_is_reported_was_measured_on_the_model_that_is_handed_over(small: Mixed, model: nn.Module) -> None:
    assert small.before == evaluate(model, TASK, VAL)["top1"]
    assert small.after == evaluate(small.result.model, TASK, VAL)["top1"]
    assert small.drop == small.before - small.after


def test_bytes_are_those_of_integers_packed_and_scales(small: Mixed, tmp_path: Path) -> None:
    assert stored_bytes(9, (3, 3), Scheme(4, True, "per_channel")) == 5 + 12
    assert stored_bytes(9, (3, 3), Scheme(8, True, "per_channel")) == 9 + 12
    assert stored_bytes(64, (2, 32), Scheme(4, True, "per_group", 16)) == 32 + 16
    assert stored_bytes(64, (2, 32), Scheme(4, False, "per_tensor")) == 64 + 8


def test_a_smaller_budget_has_more_noise_and_none_is_an_error(model: nn.Module, small: Mixed) -> None:
    larger = chosen(model, budget={"bytes": 0.3})
    noise = [sum(found.losses[u][found.assignment[u]] for u in WEIGHTS) for found in (small, larger)]
    assert noise[1] <= noise[0]
    with pytest.raises(BudgetError, match="cannot be met: the cheapest model has") as error:
        chosen(model, budget={"bytes": 0.05})
    assert "allow fewer bits" in str(error.value)


@pytest.mark.slow
def test_a_goal_is_kept_and_a_looser_one_is_never_dearer(model: nn.Module) -> None:
    costs = []
    for goal in (0.0, 1.0, 100.0):
        found = chosen(model, max_drop=goal, options=["w2a8", "w4a8", "w8a8"])
        assert found.drop <= goal / 100 + 1e-9
        assert any(trial.built for trial in found.trials)
        costs.append(found.cost_after)
    assert costs == sorted(costs, reverse=True)
    # anything goes: 2 bits are stored as 4, which lose less, and operators cost no bytes
    assert set(found.assignment.values()) == {"w4a8", "w8a8"}


def test_measured_milliseconds_can_be_the_budget(model: nn.Module) -> None:
    """Where integers are slower, a layer stays in float."""
    units = (*WEIGHTS, "add", "cat", "mean")
    costs = {unit: {FLOAT: 2.0, "w8a8": 1.0} for unit in units}
    costs["right"] = {FLOAT: 1.0, "w8a8": 3.0}
    found = chosen(model, budget={"latency": "10ms"}, costs=costs, options=["w8a8"])
    assert found.assignment["right"] == FLOAT
    assert found.cost_after == 10
    assert [unit for unit, choice in found.assignment.items() if choice == FLOAT] == ["right"]
    assert "right" not in {row["name"] for row in found.result.report.layers}
    with pytest.raises(SlimError, match="says nothing about"):
        chosen(model, budget={"latency": "11ms"}, costs={"stem": {FLOAT: 1.0}}, options=["w8a8"])


def test_bit_operations_count_both_sides(model: nn.Module) -> None:
    found = chosen(model, budget={"bitops": 0.05}, options=["w4a8", "w8a8"], allow_float=False)
    macs = {"stem": 432 * 256, "depthwise": 144 * 256, "point": 256 * 256, "left": 128 * 256, "right": 1152 * 256,
            "hidden": 512, "head": 320}  # fmt: skip
    assert found.cost_before == sum(macs.values()) * 1024
    assert found.cost_after == sum(macs[u] * int(found.assignment[u][1]) * 8 for u in WEIGHTS)
    assert found.cost_after <= 0.05 * found.cost_before


def test_what_is_asked_for_must_make_sense(model: nn.Module) -> None:
    with pytest.raises(SlimError, match="neither a goal nor a budget"):
        chosen(model)
    with pytest.raises(SlimError, match="max_drop needs a metric"):
        choose(model, CALIBRATION, example_inputs=EXAMPLE, max_drop=1)
    with pytest.raises(BudgetError, match="no cost 'macs'"):
        chosen(model, budget={"macs": 0.5})
    with pytest.raises(BudgetError, match="bounds one cost"):
        chosen(model, budget={"bytes": 0.5, "bitops": 0.5})


def test_a_recipe_step_chooses_too(model: nn.Module, tmp_path: Path) -> None:
    from slim_core.plugins import load_plugins
    from slim_core.technique import Run
    from slim_core.workload import Workload
    from slim_quant.mixed.technique import MixedConfig, MixedTechnique

    workload = Workload(model, EXAMPLE, TASK, [(CALIBRATION[0], pictures(32, 60)[1])], VAL)
    config = MixedConfig(budget={"bytes": 0.2})
    run = Run(tmp_path, 0, load_plugins().registry)
    MixedTechnique.check(config, run.registry)
    step = MixedTechnique().run(workload, config, run)
    assert step.details["cost_after"] <= 0.2 * step.details["cost_before"]
    assert {row["bits"] for row in step.details["layers"]} == {"w4a8", "w8a8"}
    assert step.workload.transforms[-1].kind == "quant.static"
    assert (tmp_path / "sensitivity" / "points.json").is_file()
    with pytest.raises(ValueError, match="needs max_drop"):
        MixedConfig()
