"""Non-negative least squares, small: costs that may not fall when work grows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def nonnegative(matrix: Array, target: Array, ridge: float = 0.0, toward: Array | None = None) -> Array:
    """Return the ``x >= 0`` that minimises ``|matrix @ x - target|^2 + ridge * |scale * (x - toward)|^2``.

    Lawson and Hanson's active set method (1974). Columns are brought to one scale before, so that ``ridge`` means the
    same for each of them.

    Args:
        matrix: ``(rows, columns)``.
        target: ``(rows,)``.
        ridge: strength of the pull, as a share of the columns' squared length.
        toward: ``(columns,)``, where the pull leads; zero by default.
    """
    scale = np.sqrt((matrix**2).sum(axis=0))
    scale[scale == 0] = 1.0
    scaled = matrix / scale
    if ridge > 0:
        goal = np.zeros(len(scale)) if toward is None else np.asarray(toward, dtype=np.float64) * scale
        scaled = np.vstack([scaled, np.sqrt(ridge) * np.eye(len(scale))])
        target = np.concatenate([target, np.sqrt(ridge) * goal])
    found: Array = _active_set(scaled, target) / scale
    return found


def _active_set(matrix: Array, target: Array) -> Array:
    columns = matrix.shape[1]
    found, free = np.zeros(columns), np.zeros(columns, dtype=np.bool_)
    tolerance = 1e-12 * max(float(np.abs(matrix.T @ target).max(initial=0.0)), 1e-300)
    for _ in range(3 * columns + 10):
        slope = matrix.T @ (target - matrix @ found)
        slope[free] = -np.inf
        best = int(np.argmax(slope))
        if free.all() or slope[best] <= tolerance:
            break
        free[best] = True
        while free.any():
            trial = np.zeros(columns)
            trial[free] = np.linalg.lstsq(matrix[:, free], target, rcond=None)[0]
            if (trial[free] > 0).all():
                found = trial
                break
            low = free & (trial <= 0)
            step = float(np.min(found[low] / (found[low] - trial[low] + 1e-300)))
            found = found + step * (trial - found)
            free &= found > 1e-300
            found[~free] = 0.0
    return found
