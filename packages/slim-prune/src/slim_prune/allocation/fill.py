"""Closing the gap below a budget: grow single groups, then trade steps between groups, until the budget is used up.

Counts are multiples, so that a budget is rarely met on the spot. Not here: the choice that the gap is closed from.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slim_prune.allocation.problem import Choice, Problem

#: A choice is near its budget when the cost of the tightest bound is at least this share of the limit.
NEAR = 0.99
#: Spaces of at most so many choices are searched whole before a gap is left open.
WHOLE = 1500

#: What a group that keeps so many units is worth; sums over groups are compared.
Worth = Callable[[Choice, int], float]

#: How many steps up and down a group goes in the moves that are combined.
STEPS = (1, 2, 3, 5, 8, 12)

#: Of at most so many moves, also three at a time are combined.
TRIPLES = 100

_CHECKS = 300  # combinations that are tried in one round
_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Moves:
    """Single changes of a choice with what each does by itself.

    Args:
        changes: group and new count.
        groups: number of the group of each: ``(moves,)``.
        loads: change of the cost over its limit, by bound: ``(moves, bounds)``.
        worth: change of the worth: ``(moves,)``.
        sizes: how large a share of the group's units changes: ``(moves,)``.
    """

    changes: tuple[tuple[str, int], ...]
    groups: NDArray[np.int64]
    loads: NDArray[np.float64]
    worth: NDArray[np.float64]
    sizes: NDArray[np.float64]


def grow(
    problem: Problem,
    counts: Mapping[str, int],
    first: Callable[[Choice, int, int], float],
    *,
    held: Container[str] = (),
) -> dict[str, int]:
    """Grow single groups by a step while the bounds hold; the step with the largest ``first(choice, now, then)`` first.

    Costs only grow, so that a group that did not fit once never fits later: it is dropped at its first failure. Groups
    in ``held`` stay.
    """
    grown = dict(counts)
    open_ = {choice.name: choice for choice in problem.free if choice.name not in held}
    steps = {name: _next(choice, grown[name]) for name, choice in open_.items()}
    while open_ := {name: choice for name, choice in open_.items() if steps[name] is not None}:
        name = max(open_, key=lambda name: (first(open_[name], grown[name], steps[name] or 0), name))
        trial = {**grown, name: steps[name] or 0}
        if problem.meets(trial):
            grown = trial
            steps[name] = _next(open_[name], grown[name])
        else:
            steps[name] = None
    return grown


def close_gap(problem: Problem, counts: Mapping[str, int], worth: Worth, *, whole: int = WHOLE) -> dict[str, int]:
    """Return a choice whose tightest bound is at least :data:`NEAR` its limit, where one is found.

    Of the choices near enough, the one of the largest worth is taken: steps up and down of one, two or three groups are
    combined by what each costs alone, and the promising combinations are worked out. When none is near enough, the
    search goes on from the nearest. A space of at most ``whole`` choices is searched whole before a gap is left open.

    Args:
        problem: the problem.
        counts: a choice that meets every bound.
        worth: what is kept of each group.
        whole: see there.
    """
    best = dict(counts)
    for _ in range(_ROUNDS):
        if problem.tightness(best) >= NEAR:
            return best
        found = _combined(problem, best, worth)
        if found is None:
            break
        best = found
    if problem.tightness(best) < NEAR and problem.space <= whole:
        return best_of(problem, every(problem), worth) or best
    return best


def every(problem: Problem) -> Iterable[dict[str, int]]:
    """Yield every permitted choice."""
    names = [choice.name for choice in problem.choices]
    for counts in itertools.product(*(choice.counts for choice in problem.choices)):
        yield dict(zip(names, counts, strict=True))


def best_of(problem: Problem, candidates: Iterable[dict[str, int]], worth: Worth) -> dict[str, int] | None:
    """Return the candidate of the largest worth among those near the budget; when none is, the nearest below it."""
    found: tuple[float, float] | None = None
    best: dict[str, int] | None = None
    for counts in candidates:
        if not problem.meets(counts):
            continue
        tightness = problem.tightness(counts)
        key = (min(tightness, NEAR), total(problem, counts, worth))
        if found is None or key > found:
            found, best = key, counts
    return best


def total(problem: Problem, counts: Mapping[str, int], worth: Worth) -> float:
    """Return what a choice is worth."""
    return sum(worth(choice, counts[choice.name]) for choice in problem.choices)


def moves_from(problem: Problem, counts: Mapping[str, int], worth: Worth, steps: Sequence[int] = STEPS) -> Moves:
    """Return the changes of one group by so many ``steps`` up or down, each worked out."""
    start = problem.loads(counts)
    found: list[tuple[int, Choice, int]] = []
    for number, choice in enumerate(problem.free):
        at = choice.counts.index(counts[choice.name])
        places = sorted({at + step * sign for step in steps for sign in (-1, 1)})
        found += [(number, choice, choice.counts[place]) for place in places if 0 <= place < len(choice.counts)]
    problem.work_out({**counts, choice.name: count} for _, choice, count in found)
    loads = [problem.loads({**counts, choice.name: count}) - start for _, choice, count in found]
    return Moves(
        changes=tuple((choice.name, count) for _, choice, count in found),
        groups=np.array([number for number, _, _ in found], dtype=np.int64),
        loads=np.array(loads).reshape(len(found), len(start)),
        worth=np.array([worth(c, count) - worth(c, counts[c.name]) for _, c, count in found], dtype=np.float64),
        sizes=np.array([abs(count - counts[c.name]) / c.group.units for _, c, count in found], dtype=np.float64),
    )


def _combined(problem: Problem, counts: Mapping[str, int], worth: Worth) -> dict[str, int] | None:
    """Return a choice near the budget, else the tightest one found, or ``None`` when nothing is tighter."""
    moves = moves_from(problem, counts, worth)
    if not moves.changes:
        return None
    start = problem.loads(counts)
    tightest, best = float(start.max()), None
    for picked in _promising(moves, start):
        trial = {**counts, **dict(moves.changes[index] for index in picked)}
        tightness = problem.tightness(trial)
        if tightness > tightest and problem.meets(trial):
            tightest, best = tightness, trial
            if tightness >= NEAR:
                break
    return best


def _promising(moves: Moves, start: NDArray[np.float64]) -> list[tuple[int, ...]]:
    """Return combinations of moves of different groups that should come near the budget, the best worth first.

    Behind them stand those that come nearest otherwise: what moves do together is not quite the sum of what each does.
    """
    sets: list[NDArray[np.int64]] = [np.arange(len(moves.changes))[:, None]]
    sets.append(pairs_of(moves.groups))
    if len(moves.changes) <= TRIPLES:
        sets.append(triples(moves.groups, sets[1]))
    near: list[tuple[tuple[float, float], tuple[int, ...]]] = []
    others: list[tuple[float, tuple[int, ...]]] = []
    for picks in sets:
        if not len(picks):
            continue
        expected = (start + moves.loads[picks].sum(1)).max(1)  # (combinations,)
        worth = moves.worth[picks].sum(1)
        inside = np.flatnonzero((expected >= NEAR) & (expected <= 1.0))
        change = moves.sizes[picks].sum(1)  # of equal worth, what changes least
        inside = inside[np.lexsort((change[inside], -worth[inside].round(12)))[:_CHECKS]]
        near += [((-worth[index].round(12), change[index]), tuple(picks[index].tolist())) for index in inside]
        middle = (NEAR + 1.0) / 2
        outside = np.argsort(np.abs(expected - middle), kind="stable")[: _CHECKS // 3]
        others += [(abs(expected[index] - middle), tuple(picks[index].tolist())) for index in outside]
    ordered = [picked for _, picked in sorted(near)[:_CHECKS]] + [
        picked for _, picked in sorted(others)[: _CHECKS // 3]
    ]
    return list(dict.fromkeys(ordered))


def pairs_of(groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return all pairs of moves of different groups: ``(pairs, 2)``."""
    first, second = np.triu_indices(len(groups), 1)
    apart = groups[first] != groups[second]
    return np.stack([first[apart], second[apart]], 1)


def triples(groups: NDArray[np.int64], pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return all triples of moves of different groups: ``(triples, 3)``."""
    third = np.arange(len(groups))
    first = np.repeat(pairs, len(third), 0)  # (pairs * moves, 2)
    last = np.tile(third, len(pairs))
    allowed = (last > first[:, 1]) & (groups[last] != groups[first[:, 0]]) & (groups[last] != groups[first[:, 1]])
    return np.concatenate([first[allowed], last[allowed, None]], 1)


def _next(choice: Choice, count: int) -> int | None:
    at = choice.counts.index(count) + 1
    return choice.counts[at] if at < len(choice.counts) else None
