"""One ranking over the units of all groups: the least important go first, wherever they are.

As in Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning", arXiv:1906.10771, and the global mode
of Fang et al. 2023, "DepGraph", arXiv:2301.12900, but in steps that rounding permits and against real budgets. Not
here: the scores (``slim_prune.importance``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from slim_core.errors import SlimError
from slim_prune.allocation.fill import NEAR, close_gap, grow
from slim_prune.allocation.problem import Choice, Problem
from slim_prune.allocation.values import Scores, capped, descending
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

    Units go in the steps that the grids permit, the step with the lowest mean score first, until every bound is met.
    Where that leaves more than one percent of the budget unused, steps are put back and traded.

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
    blocks = [block for choice in problem.free for block in _blocks(choice, scores[choice.name])]
    ranking = _by_importance(problem, blocks) if per is None else _by_importance_per_cost(problem, blocks, per)
    above = {
        choice.name: np.concatenate([[0.0], np.cumsum(scores[choice.name] - ranking.threshold(choice.name))])
        for choice in problem.free
    }

    def regret(choice: Choice, count: int) -> float:
        """Importance above the threshold: every unit that is on the wrong side of it counts against a choice."""
        return float(above[choice.name][count]) if choice.name in above else 0.0

    counts = close_gap(problem, ranking.counts, regret)
    if problem.tightness(counts) < NEAR:
        order = {(block.name, block.low): place for place, block in enumerate(ranking.blocks)}
        counts = close_gap(problem, grow(problem, counts, lambda c, now, then: order[c.name, now]), regret)
    return counts


@dataclass(frozen=True, slots=True)
class Ranking:
    """Blocks in the order in which they go, and where the budget is met.

    Args:
        blocks: the order.
        removed: how many of them go.
        counts: what is left then.
        costs: of one unit, by group; empty: all alike.
    """

    blocks: list[Block]
    removed: int
    counts: dict[str, int]
    costs: Mapping[str, float]

    def threshold(self, name: str) -> float:
        """Return the score of a group's unit at which it is neither kept nor removed."""
        if self.removed == 0:
            return 0.0
        last = self.blocks[self.removed - 1]
        return last.score / self.costs.get(last.name, 1.0) * self.costs.get(name, 1.0)


def _blocks(choice: Choice, scores: Scores) -> list[Block]:
    counts = choice.counts
    return [
        Block(choice.name, low, high, high / choice.group.units, float(scores[low:high].mean()))
        for low, high in pairwise(counts)
    ]


def _ranked(problem: Problem, blocks: list[Block], costs: Mapping[str, float]) -> Ranking:
    """Sort blocks, and remove as few from the front as meet the bounds: by bisection, as less never costs more.

    Of blocks of one score, the one of the group that has kept most goes first.
    """
    order = sorted(blocks, key=lambda b: (b.score / costs.get(b.name, 1.0), -b.share, b.name))

    def after(removed: int) -> dict[str, int]:
        counts = problem.at(1.0)
        for block in order[:removed]:
            counts[block.name] = min(counts[block.name], block.low)
        return counts

    low, high = 0, len(order)
    while low < high:
        middle = (low + high) // 2
        if problem.meets(after(middle)):
            high = middle
        else:
            low = middle + 1
    return Ranking(order, low, after(low), costs)


def _by_importance(problem: Problem, blocks: list[Block]) -> Ranking:
    return _ranked(problem, blocks, {})


def _by_importance_per_cost(problem: Problem, blocks: list[Block], per: str) -> Ranking:
    """Rank by score per cost. What a unit costs depends on the others, so it is worked out again where that leads."""
    at = problem.at(1.0)
    best: tuple[float, Ranking] | None = None
    for _ in range(_ROUNDS):
        ranking = _ranked(problem, blocks, {c.name: _unit_cost(problem, at, c, per) for c in problem.free})
        counts = ranking.counts
        kept = sum(block.score * (block.high - block.low) for block in blocks if block.high <= counts[block.name])
        if best is None or kept > best[0]:
            best = (kept, ranking)
        if counts == at:
            break
        at = counts
    assert best is not None  # noqa: S101  there is at least one round
    return best[1]


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
