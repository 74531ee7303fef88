"""Budgets are met within one percent where the groups allow it: what they allow is found by trying every choice."""

from __future__ import annotations

import allocation_hand as hand
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import slim_prune
from slim_prune.allocation.fill import NEAR, close_gap, every, grow, moves_from
from slim_prune.allocation.uniform import uniform

BUDGETS = [{"macs": 0.3}, {"macs": 0.5}, {"macs": 0.75}, {"params": 0.4}, {"bytes": 0.6}, {"memory": 0.7},
           {"macs": 0.5, "params": 0.45}, {"macs": 0.6, "memory": 0.6}]  # fmt: skip


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
@pytest.mark.parametrize("round_to", [2, 4, 8])
def test_uniform_comes_as_near_as_any_choice_or_within_one_percent(budget, round_to) -> None:
    prob, _ = hand.problem(budget, round_to=round_to)
    found = uniform(prob)
    assert prob.meets(found)
    nearest = max(prob.tightness(counts) for counts in hand.all_choices(prob) if prob.meets(counts))
    assert prob.tightness(found) >= min(NEAR, nearest) - 1e-12


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    widths=st.tuples(st.integers(4, 20), st.integers(4, 20), st.integers(4, 20)),
    share=st.floats(0.25, 0.95),
    cost=st.sampled_from(["macs", "params", "memory"]),
)
def test_uniform_meets_random_budgets_of_random_widths_within_one_percent_where_possible(widths, share, cost) -> None:
    prob, _ = hand.problem({cost: share}, net=hand.model(widths))
    smallest = prob.at(0.0)
    if not prob.meets(smallest):
        return
    found = uniform(prob)
    nearest = max(prob.tightness(counts) for counts in hand.all_choices(prob) if prob.meets(counts))
    assert prob.meets(found)
    assert prob.tightness(found) >= min(NEAR, nearest) - 1e-12


def test_the_search_beyond_single_steps_needs_no_exhaustive_search() -> None:
    """Closing gaps by combined steps alone, from the smallest choice grown, in a space too large to try whole."""
    prob, _ = hand.problem({"macs": 0.5}, net=hand.model((48, 40, 56)), round_to=2)
    assert prob.space > 1500
    start = grow(prob, prob.at(0.4), lambda choice, now, then: -now)
    found = close_gap(prob, start, lambda choice, count: 0.0, whole=0)
    assert prob.meets(found)
    assert prob.tightness(found) >= NEAR


def test_of_choices_near_the_budget_the_one_of_more_worth_is_taken() -> None:
    prob, _ = hand.problem({"macs": 0.5}, round_to=4)
    start = prob.at(0.0)

    def first_group_matters(choice, count):
        return float(count) if choice.name == prob.choices[0].name else 0.0

    found = close_gap(prob, start, first_group_matters)
    near = [c for c in hand.all_choices(prob) if prob.meets(c) and prob.tightness(c) >= NEAR]
    assert prob.tightness(found) >= NEAR
    assert found[prob.choices[0].name] >= sorted(c[prob.choices[0].name] for c in near)[len(near) // 2]


def test_every_choice_is_yielded_once_and_fixed_ratios_stay() -> None:
    prob, _ = hand.problem({"macs": 0.5}, round_to=8, ratios={"b": 0.5})
    fixed = next(choice for choice in prob.choices if choice.name == "b")
    assert fixed.counts == (fixed.at(0.5),)
    yielded = [tuple(counts.items()) for counts in every(prob)]
    assert len(yielded) == len(set(yielded)) == prob.space == len(hand.all_choices(prob))
    assert {dict(counts)["b"] for counts in yielded} == {fixed.at(0.5)}


def test_moves_are_worked_out_exactly() -> None:
    prob, _ = hand.problem({"macs": 0.5, "params": 0.5})
    at = prob.at(0.5)
    moves = moves_from(prob, at, lambda choice, count: 2.0 * count, (1, 2))
    assert moves.changes
    for index, (name, count) in enumerate(moves.changes):
        expected = prob.loads({**at, name: count}) - prob.loads(at)
        assert moves.loads[index] == pytest.approx(expected)
        assert moves.worth[index] == 2.0 * (count - at[name])


def test_a_gap_that_rounding_leaves_is_reported() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    plan = slim_prune.plan(net, (torch.zeros(1, 6),), {"params": 0.9})
    (bound,) = plan.reached
    assert [len(group.kept) for group in plan.groups] == [8]
    assert bound.distance == pytest.approx(1 - (6 * 8 + 8 + 8 * 3 + 3) / (0.9 * (6 * 16 + 16 + 16 * 3 + 3)))
    assert any("to spare" in note and "smaller round_to" in note for note in plan.notes)
    wide = nn.Sequential(nn.Linear(6, 320), nn.ReLU(), nn.Linear(320, 3))
    near = slim_prune.plan(wide, (torch.zeros(1, 6),), {"params": 0.5}, round_to=1)
    assert near.reached[0].distance <= 0.01
    assert not any("to spare" in note for note in near.notes)
