"""The monotone envelope of a curve: removing more never costs less.

Measured curves are not monotone: a pruned model may by chance be better than the whole one, above all on few samples.
Taken literally, such a point would make an allocation remove channels for a gain that is not there. Isotonic regression
(Barlow et al. 1972, "Statistical Inference under Order Restrictions") is the closest monotone curve in the sense of
least squares; the drop of the whole model is 0 by definition, so nothing lies below 0.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Envelope:
    """Drops that never grow with the number of kept units, linear between the measured counts.

    Args:
        counts: numbers of kept units, ascending; the last one is all units.
        drops: the drop at each; the last one is 0.
    """

    counts: tuple[int, ...]
    drops: tuple[float, ...]

    @classmethod
    def of(
        cls, counts: Sequence[int], drops: Sequence[float], units: int, weights: Sequence[float] | None = None
    ) -> Envelope:
        """Return the envelope of measured drops.

        Args:
            counts: kept units, ascending.
            drops: measured drops, of any sign.
            units: units of the whole group.
            weights: how much each point counts; ``None``: equally.
        """
        given = [
            (count, drop, weight)
            for count, drop, weight in zip(
                counts, drops, [1.0] * len(counts) if weights is None else weights, strict=True
            )
            if count < units
        ]
        fitted = _non_increasing([drop for _, drop, _ in given], [float(weight) for _, _, weight in given])
        return cls((*(count for count, _, _ in given), units), (*(max(drop, 0.0) for drop in fitted), 0.0))

    def __call__(self, kept: float) -> float:
        """Return the drop at ``kept`` units; below the smallest measured count, the line through the last two points.

        Raises:
            ValueError: there is no such count.
        """
        if not 0 < kept <= self.counts[-1]:
            raise ValueError(f"{kept} units of {self.counts[-1]} cannot be kept")
        at = bisect_left(self.counts, kept)
        if self.counts[at] == kept:
            return self.drops[at]
        if len(self.counts) == 1:
            return 0.0
        right = max(at, 1)
        (low, high), (upper, lower) = self.counts[right - 1 : right + 1], self.drops[right - 1 : right + 1]
        return upper + (lower - upper) * (kept - low) / (high - low)


def _non_increasing(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """Pool adjacent violators: the weighted least-squares fit that never grows."""
    blocks: list[tuple[float, float, int]] = []  # mean, weight, length
    for value, weight in zip(values, weights, strict=True):
        blocks.append((value, weight, 1))
        while len(blocks) > 1 and blocks[-2][0] < blocks[-1][0]:
            (mean, mass, length), (other, more, count) = blocks.pop(-2), blocks.pop()
            total = mass + more
            pooled = (mean * mass + other * more) / total if total > 0 else (mean + other) / 2
            blocks.append((pooled, total, length + count))
    return [mean for mean, _, length in blocks for _ in range(length)]
