"""What the units of a group are worth, made comparable between groups: what rankings over the whole model go by.

Not here: the scores themselves (``slim_prune.importance``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from slim_core.errors import BudgetError, SlimError
from slim_prune.allocation.problem import Choice, Problem
from slim_prune.context import Context

Scores = NDArray[np.float64]
#: What a unit without importance is taken for, in means of its group.
_LEAST = 1e-3

Normalize = Literal["mean", "max", "sum", "l2", "none"]

_SCALES: Mapping[str, Callable[[Scores], float]] = {
    "mean": lambda scores: float(scores.mean()),
    "max": lambda scores: float(scores.max()),
    "sum": lambda scores: float(scores.sum()),
    "l2": lambda scores: float(np.sqrt(np.square(scores).sum())),
    "none": lambda scores: 1.0,
}


def descending(choice: Choice, context: Context, normalize: str) -> Scores:
    """Return the scores of a group over its scale, highest first: ``(units,)``, none negative.

    Args:
        choice: the group.
        context: where scores come from.
        normalize: the scale: the group's ``mean``, ``max``, ``sum`` or Euclidean norm (``l2``), or ``none``.

    Raises:
        SlimError: there is no such normalization.
    """
    if normalize not in _SCALES:
        raise SlimError(f"unknown normalization {normalize!r}", hint=f"one of {', '.join(_SCALES)}")
    scores = np.sort(np.maximum(context.score(choice.group), 0.0))[::-1]
    scale = _SCALES[normalize](scores)
    if scale <= 0:  # nothing in this group matters by this criterion
        return np.zeros_like(scores)
    return scores / scale


def kept_worth(choice: Choice, context: Context, normalize: str) -> Scores:
    """Return what the best ``n`` units of a group are worth together, for each ``n``: ``(units + 1,)``, growing."""
    return np.concatenate([[0.0], np.cumsum(descending(choice, context, normalize))])


def log_share(choice: Choice, context: Context) -> Scores:
    """Return the logarithm of the share of its importance that a group keeps in its best ``n`` units: ``(units + 1,)``.

    A unit without any importance counts as a thousandth of the mean, so that more units are never worth nothing.
    """
    scores = descending(choice, context, "mean")
    kept = np.cumsum(np.maximum(scores, _LEAST))
    return np.concatenate([[np.log(_LEAST / len(scores))], np.log(kept / kept[-1])])


def capped(problem: Problem, max_pruned: float) -> Problem:
    """Return the problem in which no group loses more than ``max_pruned`` of its units, after checking its bounds.

    Raises:
        BudgetError: the bounds cannot be met; says whether without the cap they could.
        SlimError: ``max_pruned`` is no share.
    """
    if isinstance(max_pruned, bool) or not isinstance(max_pruned, int | float) or not 0 < max_pruned <= 1:
        raise SlimError(
            f"max_pruned is the largest share of a group that may go, in (0, 1], not {max_pruned!r}",
            hint="0.9 keeps at least a tenth of every group; 1 sets no cap",
        )
    problem.require_reachable()
    narrower = problem.keeping(1.0 - max_pruned)
    try:
        narrower.require_reachable()
    except BudgetError as error:
        error.hint = f"raise max_pruned above {max_pruned:g}: it keeps groups from losing more; or {error.hint}"
        raise
    return narrower
