"""Observers that keep two numbers: the extremes, or averages of the batches' extremes."""

from __future__ import annotations

import torch
from torch import Tensor

from slim_quant.schemes import Scheme


class MinMaxObserver:
    """The smallest and the largest value seen."""

    def __init__(self) -> None:
        self.low: Tensor | None = None
        self.high: Tensor | None = None

    def update(self, values: Tensor) -> None:
        if not values.numel():
            return
        low, high = (extreme.double() for extreme in values.detach().aminmax())
        self.low = low if self.low is None else torch.minimum(self.low, low)
        self.high = high if self.high is None else torch.maximum(self.high, high)

    def range(self, scheme: Scheme) -> tuple[Tensor, Tensor]:
        if self.low is None or self.high is None:
            raise ValueError("nothing was observed")
        return self.low, self.high


class AbsMaxObserver(MinMaxObserver):
    """The largest absolute value seen; the range is symmetric where values of both signs were seen."""

    def range(self, scheme: Scheme) -> tuple[Tensor, Tensor]:
        low, high = super().range(scheme)
        largest = torch.maximum(low.abs(), high.abs())
        zero = torch.zeros_like(largest)
        return (-largest if low < 0 else zero), (largest if high > 0 else zero)


class MovingAverageObserver:
    """An exponential average of the batches' extremes, which forgets single outliers.

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
        low, high = (extreme.double() for extreme in values.detach().aminmax())
        self.low = low if self.low is None else self.decay * self.low + (1 - self.decay) * low
        self.high = high if self.high is None else self.decay * self.high + (1 - self.decay) * high

    def range(self, scheme: Scheme) -> tuple[Tensor, Tensor]:
        if self.low is None or self.high is None:
            raise ValueError("nothing was observed")
        return self.low, self.high
