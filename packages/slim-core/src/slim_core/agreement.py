"""How far the outputs of two implementations lie apart. What is close enough is decided by those who ask."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Difference:
    """The difference over all outputs.

    Args:
        max_diff: largest absolute difference; NaN where only one side is not a number, infinite where only one side
            is infinite. Where both are the same infinity or both not a number, they agree.
        largest: largest finite absolute value of the reference.
        sqnr_db: power of the reference over power of the difference in dB; infinite when they are equal, NaN where
            ``max_diff`` is not finite.
    """

    max_diff: float
    largest: float
    sqnr_db: float


def difference(pairs: Iterable[tuple[NDArray[Any], NDArray[Any]]]) -> Difference:
    """Compare (reference, other) pairs of arrays of equal shapes."""
    signal = noise = largest = worst = 0.0
    for reference, other in pairs:
        expected, got = _wide(reference), _wide(other)
        same = (expected == got) | (np.isnan(expected) & np.isnan(got))
        if bool((np.isnan(expected) != np.isnan(got)).any()):
            worst = math.nan
        elif not bool((same | (np.isfinite(expected) & np.isfinite(got))).all()):
            worst = worst if math.isnan(worst) else math.inf
        finite = np.isfinite(expected) & np.isfinite(got)
        size = np.abs(expected[finite])
        step = np.abs(expected[finite] - got[finite])
        signal += float(np.square(size).sum())
        noise += float(np.square(step).sum())
        largest = max(largest, float(size.max(initial=0.0)))
        if not math.isnan(worst):  # a comparison with NaN is false, and NaN must stay
            worst = max(worst, float(step.max(initial=0.0)))
    if not math.isfinite(worst):
        return Difference(worst, largest, math.nan)
    sqnr = math.inf if noise == 0 else 10 * math.log10(max(signal, 1e-300) / noise)
    return Difference(worst, largest, sqnr)


def _wide(values: NDArray[Any]) -> NDArray[Any]:
    return values.astype(np.complex128 if np.iscomplexobj(values) else np.float64)
