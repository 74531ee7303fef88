"""What hurts least: curves are measured for every group, and the budget is met with the smallest sum of drops.

As in Li et al. 2017, "Pruning Filters for Efficient ConvNets", arXiv:1608.08710, layers that lose little give most;
here over whole channel groups, and solved under the budget instead of by a threshold that someone tunes. Not here:
measuring (``slim_prune.sensitivity``), the search itself (``latency.py``).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from slim_prune.allocation.problem import Problem
from slim_prune.allocation.values import capped
from slim_prune.context import Context
from slim_prune.errors import PlanError
from slim_prune.sensitivity.analysis import MEMORY, SILENCE, curves_of, model_identity
from slim_prune.sensitivity.choose import by_budget, by_drop
from slim_prune.sensitivity.curves import Curves
from slim_prune.sensitivity.stopping import EarlyStop


def sensitivity(
    problem: Problem,
    context: Context,
    *,
    metric: str = "loss",
    points: int = 8,
    samples: int | None = None,
    early_stop: float | Mapping[str, Any] | EarlyStop | None = None,
    max_drop: float | None = None,
    max_pruned: float = 0.9,
    curves: Curves | str | os.PathLike[str] | None = None,
    workers: int = 0,
    timeout: float = SILENCE,
    memory: int = MEMORY,
) -> dict[str, int]:
    """Return the kept units per group: the smallest sum of drops within every bound.

    Drops are measured one group at a time and added up, which is an approximation: several groups together lose more
    than the sum. The loss adds up better than a share of right answers, which stays the same until it breaks.

    Args:
        problem: groups and bounds.
        context: model, task, validation data and importance.
        metric: what is measured: the task's loss, or any of its metrics.
        points: how many counts are measured for each group.
        samples: measure on the first so many validation samples only.
        early_stop: stop a point when its confidence interval decides: the tolerance, or settings.
        max_drop: no group may lose more than this by itself; without a budget, it alone decides.
        max_pruned: the largest share of its units that a group may lose, so that no layer collapses.
        curves: curves that were measured before, or their file; nothing is measured then.
        workers: processes that share the measuring; 0: this one.
        timeout: seconds without any sign of a worker after which it is given up on.
        memory: bytes up to which data, and values between layers, are kept while measuring.

    Raises:
        BudgetError: the bounds cannot be met; says what is reachable.
        PlanError: task or validation data are missing, or the curves are another model's.
    """
    if problem.bounds and problem.meets(problem.at(1.0)):
        return problem.at(1.0)
    problem = capped(problem, max_pruned)
    if curves is None:
        found = curves_of(
            context,
            {choice.name: choice.grid for choice in problem.free},
            metric=metric,
            points=points,
            samples=samples,
            stop=_stop(early_stop),
            folder=context.folder,
            workers=workers,
            timeout=timeout,
            memory=memory,
            by_identity=True,
        )
    else:
        found = curves if isinstance(curves, Curves) else Curves.load(curves)
        if found.identity.get("model") != model_identity(context.model):
            raise PlanError(
                "the curves were measured on another model, or on this one with other weights",
                where="curves" if isinstance(curves, Curves) else os.fspath(curves),
                hint="measure the model that is pruned: slim_prune.sensitivity, or `slim prune sensitivity`",
            )
    for note in found.notes:
        context.note(note)
    context.details["curves"] = [*context.details.get("curves", []), *found.charts()]
    if not problem.bounds and max_drop is not None:
        return by_drop(found, max_drop, problem)
    return by_budget(found, problem, max_drop=max_drop)


def _stop(early_stop: float | Mapping[str, Any] | EarlyStop | None) -> EarlyStop | None:
    if early_stop is None or isinstance(early_stop, EarlyStop):
        return early_stop
    return EarlyStop(**early_stop) if isinstance(early_stop, Mapping) else EarlyStop(float(early_stop))
