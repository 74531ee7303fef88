"""Histograms with thresholds: where values lie, and which of them are beyond what the integers reach."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from slim_quant.observers import Histogram

#: bins of a histogram that is written
BINS = 64


class Counts:
    """Counts values of one tensor over any number of batches.

    Args:
        low: the lowest representable value; 0-dimensional, or of a shape that broadcasts against the values.
        high: the highest.
        step: distance of representable values. What is beyond the ends by more than half of it counts as clipped.
    """

    def __init__(self, low: Tensor, high: Tensor, step: Tensor) -> None:
        self._low, self._high, self._step = low.double(), high.double(), step.double()
        self._histogram = Histogram()
        self._clipped = 0
        self.count = 0

    def update(self, values: Tensor) -> None:
        if not values.numel():
            return
        wide = values.double()
        outside = (wide < self._low - self._step / 2) | (wide > self._high + self._step / 2)
        self._clipped += int(outside.sum())
        self.count += values.numel()
        self._histogram.update(values)

    @property
    def clipped(self) -> float:
        """Share of the values that were clipped."""
        return self._clipped / self.count if self.count else 0.0

    def to_json(self, bins: int = BINS) -> dict[str, Any]:
        """Return extremes, thresholds, clipped share, and a histogram of at most ``bins`` bins between the extremes."""
        low, high = self._histogram.low, self._histogram.high
        if not self.count:
            low = high = 0.0
        edges, counts = coarse(self._histogram, bins)
        return {
            "low": low,
            "high": high,
            "threshold_low": float(self._low.min()),
            "threshold_high": float(self._high.max()),
            "clipped": self.clipped,
            "values": self.count,
            "edges": edges,
            "counts": counts,
        }


def coarse(histogram: Histogram, bins: int) -> tuple[list[float], list[int]]:
    """Return edges and counts of at most ``bins`` bins between the smallest and the largest value that was seen.

    Each is a whole number of the histogram's own bins, so that no count is split.
    """
    counts = histogram.counts
    used = torch.nonzero(counts).reshape(-1)
    if not len(used):
        return [0.0, 0.0], [0]
    first, last = int(used[0]), int(used[-1])
    width = -(-(last - first + 1) // bins)
    number = -(-(last - first + 1) // width)
    padded = torch.zeros(number * width, dtype=counts.dtype)
    part = counts[first : min(first + number * width, len(counts))]
    padded[: len(part)] = part
    start = first * histogram.width - histogram.reach
    edges = [start + position * width * histogram.width for position in range(number + 1)]
    return edges, [int(count) for count in padded.view(number, width).sum(1)]


def counter(scale: Tensor, zero_point: Tensor, ends: Sequence[int], shape: Sequence[int] = ()) -> Counts:
    """Return the counts of a fake-quantizer.

    Args:
        scale: 0-dimensional or one per channel.
        zero_point: likewise.
        ends: the lowest and the highest integer.
        shape: what scales are reshaped to, so that they broadcast against the values.
    """
    step, zero = (item.detach().double().cpu().reshape(tuple(shape)) for item in (scale, zero_point))
    low, high = ((end - zero) * step for end in ends)
    return Counts(low, high, step)
