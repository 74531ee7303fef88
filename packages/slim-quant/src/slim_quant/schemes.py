"""Quantization schemes and their arithmetic: integer ranges, scales and zero points, rounding. No graphs here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from slim_core.errors import SlimError

Granularity = Literal["per_tensor", "per_channel"]

#: Smallest scale: with it, an int8 range ends at 1.5e-36, still a normal float32.
SMALLEST_SCALE = 2.0**-126


@dataclass(frozen=True, slots=True)
class Scheme:
    """How a tensor becomes integers.

    Args:
        bits: 2 to 8.
        symmetric: zero point 0 and a range without the most negative integer (-127..127); otherwise unsigned with a
            zero point (0..255).
        granularity: one scale for the tensor ("layer-wise") or one per channel ("channel-wise").

    Raises:
        SlimError: other bits, or an unknown granularity.
    """

    bits: int = 8
    symmetric: bool = True
    granularity: Granularity = "per_tensor"

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise SlimError(f"a scheme has 2 to 8 bits, not {self.bits}")
        if self.granularity not in get_args(Granularity):
            raise SlimError(
                f"unknown granularity '{self.granularity}'", hint=f"known: {', '.join(get_args(Granularity))}"
            )

    @property
    def qmin(self) -> int:
        return 1 - (1 << (self.bits - 1)) if self.symmetric else 0

    @property
    def qmax(self) -> int:
        return (1 << (self.bits - 1)) - 1 if self.symmetric else (1 << self.bits) - 1


def qparams(low: Tensor, high: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Return scale (float32) and zero point (int32) for values between ``low`` and ``high``, elementwise.

    Zero is always representable exactly. A range of no extent (a dead channel) gets the scale 1: its values are exact.
    """
    low = torch.minimum(low.double(), torch.zeros((), dtype=torch.float64, device=low.device))
    high = torch.maximum(high.double(), torch.zeros((), dtype=torch.float64, device=high.device))
    if scheme.symmetric:
        scale = torch.maximum(-low, high) / scheme.qmax
        zero_point = torch.zeros_like(scale)
    else:
        scale = (high - low) / (scheme.qmax - scheme.qmin)
        safe = torch.where(scale > 0, scale, torch.ones_like(scale))
        zero_point = torch.clamp(torch.round(scheme.qmin - low / safe), scheme.qmin, scheme.qmax)
    scale = torch.where(scale > 0, scale.clamp(min=SMALLEST_SCALE), torch.ones_like(scale))
    return scale.float(), zero_point.int()


def quantize(values: Tensor, scale: Tensor, zero_point: Tensor, scheme: Scheme, axis: int = 0) -> Tensor:
    """Return the integers, as float32: round half to even, then saturate."""
    scale, zero_point = _along(scale, values, axis), _along(zero_point, values, axis)
    return torch.clamp(torch.round(values / scale) + zero_point, scheme.qmin, scheme.qmax)


def dequantize(integers: Tensor, scale: Tensor, zero_point: Tensor, axis: int = 0) -> Tensor:
    """Return ``(integers - zero_point) * scale``."""
    return (integers - _along(zero_point, integers, axis)) * _along(scale, integers, axis)


def on_grid(values: Tensor, scale: Tensor, zero_point: Tensor, scheme: Scheme, axis: int = 0) -> Tensor:
    """Return the nearest representable values."""
    return dequantize(quantize(values, scale, zero_point, scheme, axis), scale, zero_point, axis)


def sqnr_db(reference: Tensor, other: Tensor) -> float:
    """Power of ``reference`` over power of the difference, in dB; ``inf`` when they are equal."""
    noise = float((reference.double() - other.double()).square().sum())
    signal = float(reference.double().square().sum())
    if noise == 0:
        return float("inf")
    return float(10 * torch.log10(torch.tensor(max(signal, 1e-300) / noise, dtype=torch.float64)))


def _along(parameter: Tensor, values: Tensor, axis: int) -> Tensor:
    if parameter.dim() == 0:
        return parameter
    shape = [1] * values.dim()
    shape[axis] = -1
    return parameter.view(shape)
