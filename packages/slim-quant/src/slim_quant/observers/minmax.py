"""Observers that keep two numbers: the extremes, or averages of the extremes of batches or samples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from slim_quant.observers.reducing import reduce_max, reduce_sum
from slim_quant.schemes import Scheme


class MinMaxObserver:
    """The smallest and the largest value seen."""

    def __init__(self) -> None:
        self.low: Tensor | None = None
        self.high: Tensor | None = None

    def update(self, values: Tensor) -> None:
        if not values.numel():
            return
        low, high = extremes(values)
        self.low = low if self.low is None else torch.minimum(self.low, low)
        self.high = high if self.high is None else torch.maximum(self.high, high)

    def all_reduce(self, group: Any = None) -> None:
        """The extremes over all processes."""
        nothing = torch.tensor(float("-inf"), dtype=torch.float64)
        ends = [nothing if self.low is None else -self.low.cpu(), nothing if self.high is None else self.high.cpu()]
        low, high = reduce_max(torch.stack(ends), group)
        if high >= -low:
            self.low, self.high = -low, high

    def range(self, scheme: Scheme) -> tuple[Tensor, Tensor]:
        if self.low is None or self.high is None:
            raise ValueError("nothing was observed")
        return self.low, self.high


class AbsMaxObserver(MinMaxObserver):
    """The largest absolute value seen; the range is symmetric where values of both signs were seen."""

    def range(self, scheme: Scheme) -> tuple[Tensor, Tensor]:
        low, high = super().range(scheme)
        return _symmetric(torch.maximum(low.abs(), high.abs()), low, high)


class MovingAverageObserver:
    """An exponential average of the batches' extremes, which forgets single outliers.

    Over several processes: the mean of the processes' averages.

    Args:
        decay: share of the old value that stays at each batch (0.9: PaddleSlim's default).
    """

    def __init__(self, decay: float = 0.9) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), not {decay}")
        self.decay = decay
        self.low: Tensor | None = None
        self.high: Tensor | None = None

    def update(self, values: Tensor) -> None:
        if not values.numel():
            return
        low, high = extremes(values)
        self.low = low if self.low is None else self.decay * self.low + (1 - self.decay) * low
        self.high = high if self.high is None else self.decay * self.high + (1 - self.decay) * high

    def all_reduce(self, group: Any = None) -> None:
        """The mean over the processes that saw anything."""
        if self.low is None or self.high is None:
            mine = torch.zeros(3, dtype=torch.float64)
        else:
            mine = torch.stack([self.low.cpu(), self.high.cpu(), torch.ones((), dtype=torch.float64)])
        low, high, count = reduce_sum(mine, group)
        if count:
            self.low, self.high = low / count, high / count

    def range(self, scheme: Scheme) -> tuple[Tensor, Tensor]:
        if self.low is None or self.high is None:
            raise ValueError("nothing was observed")
        return self.low, self.high


class AverageAbsMaxObserver:
    """The mean over samples of a sample's largest absolute value; PaddleSlim calls it ``avg``.

    Samples lie along the first dimension. The range is symmetric where values of both signs were seen. What a few
    samples have beyond the mean is cut.
    """

    def __init__(self) -> None:
        self.extremes = MinMaxObserver()
        self.total = 0.0
        self.samples = 0

    def update(self, values: Tensor) -> None:
        if not values.numel():
            return
        self.extremes.update(values)
        rows = values.detach().reshape(values.shape[0], -1) if values.dim() else values.detach().reshape(1, 1)
        self.total += float(rows.abs().amax(1).double().sum())
        self.samples += len(rows)

    def all_reduce(self, group: Any = None) -> None:
        """The mean over the samples of all processes."""
        self.extremes.all_reduce(group)
        total, samples = reduce_sum(torch.tensor([self.total, self.samples], dtype=torch.float64), group)
        self.total, self.samples = float(total), int(samples)

    def range(self, scheme: Scheme) -> tuple[Tensor, Tensor]:
        low, high = self.extremes.range(scheme)
        return _symmetric(torch.tensor(self.total / self.samples, dtype=torch.float64, device=low.device), low, high)


def extremes(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the smallest and the largest value, 0-dimensional float64.

    Raises:
        ValueError: a value is not finite.
    """
    low, high = (extreme.double() for extreme in values.detach().aminmax())
    if not (low > float("-inf") and high < float("inf")):  # also what is not a number
        raise ValueError("an activation is not finite")
    return low, high


def _symmetric(largest: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    zero = torch.zeros_like(largest)
    return (-largest if low < 0 else zero), (largest if high > 0 else zero)
