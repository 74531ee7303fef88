"""Pruning in steps: budgets on the way, planned anew from the weights of the moment, one final budget."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import slim_prune
from slim_core.errors import BudgetError, PatternError
from slim_core.graph import record
from slim_core.graph.cost import cost
from slim_core.testing.workloads import tiny_workload
from slim_prune.edits import state_of
from slim_prune.errors import PlanError


def chain(width: int = 64) -> tuple[nn.Module, tuple]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, width, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * width, 4)
    )
    return model, (torch.randn(2, 3, 8, 8),)


def macs(model, inputs) -> int:
    return cost(record(model, inputs)).macs


@pytest.mark.parametrize("spacing", ["geometric", "linear"])
def test_every_step_meets_its_limit_and_the_last_one_the_budget(spacing) -> None:
    model, inputs = chain()
    original = macs(model, inputs)
    stepwise = slim_prune.Stepwise(model, inputs, {"macs": 0.3}, steps=3, spacing=spacing, round_to=1)
    shares = [0.3 ** (1 / 3), 0.3 ** (2 / 3), 0.3] if spacing == "geometric" else [1 - 0.7 / 3, 1 - 1.4 / 3, 0.3]
    for share, _ in zip(shares, stepwise, strict=True):
        reached = macs(model, inputs)
        assert reached <= share * original * (1 + 1e-9)
        assert reached >= 0.95 * share * original
    assert stepwise.finished
    assert stepwise.plan.after["macs"] == macs(model, inputs)


def test_the_composed_plan_does_all_steps_at_once_and_names_the_asked_budget() -> None:
    model, inputs = chain()
    original = copy.deepcopy(model)
    stepwise = slim_prune.Stepwise(model, inputs, {"macs": 0.4, "params": 0.9}, steps=4)
    plans = list(stepwise)
    assert len(plans) == 4
    again = stepwise.plan.apply(original)
    assert all(torch.equal(t, state_of(again)[name]) for name, t in state_of(model).items())
    assert stepwise.plan.budget == {"macs": 0.4, "params": 0.9}
    notes = [note for note in stepwise.plan.notes if note.startswith("macs: ")]
    assert len(notes) == 1
    assert f"of {stepwise.plan.before['macs']:,.0f}" in notes[0]


def test_one_step_is_one_shot() -> None:
    model, inputs = chain()
    expected = slim_prune.plan(model, inputs, {"macs": 0.5})
    stepwise = slim_prune.Stepwise(model, inputs, {"macs": 0.5}, steps=1)
    list(stepwise)
    assert stepwise.plan.edits == expected.edits
    assert stepwise.plan.budget == expected.budget


def test_each_step_looks_at_the_weights_of_the_moment() -> None:
    """Training makes other channels small between the steps; the second step takes these."""
    model, inputs = chain(8)
    with torch.no_grad():
        model[0].weight[:4] *= 1e-3
        model[2].weight[:, :4] *= 1e-3
    stepwise = slim_prune.Stepwise(
        model, inputs, ratios={"0": 0.25}, include=["0"], steps=2, spacing="linear", round_to=1
    )
    first = stepwise.cut()
    assert len(first.kept["0"]) == 5
    assert set(first.kept["0"]) >= {4, 5, 6, 7}
    with torch.no_grad():
        for row in (1, 2, 3):  # of what is left: channels 4, 5 and 6 or their neighbours
            model[0].weight[row] *= 1e-6
            model[2].weight[:, row] *= 1e-6
    second = stepwise.cut()
    assert second.kept["0"].tolist() == [0, 4] or second.kept["0"].tolist() == [4] or 4 in second.kept["0"]
    assert stepwise.finished
    assert len(stepwise.plan.kept["0"]) == 2
    assert not set(stepwise.plan.kept["0"]) & set(first.kept["0"][[1, 2, 3]])


def test_rounding_and_floors_refer_to_the_original() -> None:
    """Sixteen channels are pruned to multiples of eight; in two steps, eight must not become four."""
    model, inputs = chain(16)
    with pytest.raises(BudgetError):
        slim_prune.Stepwise(model, inputs, {"macs": 0.2}, steps=3)
    target = copy.deepcopy(model)
    list(slim_prune.Stepwise(target, inputs, {"macs": 0.45}, steps=3))
    assert target[0].out_channels % 8 == 0
    assert target[2].out_channels % 8 == 0
    target = copy.deepcopy(model)
    list(slim_prune.Stepwise(target, inputs, {"macs": 0.6}, steps=3, min_channels={"0": 12}, round_to=1))
    assert target[0].out_channels >= 12


def test_ratios_are_of_the_original_whatever_the_steps() -> None:
    for spacing in ("geometric", "linear", "cubic"):
        model, inputs = chain(40)
        stepwise = slim_prune.Stepwise(
            model, inputs, ratios={"0": 0.25, "2": 0.5}, steps=3, spacing=spacing, round_to=1
        )
        list(stepwise)
        assert (model[0].out_channels, model[2].out_channels) == (10, 20)


def test_include_and_exclude_hold_for_every_step() -> None:
    model, inputs = chain(32)
    list(slim_prune.Stepwise(model, inputs, {"macs": 0.6}, steps=3, include=["0"], round_to=1))
    assert model[0].out_channels < 32
    assert model[2].out_channels == 32
    with pytest.raises(PatternError):
        slim_prune.Stepwise(model, inputs, {"macs": 0.6}, include=["nothing"])


def test_a_group_that_is_down_to_one_unit_ends_nothing() -> None:
    model, inputs = chain(8)
    stepwise = slim_prune.Stepwise(model, inputs, {"macs": 0.07}, include=["0", "2"], steps=5, round_to=1)
    list(stepwise)
    assert (model[0].out_channels, model[2].out_channels) == (1, 1)
    assert macs(model, inputs) <= 0.07 * stepwise.original["macs"] * (1 + 1e-9)


def test_optimizer_and_average_are_cut_at_each_step() -> None:
    model, inputs = chain(16)
    optimizer = torch.optim.Adam(model.parameters())
    average = {name: p.detach().clone() for name, p in model.named_parameters()}
    stepwise = slim_prune.Stepwise(model, inputs, {"macs": 0.5}, steps=2, round_to=1)
    while not stepwise.finished:
        optimizer.zero_grad()
        model(*inputs).square().sum().backward()
        optimizer.step()
        stepwise.cut(optimizer=optimizer, ema=average)
    for name, parameter in model.named_parameters():
        assert average[name].shape == parameter.shape
        assert optimizer.state[parameter]["exp_avg"].shape == parameter.shape


def test_a_budget_out_of_reach_is_found_before_the_first_step() -> None:
    model, inputs = chain(8)
    with pytest.raises(BudgetError, match="cannot be reached"):
        slim_prune.Stepwise(model, inputs, {"macs": 0.05}, round_to=1)
    assert model[0].out_channels == 8


def test_steps_that_nobody_has_are_refused() -> None:
    model, inputs = chain(8)
    with pytest.raises(BudgetError, match="steps must be at least 1"):
        slim_prune.Stepwise(model, inputs, {"macs": 0.5}, steps=0)
    with pytest.raises(BudgetError, match="nothing to do"):
        slim_prune.Stepwise(model, inputs)
    stepwise = slim_prune.Stepwise(model, inputs, {"macs": 0.5}, steps=1, round_to=1)
    stepwise.cut()
    with pytest.raises(PlanError, match="all 1 steps were taken"):
        stepwise.cut()
    with pytest.raises(PlanError, match="cannot have been taken"):
        stepwise.resume(5, stepwise.plan)


def test_a_residual_network_in_steps_equals_its_masked_original() -> None:
    from slim_core.graph import analyse
    from slim_core.testing.oracle import assert_equals_masked_original

    workload = tiny_workload()
    coupling = analyse(workload.model, workload.example_inputs)
    model = copy.deepcopy(workload.model)
    stepwise = slim_prune.Stepwise(model, workload.example_inputs, {"macs": 0.3}, steps=3, round_to=1)
    list(stepwise)
    assert all(np.all(np.diff(kept) > 0) for kept in stepwise.plan.kept.values())
    assert_equals_masked_original(workload.model, model, coupling, stepwise.plan.kept, workload.example_inputs)
