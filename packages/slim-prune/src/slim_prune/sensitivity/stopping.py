"""When enough samples were seen: a confidence interval for the difference to the whole model on the same samples.

The whole data is what counts, not a population behind it, so the interval shrinks to nothing as the samples run out
(sampling without replacement). Differences are paired: most samples do the same in both models, and only the others
are uncertain. Not here: running models.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slim_core.errors import SlimError


@dataclass(frozen=True, slots=True)
class EarlyStop:
    """When a point is decided.

    Args:
        tolerance: half-width of the interval, in the metric's unit, at which a point is known well enough: 0.002 is
            0.2 points of a share.
        relative: a point is also known well enough when the half-width is this share of the drop; 0: never.
        ceiling: a drop that is surely above this is as good as lost, and is measured no further; ``None``: no ceiling.
        confidence: of the interval.
        min_samples: none is stopped before.
    """

    tolerance: float = 0.002
    relative: float = 0.0
    ceiling: float | None = None
    confidence: float = 0.999
    min_samples: int = 256

    def __post_init__(self) -> None:
        if not self.tolerance > 0 or self.relative < 0 or not 0.5 <= self.confidence < 1:
            raise SlimError(
                f"early stopping needs a tolerance above 0, relative of at least 0 and a confidence in [0.5, 1), "
                f"not {self.tolerance}, {self.relative} and {self.confidence}"
            )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def decided(self, drop: float, margin: float, seen: int) -> bool:
        """Return whether a drop known to ``margin`` after ``seen`` samples needs no more of them."""
        if seen < self.min_samples:
            return False
        known = margin <= max(self.tolerance, self.relative * abs(drop))
        return known or (self.ceiling is not None and drop - margin > self.ceiling)


class Differences:
    """Paired differences so far, and how far their mean may be from that over all samples.

    Args:
        total: number of all samples.
        confidence: of the interval.
        spread: the largest difference that is possible; ``None``: the largest that was seen.
    """

    def __init__(self, total: int, confidence: float, spread: float | None = None) -> None:
        self._total, self._spread = total, spread
        self._z = NormalDist().inv_cdf(0.5 + confidence / 2)
        self._count, self._sum, self._squares, self._largest = 0, 0.0, 0.0, 0.0

    def add(self, differences: NDArray[np.float64]) -> None:
        self._count += len(differences)
        self._sum += float(differences.sum())
        self._squares += float(np.square(differences).sum())
        self._largest = max(self._largest, float(np.abs(differences).max(initial=0.0)))

    @property
    def mean(self) -> float:
        return self._sum / self._count if self._count else 0.0

    @property
    def margin(self) -> float:
        """Half-width of the interval. Half of ``z`` squared made-up differences of full size guard small counts.

        That is the interval of Agresti and Coull (1998, "Approximate is better than exact for interval estimation of
        binomial proportions"), with the correction for a finite population.
        """
        n, z = self._count, self._z
        if n >= self._total:
            return 0.0
        if n == 0:
            return float("inf")
        spread = self._largest if self._spread is None else self._spread
        centred = max(self._squares - self._sum**2 / n, 0.0)
        variance = (centred + z * z / 2 * spread**2) / (n + z * z)
        left = (self._total - n) / max(self._total - 1, 1)
        return float(z * np.sqrt(variance * left / (n + z * z)))
