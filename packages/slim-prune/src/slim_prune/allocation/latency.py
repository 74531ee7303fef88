"""The most importance within a budget of milliseconds (or of any other cost): a knapsack over tables of costs.

What a group costs at every count that it may keep is asked of the cost model itself, so that the staircases of real
runtimes are seen; multiply-accumulates stand for nothing here. The tables hold while the other groups stay as they are.
They are therefore made anew around each solution, and a solution counts only with the cost that it has as a whole.

As in Shen et al. 2022, "Structural Pruning via Latency-Saliency Knapsack" (HALP), arXiv:2210.06659, with true costs of
whole choices in place of a sum over layers. Not here: the knapsack itself (``knapsack.py``), predicting time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from slim_core.errors import SlimError
from slim_prune.allocation import knapsack
from slim_prune.allocation.curves import Curves, worth_of_curves
from slim_prune.allocation.fill import TRIPLES, WHOLE, Moves, close_gap, every, grow, moves_from, pairs_of, triples
from slim_prune.allocation.problem import Choice, Problem
from slim_prune.allocation.uniform import uniform
from slim_prune.allocation.values import Scores, capped, kept_worth, log_share
from slim_prune.context import Context

_SWEEPS = 12  # tables are made anew at most so often
_HALVINGS = 8  # of the capacity, for each set of tables
_TABLE = 4000  # costs worked out for one set of tables, at most
_REACHES = (10**9, 8, 3, 1)  # steps that a group may go away from where the tables were made
_CHECKS = 200  # trades between two groups that are tried for one improvement
_OFF = 0.01  # what changes do together may cost so much less than the sum of what each does
_TINY = 1e-12
#: What may be given away of the objective to come within one percent of the limit: time that nobody uses helps nobody.
_PRICE = 0.02


def within_latency(
    problem: Problem,
    context: Context,
    *,
    objective: str = "product",
    normalize: str = "sum",
    max_pruned: float = 0.9,
    curves: Curves | None = None,
) -> dict[str, int]:
    """Return the kept units per group: the most kept importance within every bound.

    Args:
        problem: groups and bounds, of which at least one should be a time (``latency:<device>``).
        context: where scores come from.
        objective: what is made large: the ``product`` over all groups of the shares of importance that they keep, which
            empties no layer for the sake of the others, or the ``sum`` of kept importance.
        normalize: for ``sum``, what a group's scores are divided by so that groups compare: ``sum`` (the share that is
            kept), ``mean``, ``max``, ``l2`` or ``none``.
        max_pruned: the largest share of its units that a group may lose, so that no layer collapses.
        curves: sensitivity curves instead of importance: group name -> {kept units: loss}, or the file that holds them;
            the sum of losses is then made small.

    Raises:
        BudgetError: the bounds cannot be met; says what is reachable.
    """
    if problem.meets(problem.at(1.0)):
        return problem.at(1.0)
    problem = capped(problem, max_pruned)
    if curves is not None:
        worth = worth_of_curves(problem.free, curves)
    elif objective == "product":
        worth = {choice.name: log_share(choice, context) for choice in problem.free}
    elif objective == "sum":
        worth = {choice.name: kept_worth(choice, context, normalize) for choice in problem.free}
    else:
        raise SlimError(f"unknown objective {objective!r}", hint="one of product, sum; or give curves")
    with context.progress.track("choosing channels within the budget"):
        best = search(problem, worth, uniform(problem))
    filled = close_gap(problem, best, lambda choice, count: _of(worth, choice, count))
    lost = _total(worth, best) - _total(worth, filled)
    scale = 1.0 if curves is None and objective == "product" else abs(_total(worth, problem.at(1.0))) or 1.0
    return filled if lost <= _PRICE * scale else best


def search(
    problem: Problem, worth: Mapping[str, Scores], start: Mapping[str, int], *, whole: int = WHOLE
) -> dict[str, int]:
    """Return the choice of the largest worth within the bounds that is found.

    Args:
        problem: the problem; its smallest choice meets every bound.
        worth: of each group that is decided about, by kept units.
        start: a choice that meets every bound.
        whole: spaces of at most so many choices are searched whole, which is exact.
    """
    if problem.space <= whole:
        return max(
            (counts for counts in every(problem) if problem.meets(counts)),
            key=lambda counts: (_total(worth, counts), -problem.tightness(counts)),
        )

    def first(choice: Choice, now: int, then: int) -> float:
        return float(worth[choice.name][then] - worth[choice.name][now])

    best = grow(problem, start, first)
    for centre in (problem.at(1.0), problem.at(0.0)):  # far from the budget on either side, tables err the other way
        best = grow(problem, _better_by_tables(problem, worth, best, _REACHES[0], centre) or best, first)
    for reach in _REACHES:
        for _ in range(_SWEEPS):
            found = _better_by_tables(problem, worth, best, reach)
            if found is None:
                break
            best = grow(problem, found, first)
    for _ in range(_SWEEPS):
        found = _better_by_trade(problem, worth, best) or _better_by_regrowth(problem, worth, best, first)
        if found is None:
            break
        best = grow(problem, found, first)
    return best


@dataclass(frozen=True, slots=True)
class Tables:
    """What each group alone would change, for each count that it may go to.

    Args:
        names: the groups.
        counts: of each group, the counts.
        worth: of each group, what these are worth: ``(counts,)``.
        loads: of each group, the change of the cost over its limit, by bound: ``(counts, bounds)``.
    """

    names: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    worth: tuple[Scores, ...]
    loads: tuple[NDArray[np.float64], ...]


def tables_around(problem: Problem, worth: Mapping[str, Scores], at: Mapping[str, int], reach: int) -> Tables:
    """Return the tables of all groups, every other group staying as in ``at``."""
    free = problem.free
    share = max(2, _TABLE // max(1, len(free)))
    start = problem.loads(at)
    counts = tuple(_nearby(choice, at[choice.name], reach, share) for choice in free)
    problem.work_out({**at, c.name: count} for c, options in zip(free, counts, strict=True) for count in options)
    return Tables(
        tuple(choice.name for choice in free),
        counts,
        tuple(worth[choice.name][list(options)] for choice, options in zip(free, counts, strict=True)),
        tuple(
            np.array([problem.loads({**at, choice.name: count}) - start for count in options])
            for choice, options in zip(free, counts, strict=True)
        ),
    )


def _better_by_tables(
    problem: Problem,
    worth: Mapping[str, Scores],
    best_so_far: Mapping[str, int],
    reach: int,
    centre: Mapping[str, int] | None = None,
) -> dict[str, int] | None:
    """Solve knapsacks over the tables around a centre; return the best answer that is truly within the bounds.

    Where an answer costs more than its tables say, the capacity is lowered by halves until it fits, and raised where it
    costs less. ``None`` when nothing is worth more than ``best_so_far``, which is the centre unless one is given.
    """
    at = best_so_far if centre is None else centre
    tables = tables_around(problem, worth, at, reach)
    if not tables.names:
        return None
    loads = problem.loads(at)
    best, most = None, _total(worth, best_so_far) + _TINY
    for weights in _mixtures(len(loads)):
        costs = [table @ weights for table in tables.loads]
        room = float(weights @ (1.0 - loads))
        low, high = room - 0.5, room + 0.5  # what tables say is off by less than half of the limit
        capacity = room
        for _ in range(_HALVINGS):
            picks = knapsack.solve(tables.worth, costs, capacity)
            trial = dict(at)
            for name, options, pick in zip(tables.names, tables.counts, picks, strict=True):
                trial[name] = options[pick]
            if problem.meets(trial):
                if (value := _total(worth, trial)) > most:
                    best, most = trial, value
                low = capacity
            else:
                high = capacity
            capacity = (low + high) / 2
    return best


def _better_by_trade(problem: Problem, worth: Mapping[str, Scores], at: Mapping[str, int]) -> dict[str, int] | None:
    """Return a better choice that differs in two or three groups by a few steps, or ``None``."""
    moves = moves_from(problem, at, lambda choice, count: _of(worth, choice, count))
    loads = problem.loads(at)
    for picks in islice(_gains(moves, loads), _CHECKS):
        trial = {**at, **dict(moves.changes[index] for index in picks)}
        if problem.meets(trial):
            return trial
    return None


def _better_by_regrowth(
    problem: Problem, worth: Mapping[str, Scores], at: Mapping[str, int], first: Callable[[Choice, int, int], float]
) -> dict[str, int] | None:
    """Lower one group, grow the others into the room with their true costs, and return the best outcome, if better.

    This finds what tables cannot promise: steps that become cheap because another group shrank.
    """
    moves = moves_from(problem, at, lambda choice, count: _of(worth, choice, count), (1, 2, 4))
    loads = {
        name: float(load.max())
        for (name, count), load in zip(moves.changes, moves.loads, strict=True)
        if count > at[name]
    }

    def first_per_load(choice: Choice, now: int, then: int) -> float:
        return first(choice, now, then) / max(loads.get(choice.name, 1.0), _TINY)

    best, most = None, _total(worth, at) + _TINY
    for name, count in moves.changes:
        if count > at[name]:
            continue
        for order in (first, first_per_load):
            trial = grow(problem, {**at, name: count}, order, held=(name,))
            if (value := _total(worth, trial)) > most:
                best, most = trial, value
    return best


def _gains(moves: Moves, loads: NDArray[np.float64]) -> Iterator[tuple[int, ...]]:
    """Yield pairs and triples of moves that promise more worth within the bounds, the largest gain first."""
    pairs = pairs_of(moves.groups)
    sets = [pairs, triples(moves.groups, pairs)] if len(moves.changes) <= TRIPLES else [pairs]
    promising: list[tuple[float, tuple[int, ...]]] = []
    for picks in sets:
        if not len(picks):
            continue
        gain = moves.worth[picks].sum(1)
        expected = (loads + moves.loads[picks].sum(1)).max(1)
        good = np.flatnonzero((gain > _TINY) & (expected <= 1.0 + _OFF))
        good = good[np.argsort(-gain[good], kind="stable")[:_CHECKS]]
        promising += [(-gain[index], tuple(picks[index].tolist())) for index in good]
    yield from (picked for _, picked in sorted(promising))


def _mixtures(bounds: int) -> Sequence[NDArray[np.float64]]:
    """Return weights for adding the costs of several bounds up: one bound alone, and mixtures of all."""
    if bounds == 1:
        return [np.ones(1)]
    alone = list(np.eye(bounds))
    mixed = [0.25 * unit + 0.75 / bounds for unit in alone]
    return [np.full(bounds, 1.0 / bounds), *mixed, *(0.7 * unit + 0.3 / bounds for unit in alone), *alone]


def _nearby(choice: Choice, now: int, reach: int, share: int) -> tuple[int, ...]:
    """Return the counts at most ``reach`` steps away from ``now``: all of them, or ``share`` evenly spread ones."""
    place = choice.counts.index(now)
    options = choice.counts[max(0, place - reach) : place + reach + 1]
    if len(options) <= share:
        return options
    spread = np.unique(np.linspace(0, len(options) - 1, share).round().astype(int))
    return tuple(sorted({*(options[index] for index in spread), now}))


def _of(worth: Mapping[str, Scores], choice: Choice, count: int) -> float:
    return float(worth[choice.name][count]) if choice.name in worth else 0.0


def _total(worth: Mapping[str, Scores], counts: Mapping[str, int]) -> float:
    return float(sum(values[counts[name]] for name, values in worth.items()))
