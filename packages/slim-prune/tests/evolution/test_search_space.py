"""Every point that the space gives away meets every bound, whatever the costs are; and it is full where costs grow."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search_hand import Hand, macs, params

from slim_core.errors import SlimError
from slim_prune.allocation.uniform import uniform
from slim_prune.evolution.space import Space


def aligned(counts) -> float:
    """A device that computes in tiles of 32 channels: long plateaus."""
    return sum(-(-n // 32) * 32 for n in counts.values())


def jagged(counts) -> float:
    """Odd multiples of 8 cost twice: more channels may cost less."""
    return sum(n * (2 if n % 16 else 1) for n in counts.values())


def chaotic(counts) -> float:
    """Nothing is to be relied on, but that the smallest choice is cheap."""
    return sum(counts.values()) / 1e3 + (zlib.crc32(repr(sorted(counts.values())).encode()) % 1000) / 1e3


COSTS = {"macs": macs, "params": params, "aligned": aligned, "jagged": jagged, "chaotic": chaotic}
MONOTONE = ("macs", "params", "aligned")


def problems(names):
    return st.builds(
        lambda units, bounds: Hand(units, {name: COSTS[name] for name in bounds}, bounds),
        st.lists(st.sampled_from([16, 24, 40, 64]), min_size=1, max_size=5),
        st.dictionaries(st.sampled_from(names), st.floats(0.3, 0.95), min_size=1, max_size=3),
    )


def grown(space, point, at):
    return (*point[:at], point[at] + 1, *point[at + 1 :])


@settings(max_examples=60, deadline=None)
@given(problems(tuple(COSTS)), st.integers(0, 2**32 - 1))
def test_no_point_breaks_a_bound_whatever_the_costs(problem, seed) -> None:
    space, rng = Space(problem), np.random.default_rng(seed)
    smallest = tuple(0 for _ in space.free)
    given_away = [space.draw(rng) for _ in range(5)]
    starts = [point for point in given_away if point is not None] or [smallest]
    for _ in range(15):
        point = space.mutate(starts[int(rng.integers(len(starts)))], rng)
        given_away.append(point)
        starts += [point] if point is not None else []
    given_away.append(space.repair(space.full, rng))
    for point in given_away:
        if point is not None:
            costs = problem.costs(space.counts(point))
            assert all(costs[name] <= limit * (1 + 1e-9) for name, limit in problem.limits.items())
    if any(name in MONOTONE for name in problem.limits) and problem.meets(space.counts(smallest)):
        assert any(point is not None for point in given_away)


@settings(max_examples=60, deadline=None)
@given(problems(MONOTONE), st.integers(0, 2**32 - 1))
def test_where_costs_grow_no_single_group_could_take_another_step(problem, seed) -> None:
    space, rng = Space(problem), np.random.default_rng(seed)
    first = space.draw(rng)
    if first is None:
        assert not problem.meets(space.counts(tuple(0 for _ in space.free)))
        return
    for point in (first, space.mutate(first, rng), space.project(rng.uniform(0.1, 1, len(first)))):
        assert point is not None
        for at in range(len(point)):
            assert point[at] == space.full[at] or not space.meets(grown(space, point, at))


def test_equal_wishes_give_what_uniform_gives_up_to_the_last_step() -> None:
    problem = Hand([64, 32, 64], {"macs": macs}, {"macs": 0.5})
    space = Space(problem)
    point = space.project([1.0, 1.0, 1.0])
    steps = [abs(a - b) for a, b in zip(point, space.point(uniform(problem)), strict=True)]
    assert max(steps) <= 1


def test_the_proportions_of_a_wish_are_kept_as_nearly_as_the_grid_allows() -> None:
    problem = Hand([160, 160, 160], {"params": lambda counts: sum(counts.values())}, {"params": 0.5})
    space = Space(problem)
    assert space.counts(space.project([1.0, 2.0, 3.0])) == {"g0": 40, "g1": 80, "g2": 120}


def test_points_and_counts_are_two_names_of_one_thing() -> None:
    space = Space(Hand([16, 40, 24], {"params": params}, {"params": 0.5}))
    for point in [(0, 0, 0), (1, 4, 2), (0, 3, 1)]:
        assert space.point(space.counts(point)) == point
    with pytest.raises(SlimError, match="9 units are not a permitted count"):
        space.point({"g0": 9, "g1": 8, "g2": 8})


def test_groups_with_a_ratio_that_the_user_fixed_stay_as_they_are() -> None:
    problem = Hand([64, 64, 64], {"params": params}, {"params": 0.6}, ratios={"g1": 0.75})
    space = Space(problem)
    rng = np.random.default_rng(0)
    assert len(space.full) == 2
    assert {space.counts(space.draw(rng))["g1"] for _ in range(20)} == {48}


def test_a_mutation_changes_one_or_two_groups_beyond_what_the_budget_asks() -> None:
    """Without a bound that binds, a mutation is exactly its moves; and every group is moved in the long run."""
    problem = Hand([64] * 6, {"params": lambda counts: 1.0 + 0 * len(counts)}, {"params": 1.0})
    problem.limits = {"params": 10.0}
    space, rng = Space(problem), np.random.default_rng(1)
    space._grow = lambda point, at: False  # leave out the filling
    moved = []
    for _ in range(300):
        start = (3,) * 6
        point = space.mutate(start, rng)
        moved.append([at for at in range(6) if point[at] != start[at]])
    assert {len(groups) for groups in moved} == {1, 2}
    assert {at for groups in moved for at in groups} == set(range(6))
