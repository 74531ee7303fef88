"""The same share of every group: found by bisection, then repaired so that it lies close below the budget."""

from __future__ import annotations

from slim_prune.allocation.fill import NEAR, close_gap
from slim_prune.allocation.problem import Choice, Problem
from slim_prune.context import Context

_BISECTIONS = 20


def uniform(problem: Problem, context: Context | None = None) -> dict[str, int]:
    """Return the kept units per group: nearly the same ratio everywhere, within every bound.

    Groups with a ratio that the user fixed keep it. Without bounds the other groups keep everything. Where rounding
    leaves more than one percent of the tightest bound unused, groups leave the common ratio by as little as closes it.

    Raises:
        BudgetError: the bounds cannot be met; says what is reachable.
    """
    if problem.meets(problem.at(1.0)):
        return problem.at(1.0)
    problem.require_reachable()
    ratio, counts = _largest_ratio(problem)

    def evenness(choice: Choice, count: int) -> float:
        return -((count / choice.group.units - ratio) ** 2)

    counts = close_gap(problem, _repair(problem, counts, ratio, steps_above=1), evenness)
    if problem.tightness(counts) < NEAR:
        other = close_gap(problem, _repair(problem, counts, ratio, steps_above=None), evenness)
        counts = max(counts, other, key=problem.tightness)
    return counts


def _largest_ratio(problem: Problem) -> tuple[float, dict[str, int]]:
    """Bisect for a common ratio whose rounded choice meets the bounds, until the next one is a single step away."""
    low, high = 0.0, 1.0
    best, above = problem.at(low), problem.at(high)
    for _ in range(_BISECTIONS):
        if all(
            above[choice.name] in (best[choice.name], choice.grid.up(best[choice.name])) for choice in problem.choices
        ):
            break
        middle = (low + high) / 2
        counts = problem.at(middle)
        if problem.meets(counts):
            low, best = middle, counts
        else:
            high, above = middle, counts
    return low, best


def _repair(problem: Problem, counts: dict[str, int], ratio: float, *, steps_above: int | None) -> dict[str, int]:
    """Grow single groups while the bounds hold, the one furthest below the common ratio first.

    Costs only grow, so a group that did not fit once never fits later: each is dropped at its first failure.
    """
    counts = dict(counts)
    open_ = {choice.name: choice for choice in problem.free}
    while open_:
        choice = min(open_.values(), key=lambda c: (counts[c.name] / c.group.units, c.name))
        more = choice.grid.up(counts[choice.name])
        if more is None or _too_far(choice, more, ratio, steps_above):
            del open_[choice.name]
            continue
        trial = {**counts, choice.name: more}
        if problem.meets(trial):
            counts = trial
        else:
            del open_[choice.name]
    return counts


def _too_far(choice: Choice, count: int, ratio: float, steps_above: int | None) -> bool:
    if steps_above is None:
        return False
    limit = choice.at(ratio)
    for _ in range(steps_above):
        limit = choice.grid.up(limit) or limit
    return count > limit
