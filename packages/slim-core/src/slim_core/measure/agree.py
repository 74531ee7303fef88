"""Whether two implementations compute the same: what is checked before anything is timed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from slim_core.agreement import difference
from slim_core.errors import MeasureError

#: Runtimes order their sums differently: fp32 networks differ by at most this share of the largest output.
TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Agreement:
    """How close a session's outputs are to the reference.

    Args:
        max_diff: largest absolute difference over all outputs.
        largest: largest finite absolute value of the reference.
        sqnr_db: power of the reference over power of the difference in dB; ``inf`` when they are equal.
        tolerance: largest ``max_diff / max(largest, 1)`` that was allowed, or ``None`` where it was only reported.
    """

    max_diff: float
    largest: float
    sqnr_db: float
    tolerance: float | None

    @property
    def ok(self) -> bool:
        """Whether the outputs agree as far as was demanded."""
        if not math.isfinite(self.max_diff):
            return False
        return self.tolerance is None or self.max_diff <= self.tolerance * max(self.largest, 1.0)

    def __str__(self) -> str:
        return f"max difference {self.max_diff:.3g} of {self.largest:.3g} (SQNR {self.sqnr_db:.1f} dB)"

    def to_json(self) -> dict[str, Any]:
        return {
            "max_diff": _finite(self.max_diff),
            "largest": _finite(self.largest),
            "sqnr_db": _finite(self.sqnr_db),
            "tolerance": self.tolerance,
        }


def compare(
    reference: Sequence[NDArray[Any]], other: Sequence[NDArray[Any]], tolerance: float | None, name: str
) -> Agreement:
    """Compare all outputs of two implementations.

    Raises:
        MeasureError: numbers or shapes of outputs differ.
    """
    if len(reference) != len(other):
        raise MeasureError(f"'{name}' has {len(other)} outputs, its reference {len(reference)}")
    for position, (expected, got) in enumerate(zip(reference, other, strict=True)):
        if expected.shape != got.shape:
            raise MeasureError(
                f"output {position} of '{name}' has shape {list(got.shape)}, its reference {list(expected.shape)}"
            )
    found = difference(zip(reference, other, strict=True))
    return Agreement(found.max_diff, found.largest, found.sqnr_db, tolerance)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
