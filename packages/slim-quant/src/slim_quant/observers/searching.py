"""Observers that choose a range on a histogram: percentile, and least squared error, earth mover's distance or entropy.

The searches judge candidates by what quantization to the scheme does to everything that was seen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from slim_quant.observers.histogram import Histogram
from slim_quant.schemes import Scheme, dequantize, qparams, quantize

#: (values of bins, counts, candidates' low, candidates' high, scheme) -> loss of each candidate
Loss = Callable[[Tensor, Tensor, Tensor, Tensor, Scheme], Tensor]


class HistogramObserver:
    """What observers on a histogram share."""

    def __init__(self) -> None:
        self.histogram = Histogram()

    def update(self, values: Tensor) -> None:
        self.histogram.update(values)

    def all_reduce(self, group: Any = None) -> None:
        """The histogram of all processes' values."""
        self.histogram.all_reduce(group)

    def seen(self) -> Histogram:
        """Return the histogram.

        Raises:
            ValueError: nothing was observed.
        """
        if self.histogram.low > self.histogram.high:
            raise ValueError("nothing was observed")
        return self.histogram


class PercentileObserver(HistogramObserver):
    """The range that holds ``share`` of the values, the rest cut evenly from the two ends (from one, where all values
    have one sign).

    Args:
        share: part of the values to keep inside, 0.9999 for instance.
    """

    def __init__(self, share: float = 0.9999) -> None:
        if not 0.5 < share <= 1:
            raise ValueError(f"share must be in (0.5, 1], not {share}")
        super().__init__()
        self.share = share

    def range(self, scheme: Scheme) -> tuple[Tensor, Tensor]:
        histogram = self.seen()
        both = histogram.low < 0 < histogram.high
        outside = (1 - self.share) / (2 if both else 1)
        low = histogram.quantile(outside) if histogram.low < 0 else 0.0
        high = histogram.quantile(1 - outside) if histogram.high > 0 else 0.0
        return torch.tensor(low, dtype=torch.float64), torch.tensor(high, dtype=torch.float64)


class SearchingObserver(HistogramObserver):
    """The range of least loss. Both ends shrink together first, then each by itself around the best.

    Args:
        steps: candidates at each of the three searches.
    """

    loss: Loss

    def __init__(self, steps: int = 64) -> None:
        if steps < 1:
            raise ValueError(f"steps must be at least 1, not {steps}")
        super().__init__()
        self.steps = steps

    def range(self, scheme: Scheme) -> tuple[Tensor, Tensor]:
        histogram = self.seen()
        centers, counts = histogram.nonzero()
        shares = torch.linspace(1 / self.steps, 1, self.steps, dtype=torch.float64)
        low, high = shares * min(histogram.low, 0.0), shares * max(histogram.high, 0.0)
        low, high = self._best(low, high, centers, counts, scheme)
        if histogram.low < 0 < histogram.high and not scheme.symmetric:
            factors = torch.linspace(0.5, 1.5, self.steps + 1, dtype=torch.float64)
            lows = (factors * low).clamp(min=histogram.low)
            low, high = self._best(lows, high.expand(len(factors)), centers, counts, scheme)
            highs = (factors * high).clamp(max=histogram.high)
            low, high = self._best(low.expand(len(factors)), highs, centers, counts, scheme)
        return low, high

    def _best(self, low: Tensor, high: Tensor, values: Tensor, counts: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
        """Return the candidate of least loss. Among equals, the widest (the last of the shares)."""
        loss = type(self).loss(values, counts, low, high, scheme)
        position = int(len(loss) - 1 - torch.argmin(loss.flip(0)))
        return low[position], high[position]


def squared_error(values: Tensor, counts: Tensor, low: Tensor, high: Tensor, scheme: Scheme) -> Tensor:
    """Return the sum of squared differences between values and quantized values."""
    return (_quantized(values, low, high, scheme) - values).square() @ counts


def moved_distance(values: Tensor, counts: Tensor, low: Tensor, high: Tensor, scheme: Scheme) -> Tensor:
    """Return the earth mover's distance between the distributions of values and of quantized values.

    Rounding and saturation keep the order of values, and on a line the cheapest transport keeps it too: the distance is
    the sum of absolute differences.
    """
    return (_quantized(values, low, high, scheme) - values).abs() @ counts


def divergence(values: Tensor, counts: Tensor, low: Tensor, high: Tensor, scheme: Scheme) -> Tensor:
    """Return the Kullback-Leibler divergence of what the integers can tell from what was seen.

    The reference is the distribution with everything outside the range counted at its ends. The integers tell how much
    lies at each level, spread evenly over the bins of the level in which anything was seen (S. Migacz, "8-bit inference
    with TensorRT", GTC 2017).
    """
    return torch.stack([_divergence(values, counts, *ends, scheme) for ends in zip(low, high, strict=True)])


class MSEObserver(SearchingObserver):
    """The range whose quantization has the least mean squared error over everything seen."""

    loss = staticmethod(squared_error)


class EMDObserver(SearchingObserver):
    """The range whose quantization moves the distribution least: the earth mover's distance."""

    loss = staticmethod(moved_distance)


class EntropyObserver(SearchingObserver):
    """The range of which the integers tell most: the least Kullback-Leibler divergence."""

    loss = staticmethod(divergence)


def _divergence(values: Tensor, counts: Tensor, low: Tensor, high: Tensor, scheme: Scheme) -> Tensor:
    inside = (values >= low) & (values <= high)
    if not bool(inside.any()):  # nothing is told; of nothing, nothing is lost
        return torch.tensor(float("inf") if len(values) else 0.0, dtype=torch.float64)
    kept = counts[inside]
    seen = kept.clone()
    seen[0] += counts[values < low].sum()
    seen[-1] += counts[values > high].sum()
    scale, zero_point = qparams(low, high, scheme)
    levels = (quantize(values[inside], scale.double(), zero_point.double(), scheme) - scheme.qmin).long()
    size = scheme.qmax - scheme.qmin + 1
    mass = torch.zeros(size, dtype=torch.float64).index_add_(0, levels, kept)
    bins = torch.zeros(size, dtype=torch.float64).index_add_(0, levels, torch.ones_like(kept))
    told = (mass / bins.clamp(min=1))[levels]
    return (seen / seen.sum() * torch.log(seen / seen.sum() / (told / told.sum()))).sum()


def _quantized(values: Tensor, low: Tensor, high: Tensor, scheme: Scheme) -> Tensor:
    """Return the quantized values, a row for each candidate."""
    scale, zero_point = qparams(low, high, scheme)
    scale, zero_point = scale.double(), zero_point.double()
    rows = values.expand(len(scale), -1)  # (candidates, bins)
    return dequantize(quantize(rows, scale, zero_point, scheme), scale, zero_point)
