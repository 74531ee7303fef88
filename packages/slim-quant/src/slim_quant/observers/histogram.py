"""Observers on a streaming histogram: percentile, and the range of least squared error."""

from __future__ import annotations

import torch
from torch import Tensor

from slim_quant.schemes import Scheme, dequantize, qparams, quantize

#: Bins over the symmetric range. One-sided data uses half, and a widened range again half: 2048 stay at the worst.
BINS = 8192


class Histogram:
    """Counts over ``[-reach, reach]``. The reach doubles when needed, which merges whole bins: nothing is resampled."""

    def __init__(self, bins: int = BINS) -> None:
        if bins % 4:
            raise ValueError("bins must be a multiple of 4")
        self.counts = torch.zeros(bins, dtype=torch.float64)
        self.reach = 0.0
        self.low = float("inf")
        self.high = float("-inf")

    def update(self, values: Tensor) -> None:
        if not values.numel():
            return
        flat = values.detach().reshape(-1).float().cpu()
        low, high = (float(extreme) for extreme in flat.aminmax())
        if not (low > float("-inf") and high < float("inf")):
            raise ValueError("an activation is not finite")
        self.low, self.high = min(self.low, low), max(self.high, high)
        largest = max(-low, high)
        if self.reach == 0.0:
            self._first(largest)
        while largest > self.reach and self.reach > 0:
            self._widen()
        if self.reach == 0.0:  # only zeros so far
            self.counts[len(self.counts) // 2] += flat.numel()
            return
        self.counts += torch.histc(flat, bins=len(self.counts), min=-self.reach, max=self.reach).double()

    @property
    def width(self) -> float:
        """Width of a bin."""
        return 2 * self.reach / len(self.counts)

    def centers(self) -> Tensor:
        bins = len(self.counts)
        return (torch.arange(bins, dtype=torch.float64) + 0.5) * self.width - self.reach

    def quantile(self, share: float) -> float:
        """Return the value below which ``share`` of the counts lie, interpolated within its bin."""
        total = self.counts.cumsum(0)
        wanted = share * float(total[-1])
        position = int(torch.searchsorted(total, torch.tensor(wanted, dtype=torch.float64)).clamp(max=len(total) - 1))
        before = float(total[position] - self.counts[position])
        inside = (wanted - before) / max(float(self.counts[position]), 1.0)
        value = (position + min(max(inside, 0.0), 1.0)) * self.width - self.reach
        return min(max(value, self.low), self.high)

    def _first(self, largest: float) -> None:
        if largest > 0:
            zeros = float(self.counts.sum())
            self.counts.zero_()
            self.counts[len(self.counts) // 2] = zeros
            self.reach = largest

    def _widen(self) -> None:
        half = len(self.counts) // 2
        merged = self.counts.view(half, 2).sum(1)
        self.counts = torch.zeros_like(self.counts)
        self.counts[half // 2 : half // 2 + half] = merged
        self.reach *= 2


class PercentileObserver:
    """The range that holds ``share`` of the values, the rest cut evenly from the two ends (from one, where all values
    have one sign).

    Args:
        share: part of the values to keep inside, 0.9999 for instance.
    """

    def __init__(self, share: float = 0.9999) -> None:
        if not 0.5 < share <= 1:
            raise ValueError(f"share must be in (0.5, 1], not {share}")
        self.share = share
        self.histogram = Histogram()

    def update(self, values: Tensor) -> None:
        self.histogram.update(values)

    def range(self, scheme: Scheme) -> tuple[Tensor, Tensor]:
        histogram = _seen(self.histogram)
        both = histogram.low < 0 < histogram.high
        outside = (1 - self.share) / (2 if both else 1)
        low = histogram.quantile(outside) if histogram.low < 0 else 0.0
        high = histogram.quantile(1 - outside) if histogram.high > 0 else 0.0
        return torch.tensor(low, dtype=torch.float64), torch.tensor(high, dtype=torch.float64)


class MSEObserver:
    """The range whose quantization has the least mean squared error over everything seen.

    Both ends shrink together first, then each by itself around the best.
    """

    def __init__(self, steps: int = 64) -> None:
        self.steps = steps
        self.histogram = Histogram()

    def update(self, values: Tensor) -> None:
        self.histogram.update(values)

    def range(self, scheme: Scheme) -> tuple[Tensor, Tensor]:
        histogram = _seen(self.histogram)
        used = histogram.counts > 0
        centers, counts = histogram.centers()[used], histogram.counts[used]
        centers = centers.clamp(histogram.low, histogram.high)
        shares = torch.linspace(1 / self.steps, 1, self.steps, dtype=torch.float64)
        low, high = shares * min(histogram.low, 0.0), shares * max(histogram.high, 0.0)
        low, high = _best(low, high, centers, counts, scheme)
        if histogram.low < 0 < histogram.high and not scheme.symmetric:
            factors = torch.linspace(0.5, 1.5, self.steps + 1, dtype=torch.float64)
            low, high = _best(
                (factors * low).clamp(min=histogram.low), high.expand(len(factors)), centers, counts, scheme
            )
            low, high = _best(
                low.expand(len(factors)), (factors * high).clamp(max=histogram.high), centers, counts, scheme
            )
        return low, high


def _best(low: Tensor, high: Tensor, values: Tensor, counts: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Return the candidate ``(low, high)`` of least error. Among equals, the widest (the last of the shares)."""
    scale, zero_point = qparams(low, high, scheme)
    scale, zero_point = scale.double(), zero_point.double()
    rows = values.expand(len(scale), -1)  # (candidates, bins)
    error = (dequantize(quantize(rows, scale, zero_point, scheme), scale, zero_point) - rows).square() @ counts
    position = int(len(error) - 1 - torch.argmin(error.flip(0)))
    return low[position], high[position]


def _seen(histogram: Histogram) -> Histogram:
    if histogram.low > histogram.high:
        raise ValueError("nothing was observed")
    return histogram
