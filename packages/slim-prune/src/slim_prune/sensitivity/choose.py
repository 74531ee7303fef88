"""From curves to how many units each group keeps: by a limit on each drop, or by a budget.

For a budget the sum of the envelopes' drops is made as small as possible within every bound. Costs are those of whole
choices (:class:`slim_prune.allocation.problem.Problem`), because what a layer costs depends on its neighbours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from slim_core.errors import BudgetError
from slim_prune.allocation.problem import Choice, Problem
from slim_prune.errors import PlanError
from slim_prune.sensitivity.envelope import Envelope

if TYPE_CHECKING:
    from collections.abc import Mapping

    from slim_prune.allocation.values import Scores
    from slim_prune.sensitivity.curves import Curves

#: worth of keeping everything of a group, where drops are equal: enough to decide between equals, not more
_EVEN = 1e-6


def by_drop(curves: Curves, max_drop: float, problem: Problem | None = None) -> dict[str, int]:
    """Return the smallest count of each group whose drop is at most ``max_drop``.

    Args:
        curves: the curves.
        max_drop: in the metric's unit.
        problem: the counts that may be chosen; ``None``: those that were measured.

    Raises:
        PlanError: a group of the problem was not measured.
    """
    envelopes = curves.envelope()
    if problem is None:
        return {name: _smallest(envelope, envelope.counts, max_drop) for name, envelope in envelopes.items()}
    chosen = {}
    for choice in problem.choices:
        fixed = choice.ratio is not None or len(choice.counts) < 2
        chosen[choice.name] = choice.at(1.0) if fixed else _smallest(_of(envelopes, choice), choice.counts, max_drop)
    return chosen


def by_budget(curves: Curves, problem: Problem, *, max_drop: float | None = None) -> dict[str, int]:
    """Return the counts with the smallest sum of drops that meet every bound.

    Args:
        curves: the curves.
        problem: groups and bounds.
        max_drop: no group may lose more than this by itself.

    Raises:
        PlanError: a group was not measured.
        BudgetError: the bounds cannot be met; says what is reachable.
    """
    from slim_prune.allocation.latency import search
    from slim_prune.allocation.uniform import uniform

    if problem.meets(problem.at(1.0)):
        return problem.at(1.0)
    problem.require_reachable()
    if max_drop is not None:
        least = by_drop(curves, max_drop, problem)
        if not problem.meets(least):
            tightness = problem.tightness(least)
            raise BudgetError(
                f"the budget cannot be reached while no group loses more than {max_drop:g} of {curves.metric}: "
                f"the smallest such model has {tightness:.2f} times what the budget allows",
                hint="raise max_drop, or leave it out",
            )
        problem = _at_least(problem, least)
    return search(problem, worth_of(curves, problem), uniform(problem))


def worth_of(curves: Curves, problem: Problem) -> dict[str, Scores]:
    """Return what each group that keeps ``n`` units is worth, for each ``n``: the drop, negative; ``(units + 1,)``.

    Where drops are equal, above all at 0, the larger share is worth a trifle more, with falling returns: equals are
    then treated alike instead of one of them being emptied.
    """
    envelopes = curves.envelope()
    largest = max((envelope.drops[0] for envelope in envelopes.values()), default=0.0) or 1.0
    found: dict[str, Scores] = {}
    for choice in problem.free:
        envelope, units = _of(envelopes, choice), choice.group.units
        counts = np.arange(1, units + 1)
        worth = np.array([-envelope(int(count)) for count in counts])
        worth += _EVEN * largest * np.sqrt(counts / units)
        found[choice.name] = np.concatenate([[worth[0]], worth])
    return found


def losses(curves: Curves) -> dict[str, Mapping[int, float]]:
    """Return the envelopes as plain numbers: group name -> {kept units: drop}."""
    return {
        name: dict(zip(envelope.counts, envelope.drops, strict=True)) for name, envelope in curves.envelope().items()
    }


def _smallest(envelope: Envelope, counts: tuple[int, ...], max_drop: float) -> int:
    return next((count for count in counts if envelope(count) <= max_drop), counts[-1])


def _of(envelopes: Mapping[str, Envelope], choice: Choice) -> Envelope:
    envelope = envelopes.get(choice.name)
    if envelope is None:
        raise PlanError(
            f"channel group '{choice.name}' was not measured",
            hint="measure it (a shard may be missing), or exclude it from the plan",
        )
    if envelope.counts[-1] != choice.group.units:
        raise PlanError(
            f"channel group '{choice.name}' has {choice.group.units} units, and {envelope.counts[-1]} were measured",
            hint="the curves are another model's; measure this one",
        )
    return envelope


def _at_least(problem: Problem, least: Mapping[str, int]) -> Problem:
    """Return the problem without the counts below ``least``."""
    import copy
    from dataclasses import replace

    narrowed = copy.copy(problem)
    narrowed.choices = tuple(
        choice
        if choice.ratio is not None
        else replace(
            choice,
            grid=replace(choice.grid, counts=tuple(c for c in choice.grid.counts if c >= least[choice.name])),
        )
        for choice in problem.choices
    )
    return narrowed
