"""Sensitivity curves as the worth of kept units: what minimizing a sum of losses goes by.

Not here: measuring curves (``slim_prune.sensitivity``).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np

from slim_core.errors import SlimError
from slim_prune.allocation.problem import Choice
from slim_prune.allocation.values import Scores

#: Group name -> {kept units: loss}; or the file that holds curves.
Curves = Mapping[str, Mapping[int, float]] | str | os.PathLike[str]


def worth_of_curves(choices: Sequence[Choice], curves: Curves) -> dict[str, Scores]:
    """Return what each group that keeps ``n`` units is worth, for each ``n``: the loss, negative; ``(units + 1,)``.

    Between measured counts the loss is read off the line; below the smallest, the line goes on. Keeping more is never
    worth less: a loss is at least that of any larger count. Keeping all loses nothing, unless the curve says otherwise.

    Raises:
        SlimError: a group has no curve, or a point is none.
    """
    losses = _of_file(curves) if isinstance(curves, str | os.PathLike) else curves
    return {choice.name: _worth(choice, _points(choice, losses)) for choice in choices}


def _of_file(path: str | os.PathLike[str]) -> dict[str, dict[int, float]]:
    from slim_prune.sensitivity.curves import Curves as MeasuredCurves

    measured = MeasuredCurves.load(path)
    return {curve.name: {p.kept: measured.drop(p) for p in curve.points} for curve in measured.curves if curve.points}


def _points(choice: Choice, curves: Mapping[str, Mapping[int, float]]) -> dict[int, float]:
    if choice.name not in curves:
        known = ", ".join(list(curves)[:5])
        raise SlimError(
            f"there is no sensitivity curve for channel group '{choice.name}'",
            hint=f"curves are there for: {known}{', …' if len(curves) > 5 else ''}" if known else "there are no curves",
        )
    points = {int(count): float(loss) for count, loss in curves[choice.name].items()}
    if not points or not all(np.isfinite(loss) for loss in points.values()):
        raise SlimError("a sensitivity curve has no points, or one that is not finite", where=f"group '{choice.name}'")
    if any(not 0 <= count <= choice.group.units for count in points):
        raise SlimError(
            f"a sensitivity curve has counts beyond the group's {choice.group.units} units",
            where=f"group '{choice.name}'",
        )
    return {choice.group.units: 0.0, **points}


def _worth(choice: Choice, points: Mapping[int, float]) -> Scores:
    counts = np.array(sorted(points), dtype=np.float64)
    losses = np.array([points[int(count)] for count in counts])
    wanted = np.arange(choice.group.units + 1, dtype=np.float64)
    found = np.interp(wanted, counts, losses)
    if len(counts) > 1:
        slope = (losses[1] - losses[0]) / (counts[1] - counts[0])
        below = wanted < counts[0]
        found[below] = losses[0] + slope * (wanted[below] - counts[0])
    return -np.maximum.accumulate(found[::-1])[::-1]
