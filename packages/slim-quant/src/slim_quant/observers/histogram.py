"""A streaming histogram: bounded memory, a range that grows, the same counts in whatever order batches come."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from slim_quant.observers.minmax import extremes
from slim_quant.observers.reducing import reduce_max, reduce_sum

#: Bins over the symmetric range. One-sided data uses half, and the reach is up to twice the largest value: 2048 stay at
#: the worst, eight for each step of eight bits.
BINS = 8192
#: A batch with more values is counted at that many of them, evenly spaced: the extremes are exact all the same.
MOST = 1 << 18


class Histogram:
    """Counts over ``[-reach, reach]``, where ``reach`` is the power of two that holds the largest value.

    When a larger value comes the reach doubles, which merges whole bins: nothing is resampled, and histograms of
    different data have bins that fit, so that they can be added.

    Args:
        bins: a multiple of 4.
        most: values of a batch that are counted at the most; ``None`` counts all.
    """

    def __init__(self, bins: int = BINS, most: int | None = MOST) -> None:
        if bins % 4:
            raise ValueError("bins must be a multiple of 4")
        self.counts = torch.zeros(bins, dtype=torch.float64)
        self.reach = 0.0
        self.low = float("inf")
        self.high = float("-inf")
        #: how many of the counts are exact zeros, which every scheme represents: searches leave them out
        self.zeros = 0.0
        self.most = most
        self._turn = 0

    def update(self, values: Tensor) -> None:
        if not values.numel():
            return
        low, high = (float(extreme) for extreme in extremes(values))
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._hold(_power_of_two(max(-low, high)))
        flat = self._some(values.detach().reshape(-1)).float().cpu()
        self.zeros += flat.numel() - int(torch.count_nonzero(flat))
        if self.reach == 0.0:  # only zeros so far
            self.counts[len(self.counts) // 2] += flat.numel()
            return
        self.counts += torch.histc(flat, bins=len(self.counts), min=-self.reach, max=self.reach).double()

    def all_reduce(self, group: Any = None) -> None:
        """Add the counts of all processes."""
        low, high, reach = reduce_max(torch.tensor([-self.low, self.high, self.reach], dtype=torch.float64), group)
        self._hold(float(reach))
        self.low, self.high = -float(low), float(high)
        total = reduce_sum(torch.cat([self.counts, torch.tensor([self.zeros], dtype=torch.float64)]), group)
        self.counts, self.zeros = total[:-1], float(total[-1])

    @property
    def width(self) -> float:
        """Width of a bin."""
        return 2 * self.reach / len(self.counts)

    def centers(self) -> Tensor:
        bins = len(self.counts)
        return (torch.arange(bins, dtype=torch.float64) + 0.5) * self.width - self.reach

    def nonzero(self) -> tuple[Tensor, Tensor]:
        """Return the middles of the bins in which there are values other than zero, and their counts without zeros."""
        counts = self.counts.clone()
        counts[len(counts) // 2] -= self.zeros
        used = counts > 0
        return self.centers()[used].clamp(self.low, self.high), counts[used]

    def quantile(self, share: float) -> float:
        """Return the value below which ``share`` of the counts lie, interpolated within its bin."""
        total = self.counts.cumsum(0)
        wanted = share * float(total[-1])
        position = int(torch.searchsorted(total, torch.tensor(wanted, dtype=torch.float64)).clamp(max=len(total) - 1))
        before = float(total[position] - self.counts[position])
        inside = (wanted - before) / max(float(self.counts[position]), 1.0)
        value = (position + min(max(inside, 0.0), 1.0)) * self.width - self.reach
        return min(max(value, self.low), self.high)

    def _some(self, flat: Tensor) -> Tensor:
        """Return evenly spaced values, from another start each time. The step is odd, so that it meets all columns."""
        if self.most is None or flat.numel() <= self.most:
            return flat
        step = -(-flat.numel() // self.most) | 1
        self._turn = (self._turn + 1) % step
        return flat[self._turn :: step]

    def _hold(self, reach: float) -> None:
        if self.reach == 0.0 and reach > 0:
            zeros = float(self.counts.sum())
            self.counts.zero_()
            self.counts[len(self.counts) // 2] = zeros
            self.reach = reach
        while reach > self.reach:
            half = len(self.counts) // 2
            merged = self.counts.view(half, 2).sum(1)
            self.counts = torch.zeros_like(self.counts)
            self.counts[half // 2 : half // 2 + half] = merged
            self.reach *= 2


def _power_of_two(largest: float) -> float:
    """Return the smallest power of two that is not below ``largest``; 0 for 0."""
    if largest == 0:
        return 0.0
    mantissa, exponent = math.frexp(largest)
    return math.ldexp(1.0, exponent - 1 if mantissa == 0.5 else exponent)
