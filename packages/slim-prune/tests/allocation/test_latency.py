"""Most importance within a time: against trying everything, on a runtime whose times are stairs."""

from __future__ import annotations

import itertools
from types import ModuleType

import allocation_hand as hand
import numpy as np
import pytest

import slim_prune
from slim_core import hookimpl
from slim_core.errors import BudgetError, SlimError
from slim_core.plugins import load_plugins
from slim_prune.allocation import knapsack
from slim_prune.allocation.latency import search, tables_around, within_latency
from slim_prune.allocation.uniform import uniform
from slim_prune.allocation.values import kept_worth, log_share

LATENCY = "latency:made-up"


def stairs(share: float, *, widths=(16, 24, 32), round_to: int = 4, more=None):
    return hand.problem(
        {LATENCY: share, **(more or {})}, net=hand.model(widths), round_to=round_to, models={LATENCY: hand.Staircase()}
    )


def total(worth, counts) -> float:
    return sum(values[counts[name]] for name, values in worth.items())


def worths(prob, net, kind):
    around = hand.context(prob, net)
    if kind == "product":
        return {choice.name: log_share(choice, around) for choice in prob.free}
    return {choice.name: kept_worth(choice, around, "sum") for choice in prob.free}


@pytest.mark.parametrize("share", [0.35, 0.5, 0.6, 0.75, 0.9])
@pytest.mark.parametrize("kind", ["sum", "product"])
@pytest.mark.parametrize("widths", [(16, 24, 32), (32, 16, 48), (24, 40, 24)])
def test_it_finds_the_best_of_all_choices_on_a_staircase(share, kind, widths) -> None:
    """Without searching the space whole: knapsacks over tables, trades, growth."""
    prob, net = stairs(share, widths=widths)
    worth = worths(prob, net, kind)
    found = search(prob, worth, uniform(prob), whole=0)
    best = max(total(worth, counts) for counts in hand.all_choices(prob) if prob.meets(counts))
    assert prob.meets(found)
    least = total(worth, prob.at(0.0))
    assert total(worth, found) - least >= 0.99 * (best - least)


@pytest.mark.parametrize("share", [0.5, 0.7])
def test_several_bounds_hold_at_once_and_the_choice_is_near_the_best(share) -> None:
    prob, net = stairs(share, more={"params": share * 0.9, "macs": 0.6})
    worth = worths(prob, net, "sum")
    found = search(prob, worth, uniform(prob), whole=0)
    best = max(total(worth, counts) for counts in hand.all_choices(prob) if prob.meets(counts))
    assert prob.meets(found)
    assert total(worth, found) >= 0.98 * best


def test_small_spaces_are_searched_whole() -> None:
    prob, net = stairs(0.6, round_to=8)
    worth = worths(prob, net, "sum")
    found = search(prob, worth, uniform(prob))
    assert total(worth, found) == max(total(worth, c) for c in hand.all_choices(prob) if prob.meets(c))


def test_no_count_is_chosen_that_costs_as_much_as_a_larger_one() -> None:
    """With single channels permitted and tiles of 4, every group ends on a tile's edge: the rest of a tile is free."""
    prob, net = stairs(0.55, round_to=1)
    counts = within_latency(prob, hand.context(prob, net))
    for choice in prob.choices:
        more = choice.grid.up(counts[choice.name])
        if more is not None:
            assert not prob.meets({**counts, choice.name: more})
        assert counts[choice.name] % 4 == 0 or counts[choice.name] == choice.group.units


def test_it_keeps_more_than_a_macs_budget_of_the_same_time() -> None:
    """Times are asked of the cost model, not taken for MACs: at one time limit it keeps more of the importance."""
    prob, net = stairs(0.6, round_to=1)
    around = hand.context(prob, net)
    worth = worths(prob, net, "product")
    found = within_latency(prob, around)
    proxies = []
    for share in np.linspace(0.2, 0.95, 40):
        macs, _ = hand.problem({"macs": float(share)}, net=net, round_to=1)
        counts = uniform(macs)
        if prob.meets(counts):
            proxies.append(total(worth, counts))
    assert total(worth, found) > max(proxies)


def test_tables_hold_the_cost_of_each_count_alone() -> None:
    prob, net = stairs(0.6, more={"params": 0.7})
    worth = worths(prob, net, "sum")
    at = prob.at(0.5)
    tables = tables_around(prob, worth, at, 10**9)
    for name, counts, values, loads in zip(tables.names, tables.counts, tables.worth, tables.loads, strict=True):
        for count, value, load in zip(counts, values, loads, strict=True):
            assert value == worth[name][count]
            assert load == pytest.approx(prob.loads({**at, name: count}) - prob.loads(at))
    near = tables_around(prob, worth, at, 1)
    assert all(len(counts) <= 3 for counts in near.counts)


def test_curves_are_obeyed_and_their_sum_of_losses_is_least() -> None:
    prob, net = stairs(0.6)
    rng = np.random.default_rng(0)
    curves = {}
    for choice in prob.choices:
        steps = np.sort(rng.gamma(1.0, 0.02, len(choice.counts)))[::-1].cumsum()[::-1]
        curves[choice.name] = {c: float(s) for c, s in zip(choice.counts[:-1], steps, strict=False)}
    found = within_latency(prob, hand.context(prob, net), curves=curves, max_pruned=1.0)

    def loss(counts):
        return sum(curves[name].get(count, 0.0) for name, count in counts.items())

    feasible = [counts for counts in hand.all_choices(prob) if prob.meets(counts)]
    least, most = min(map(loss, feasible)), loss(prob.at(0.0))
    assert loss(found) <= least + 0.03 * (most - least)


def test_curves_between_and_below_their_points_and_where_they_fall() -> None:
    from slim_prune.allocation.curves import worth_of_curves

    prob, _ = stairs(0.6)
    choice = next(c for c in prob.choices if c.group.units == 32)
    others = {c.name: {1: 0.5} for c in prob.choices}
    worth = worth_of_curves([choice], {**others, choice.name: {8: 0.4, 16: 0.2, 24: -0.1, 28: 0.05}})[choice.name]
    assert worth[32] == 0.0
    assert worth[16] == pytest.approx(-0.2)
    assert worth[12] == pytest.approx(-0.3)
    assert worth[4] == pytest.approx(-0.5)  # the line goes on
    assert worth[24] == pytest.approx(-0.05)  # fewer units are never worth more
    assert (np.diff(worth) >= 0).all()


@pytest.mark.parametrize(
    ("curves", "message"),
    [
        ({}, "no sensitivity curve"),
        ({"a": {}}, "no points"),
        ({"a": {4: float("nan")}}, "not finite"),
        ({"a": {400: 0.1}}, "beyond the group's"),
    ],
)
def test_curves_that_cannot_serve_are_refused(curves, message) -> None:
    prob, net = stairs(0.6)
    with pytest.raises(SlimError, match=message):
        within_latency(prob, hand.context(prob, net), curves=curves)


def test_a_time_that_no_choice_has_is_an_error() -> None:
    prob, net = stairs(0.01)
    with pytest.raises(BudgetError, match="cannot be reached"):
        within_latency(prob, hand.context(prob, net))


def test_unknown_objectives_are_refused() -> None:
    prob, net = stairs(0.6)
    with pytest.raises(SlimError, match="unknown objective"):
        within_latency(prob, hand.context(prob, net), objective="max")


def test_a_plan_takes_a_registered_cost_model_in_milliseconds() -> None:
    module = ModuleType("made_up")

    @hookimpl
    def slim_register_cost_models(register) -> None:
        register(LATENCY, hand.Staircase())

    module.slim_register_cost_models = slim_register_cost_models
    registry = load_plugins(select=["slim-prune"], extra=[module], strict=True).registry
    net = hand.model()
    plan = slim_prune.plan(net, hand.INPUTS, {LATENCY: "0.30ms"}, allocation="latency", round_to=1, registry=registry)
    (bound,) = plan.reached
    assert bound.cost == LATENCY
    assert bound.limit == 0.30
    assert bound.value <= 0.30
    from slim_core.graph import record

    assert hand.Staircase().total(record(plan.apply(net), hand.INPUTS)) == pytest.approx(bound.value)


# --- the knapsack itself ---


@pytest.mark.parametrize("seed", range(12))
def test_the_knapsack_equals_trying_everything(seed) -> None:
    rng = np.random.default_rng(seed)
    groups = int(rng.integers(1, 6))
    values = [rng.random(rng.integers(1, 6)) for _ in range(groups)]
    costs = [rng.integers(-3, 12, len(value)).astype(float) for value in values]
    low, high = sum(cost.min() for cost in costs), sum(cost.max() for cost in costs)
    capacity = float(np.round(low + rng.random() * (high - low)))
    picks = knapsack.solve(values, costs, capacity, buckets=max(1, int(capacity - low)))
    every = itertools.product(*(range(len(value)) for value in values))
    fits = [p for p in every if sum(c[i] for c, i in zip(costs, p, strict=True)) <= capacity]
    best = max(sum(v[i] for v, i in zip(values, p, strict=True)) for p in fits)
    assert sum(c[i] for c, i in zip(costs, picks, strict=True)) <= capacity
    assert sum(v[i] for v, i in zip(values, picks, strict=True)) == pytest.approx(best)


def test_the_knapsack_takes_the_cheapest_where_nothing_fits() -> None:
    values, costs = [np.array([1.0, 9.0])] * 2, [np.array([2.0, 1.0]), np.array([5.0, 8.0])]
    assert knapsack.solve(values, costs, 0.0) == [1, 0]
    assert knapsack.solve([], [], 1.0) == []
