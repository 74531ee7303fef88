"""Knapsacks and chains against exhaustive search."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slim_quant.mixed.chain import at, chain, first_that_passes
from slim_quant.mixed.knapsack import solve

groups = st.lists(
    st.lists(st.tuples(st.integers(0, 30), st.integers(1, 40)), min_size=1, max_size=4), min_size=1, max_size=5
)


def exhaustive(losses: list[list[float]], costs: list[list[float]], capacity: float) -> tuple[float, float] | None:
    best = None
    for picks in product(*(range(len(group)) for group in losses)):
        cost = sum(group[pick] for group, pick in zip(costs, picks, strict=True))
        loss = sum(group[pick] for group, pick in zip(losses, picks, strict=True))
        if cost <= capacity and (best is None or (loss, cost) < best):
            best = (loss, cost)
    return best


@given(groups, st.integers(0, 200))
@settings(max_examples=200, deadline=None)
def test_the_knapsack_is_exact(table: list[list[tuple[int, int]]], capacity: int) -> None:
    losses = [[loss / 8 for loss, _ in group] for group in table]
    costs = [[float(cost) for _, cost in group] for group in table]
    picks = solve(losses, costs, capacity)
    expected = exhaustive(losses, costs, capacity)
    if expected is None:
        assert picks is None
        return
    assert picks is not None
    loss = sum(group[pick] for group, pick in zip(losses, picks, strict=True))
    cost = sum(group[pick] for group, pick in zip(costs, picks, strict=True))
    assert (loss, cost) == expected


@given(groups, st.integers(0, 200), st.integers(0, 50))
@settings(max_examples=100, deadline=None)
def test_more_room_never_loses_more_also_when_answers_are_thinned(
    table: list[list[tuple[int, int]]], capacity: int, more: int
) -> None:
    losses = [[float(loss) for loss, _ in group] for group in table]
    costs = [[float(cost) for _, cost in group] for group in table]

    def loss(room: int, most: int) -> float:
        picks = solve(losses, costs, room, most=most)
        return float("inf") if picks is None else sum(g[p] for g, p in zip(losses, picks, strict=True))

    for most in (50_000, 5):
        assert loss(capacity + more, most) <= loss(capacity, most)


def test_many_groups_are_solved_within_a_thousandth() -> None:
    losses = [[float(2 ** (place % 7) * step) for step in (4, 1, 0)] for place in range(40)]
    costs = [[float(100 + 7 * place % 13), 200.0 + place, 400.0 + 3 * place] for place in range(40)]
    exact, near = solve(losses, costs, 9000.0), solve(losses, costs, 9000.0, most=4000)
    assert exact is not None
    assert near is not None
    one, other = (sum(g[p] for g, p in zip(losses, picks, strict=True)) for picks in (exact, near))
    assert one <= other <= 1.02 * one
    assert sum(g[p] for g, p in zip(costs, near, strict=True)) <= 9000


def test_figures_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        solve([[1.0, float("nan")]], [[1.0, 2.0]], 3)


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 50), st.integers(1, 50)), min_size=2, max_size=4), min_size=1, max_size=4
    )
)
@settings(max_examples=100, deadline=None)
def test_every_model_of_the_chain_is_the_best_for_its_cost(table: list[list[tuple[int, int]]]) -> None:
    """Greedy upgrades along convex hulls are exact at the costs that they reach."""
    losses = {str(n): {str(i): float(loss) for i, (loss, _) in enumerate(group)} for n, group in enumerate(table)}
    costs = {str(n): {str(i): float(cost) for i, (_, cost) in enumerate(group)} for n, group in enumerate(table)}
    start, steps = chain(losses, costs)
    rows = [[list(row.values()) for row in part.values()] for part in (losses, costs)]
    before = None
    for position in range(len(steps) + 1):
        found = at(start, steps, position)
        loss = sum(losses[unit][choice] for unit, choice in found.items())
        cost = sum(costs[unit][choice] for unit, choice in found.items())
        assert exhaustive(rows[0], rows[1], cost)[0] == loss
        assert before is None or (cost > before[0] and loss < before[1])
        before = cost, loss


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=200, deadline=None)
def test_a_looser_goal_never_asks_for_more(drops: list[float], one: float, other: float) -> None:
    strict, loose = sorted((one, other))
    last = len(drops)

    def found(goal: float) -> int:
        return first_that_passes(last, lambda position: drops[position] <= goal)

    assert found(loose) <= found(strict)
    place = found(strict)
    assert place == last or drops[place] <= strict


@given(st.integers(0, 60), st.integers(0, 60))
def test_a_threshold_is_found_with_few_questions(last: int, threshold: int) -> None:
    asked: list[int] = []

    def passes(position: int) -> bool:
        asked.append(position)
        return position >= threshold

    assert first_that_passes(last, passes) == min(threshold, last)
    assert len(asked) <= 14
    assert len(set(asked)) == len(asked)
