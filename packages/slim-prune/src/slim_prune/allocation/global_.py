"""One ranking over the units of all groups: the least important go first, wherever they are.

As in Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning", arXiv:1906.10771, and the global mode
of Fang et al. 2023, "DepGraph", arXiv:2301.12900, but in steps that rounding permits and against real budgets. Not
here: the scores (``slim_prune.importance``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from slim_core.errors import SlimError
from slim_prune.allocation.fill import close_gap, grow
from slim_prune.allocation.problem import Choice, Problem
from slim_prune.allocation.values import Scores, capped, descending, kept_worth
from slim_prune.context import Context

_ROUNDS = 4  # rankings per cost are made anew so often, at the choice that the last one led to


@dataclass(frozen=True, slots=True)
class Block:
    """The units that a group loses in one step of its grid, and their mean score."""

    name: str
    low: int
    high: int
    share: float
    score: float


def rank_globally(
    problem: Problem,
    context: Context,
    *,
    normalize: str = "mean",
    per: str | None = None,
    max_pruned: float = 0.9,
) -> dict[str, int]:
    """Return the kept units per group: one threshold over the normalized importance of all units.

    Units go in the steps that the grids permit, the step with the lowest mean score first, until every bound is met;
    then the budget is used up by putting the best steps back.

    Args:
        problem: groups and bounds.
        context: where scores come from.
        normalize: what a group's scores are divided by so that groups compare: ``mean``, ``max``, ``sum``, ``l2`` or
            ``none``.
        per: rank by importance per cost: a cost model's name (``"macs"``), or ``"budget"`` for the bounded costs,
            each over its limit. ``None``: by importance alone.
        max_pruned: the largest share of its units that a group may lose, so that no layer collapses.

    Raises:
        BudgetError: the bounds cannot be met; says what is reachable.
    """
    if problem.meets(problem.at(1.0)):
        return problem.at(1.0)
    problem = capped(problem, max_pruned)
    scores = {choice.name: descending(choice, context, normalize) for choice in problem.free}
    worth = {choice.name: kept_worth(choice, context, normalize) for choice in problem.free}
    blocks = [block for choice in problem.free for block in _blocks(choice, scores[choice.name])]
    if per is None:
        ranked = _ranked(blocks, {})
        counts = _cut(problem, ranked)
    else:
        counts, ranked = _cut_per_cost(problem, blocks, per)
    order = {(block.name, block.low): place for place, block in enumerate(ranked)}
    counts = grow(problem, counts, lambda choice, now, then: order[choice.name, now])
    return close_gap(
        problem, counts, lambda choice, count: float(worth[choice.name][count]) if choice.name in worth else 0.0
    )


def _blocks(choice: Choice, scores: Scores) -> list[Block]:
    counts = choice.counts
    return [
        Block(choice.name, low, high, high / choice.group.units, float(scores[low:high].mean()))
        for low, high in pairwise(counts)
    ]


def _ranked(blocks: list[Block], costs: Mapping[str, float]) -> list[Block]:
    """Sort blocks so that the first one goes first; of equal ones the one of the group that has kept most."""
    return sorted(blocks, key=lambda b: (b.score / costs.get(b.name, 1.0), -b.share, b.name))


def _cut(problem: Problem, ranked: list[Block]) -> dict[str, int]:
    """Remove as few blocks from the front as meet the bounds: by bisection, because less never costs more."""

    def after(removed: int) -> dict[str, int]:
        counts = problem.at(1.0)
        for block in ranked[:removed]:
            counts[block.name] = min(counts[block.name], block.low)
        return counts

    low, high = 0, len(ranked)
    while low < high:
        middle = (low + high) // 2
        if problem.meets(after(middle)):
            high = middle
        else:
            low = middle + 1
    return after(low)


def _cut_per_cost(problem: Problem, blocks: list[Block], per: str) -> tuple[dict[str, int], list[Block]]:
    """Rank by score per cost. What a unit costs depends on the others, so it is worked out again where that leads."""
    at = problem.at(1.0)
    best: tuple[float, dict[str, int], list[Block]] | None = None
    for _ in range(_ROUNDS):
        ranked = _ranked(blocks, {choice.name: _unit_cost(problem, at, choice, per) for choice in problem.free})
        counts = _cut(problem, ranked)
        kept = sum(block.score * (block.high - block.low) for block in blocks if block.high <= counts[block.name])
        if best is None or kept > best[0]:
            best = (kept, counts, ranked)
        if counts == at:
            break
        at = counts
    assert best is not None  # noqa: S101  there is at least one round
    return best[1], best[2]


def _unit_cost(problem: Problem, at: Mapping[str, int], choice: Choice, per: str) -> float:
    """Return what one unit of a group costs around the choice ``at``, as a share of the limits (or of the original)."""
    scales = problem.limits if per == "budget" else {per: problem.original.get(per, 0.0)}
    if not all(scales.values()):
        known = ", ".join(name for name, value in problem.original.items() if value > 0)
        raise SlimError(
            f"cannot rank per '{per}'", hint=f"per takes 'budget' or a cost that is bounded or reported: {known}"
        )
    now = at[choice.name]
    place = choice.counts.index(now)
    other = choice.counts[place - 1] if place else choice.counts[1]
    costs, others = problem.costs(at), problem.costs({**at, choice.name: other})
    change = sum(abs(costs[name] - others[name]) / scale for name, scale in scales.items())
    return max(change / abs(now - other), 1e-12)
