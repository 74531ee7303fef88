"""Running sums from which SQNRs come: over everything, and per channel. Memory does not grow with the batches."""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: dB that stand for "no difference", so that every figure is a JSON number
EXACT_DB = 200.0
#: a channel counts as scaled where its gain is further from 1 than this factor
GAIN = 2.0**0.25


def decibels(signal: float, noise: float) -> float | None:
    """Return the power of the signal over that of the noise, in dB, at most :data:`EXACT_DB`.

    ``None`` where there is no signal but noise.
    """
    if noise == 0:
        return EXACT_DB
    if signal == 0:
        return None
    return round(max(min(10 * math.log10(signal / noise), EXACT_DB), -EXACT_DB), 2)


class Sums:
    """Compares two tensors over any number of batches.

    Args:
        channels: the axis of the channels, from the end where it is negative.
    """

    def __init__(self, channels: int) -> None:
        self._axis = channels
        self._sums: Tensor | None = None  # (4, channels): reference squared, other squared, product, difference squared
        self.max_diff = 0.0
        self.samples = 0

    def update(self, reference: Tensor, other: Tensor) -> None:
        """Add a batch; both tensors have the same shape."""
        self.samples += reference.shape[0] if reference.dim() else 1
        difference = (other.double() - reference.double()).abs()
        if difference.numel():
            self.max_diff = max(self.max_diff, float(difference.max()))
        rows = [
            self._by_channel(first.double() * second.double())
            for first, second in ((reference, reference), (other, other), (reference, other), (difference, difference))
        ]
        added = torch.stack(rows)
        self._sums = added if self._sums is None else self._sums + added

    def sqnr_db(self) -> float | None:
        """Return the SQNR over everything."""
        if self._sums is None:
            return None
        return decibels(float(self._sums[0].sum()), float(self._sums[3].sum()))

    def worst(self) -> tuple[int, float] | None:
        """Return the channel with the lowest SQNR among those with a signal, and its SQNR."""
        if self._sums is None or self._sums.shape[1] < 2:
            return None
        figures = [
            decibels(float(signal), float(noise)) for signal, noise in zip(self._sums[0], self._sums[3], strict=True)
        ]
        known = [(figure, channel) for channel, figure in enumerate(figures) if figure is not None]
        if not known:
            return None
        figure, channel = min(known)
        return channel, figure

    def gains(self) -> Tensor:
        """Return per channel the factor that brings the reference closest to the other: 1 where nothing is known."""
        if self._sums is None:
            return torch.ones(1, dtype=torch.float64)
        signal, product = self._sums[0], self._sums[2]
        return torch.where(signal > 0, product / signal.clamp(min=1e-300), torch.ones_like(signal))

    def rescaled(self) -> bool:
        """Tell whether channels were scaled on purpose: gains far from 1 that explain nearly all of the difference.

        Equalization scales a channel in one layer and divides it out in the next.
        """
        if self._sums is None:
            return False
        gains = self.gains()
        far = (gains > GAIN) | ((gains < 1 / GAIN) & (gains > 0))
        explained, plain = self.sqnr_of_shape(), self.sqnr_db()
        return bool(far.any()) and explained is not None and (plain is None or explained > plain + 6)

    def sqnr_of_shape(self) -> float | None:
        """Return the SQNR against the reference with each channel scaled by its gain."""
        if self._sums is None:
            return None
        signal, other, product, _ = self._sums
        gains = self.gains()
        noise = (other - 2 * gains * product + gains.square() * signal).clamp(min=0)
        return decibels(float((gains.square() * signal).sum()), float(noise.sum()))

    def _by_channel(self, values: Tensor) -> Tensor:
        if values.dim() < 2:
            return values.sum().reshape(1)
        axis = self._axis % values.dim()
        return values.sum([dim for dim in range(values.dim()) if dim != axis])
