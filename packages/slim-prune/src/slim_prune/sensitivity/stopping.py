"""When enough samples were seen: a confidence interval for the difference to the whole model on the same samples.

The whole data is what counts, not a population behind it, so the interval shrinks to nothing as the samples run out
(sampling without replacement). Differences are paired: most samples do the same in both models, and only the others
are uncertain. Where a metric tells how far each sample is from counting otherwise, the least sure samples are looked
at first, and the sure ones are judged by a random part of them. Not here: running models.
"""

from __future__ import annotations

from collections.abc import Sequence
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


#: tells points that were stopped by these rules from others
RULE = 2
#: so many samples are looked at in random order
_PILOT = 512
#: a random part of fewer samples says nothing
_LEAST = 64


class Differences:
    """Paired differences so far, and how far their mean may be from that over all samples.

    Args:
        total: number of all samples.
        confidence: of the interval.
        spread: the largest difference that is possible; ``None``: the largest that was seen.
    """

    def __init__(self, total: int, confidence: float, spread: float | None = None) -> None:
        self._total, self._spread, self._confidence = total, spread, confidence
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


def surest_last(margins: NDArray[np.float64], sizes: Sequence[int]) -> tuple[NDArray[np.int64], int]:
    """Return an order of samples that are in random order now, and how many at its start stay so.

    Args:
        margins: of the whole model, ``(N,)``.
        sizes: of the batches; the random part ends with one of them.
    """
    ends = np.cumsum(sizes)
    pilot = int(ends[min(int(np.searchsorted(ends, _PILOT)), len(ends) - 1)])
    rest = pilot + np.argsort(np.abs(margins[pilot:]), kind="stable")
    return np.concatenate([np.arange(pilot), rest]).astype(np.int64), pilot


class SurestLast(Differences):
    """Paired differences of a share, where the least sure samples come first behind a random part.

    A sample counts otherwise only when its margin changes by more than its size. The fourth power of their ratio, cut
    at 1, is thus never below the share that does; and as it varies from sample to sample where differences are nearly
    all 0, its mean is known from far fewer of them. What the random part holds of the samples that are as sure as
    those not seen yet speaks for these; where one of them counts otherwise, it is a sample like any other.

    Args:
        margins: of the whole model, in the order in which samples come, ``(N,)``.
        pilot: how many at the start are in random order.
        confidence: of the interval.
    """

    def __init__(self, margins: NDArray[np.float64], pilot: int, confidence: float) -> None:
        super().__init__(len(margins), confidence, 1.0)
        self._margins, self._pilot = margins, pilot
        self._seen: list[NDArray[np.float64]] = []
        self._ratios: list[NDArray[np.float64]] = []

    def add(self, differences: NDArray[np.float64], margins: NDArray[np.float64] | None = None) -> None:
        """Add a batch: differences to the whole model, and the pruned model's margins."""
        if self._count < self._pilot:
            before = self._margins[self._count : self._count + len(differences)]
            change = np.ones(len(before)) if margins is None else np.abs(margins - before)
            ratio = change / np.maximum(np.abs(before), np.finfo(np.float64).tiny)
            self._ratios.append(np.minimum(np.nan_to_num(ratio, nan=1.0, posinf=1.0), 1.0) ** 4)
            self._seen.append(differences)
        super().add(differences)

    @property
    def _alike(self) -> NDArray[np.bool_]:
        """Which samples of the random part are as sure as those that were not seen."""
        bound = abs(float(self._margins[self._count])) if self._count < self._total else np.inf
        found: NDArray[np.bool_] = np.abs(self._margins[: self._pilot]) >= bound
        return found

    @property
    def mean(self) -> float:
        if self._count <= self._pilot or self._count >= self._total:
            return super().mean
        alike = np.concatenate(self._seen)[self._alike]
        unseen = (self._total - self._count) * float(alike.mean()) if len(alike) else 0.0
        return (self._sum + unseen) / self._total

    @property
    def margin(self) -> float:
        """Half-width of the interval."""
        if self._count < self._pilot or self._count >= self._total:
            return super().margin
        alike = self._alike
        differences, ratios = np.concatenate(self._seen)[alike], np.concatenate(self._ratios)[alike]
        n, unseen = len(differences), self._total - self._count
        if n < _LEAST:
            return float("inf")
        plain = Differences(n + unseen, self._confidence, 1.0)
        plain.add(differences)
        if differences.any():
            return plain.margin * (n + unseen) / self._total
        guard = self._z**2 / 2 * float(ratios.max()) / n
        bound = float(ratios.mean() + self._z * ratios.std() / np.sqrt(n)) + guard
        return min(bound * unseen, plain.margin * (n + unseen)) / self._total
