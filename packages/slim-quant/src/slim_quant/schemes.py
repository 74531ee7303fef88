"""Quantization schemes and their arithmetic: integer ranges, scales and zero points, rounding. No graphs here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from slim_core.errors import SlimError

Granularity = Literal["per_tensor", "per_channel", "per_group"]

#: Smallest scale: with it, an int8 range ends at 1.5e-36, still a normal float32.
SMALLEST_SCALE = 2.0**-126


@dataclass(frozen=True, slots=True)
class Scheme:
    """How a tensor becomes integers.

    Args:
        bits: 2 to 8.
        symmetric: zero point 0 and a range without the most negative integer (-127..127); otherwise unsigned with a
            zero point (0..255).
        granularity: one scale for the tensor ("layer-wise"), one per channel ("channel-wise"), or one per
            ``group_size`` neighbours along the input axis (weights of linear layers and embeddings).
        group_size: only per group; the last group of a row may be shorter.

    Raises:
        SlimError: other bits, an unknown granularity, or a group size that is missing or has no use.
    """

    bits: int = 8
    symmetric: bool = True
    granularity: Granularity = "per_tensor"
    group_size: int | None = None

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise SlimError(f"a scheme has 2 to 8 bits, not {self.bits}")
        if self.granularity not in get_args(Granularity):
            raise SlimError(
                f"unknown granularity '{self.granularity}'", hint=f"known: {', '.join(get_args(Granularity))}"
            )
        if self.granularity == "per_group" and (self.group_size is None or self.group_size < 1):
            raise SlimError("a scheme per group needs a group size of at least 1", hint="group_size=32, for instance")
        if self.granularity != "per_group" and self.group_size is not None:
            raise SlimError(f"a scheme {self.granularity} has no group size", hint='granularity="per_group" has one')

    @property
    def qmin(self) -> int:
        return 1 - (1 << (self.bits - 1)) if self.symmetric else 0

    @property
    def qmax(self) -> int:
        return (1 << (self.bits - 1)) - 1 if self.symmetric else (1 << self.bits) - 1

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON; ``group_size`` stands there only where it has a meaning."""
        found: dict[str, Any] = {"bits": self.bits, "symmetric": self.symmetric, "granularity": self.granularity}
        return found if self.group_size is None else found | {"group_size": self.group_size}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Scheme:
        """Return the scheme that :meth:`to_json` wrote; what does not stand there has its default.

        Raises:
            SlimError: there is no such setting, or not with this value.
        """
        unknown = sorted(set(data) - {"bits", "symmetric", "granularity", "group_size"})
        if unknown:
            raise SlimError(
                f"a scheme has no setting '{unknown[0]}'", hint="known: bits, symmetric, granularity, group_size"
            )
        return cls(**data)


#: What activations are unless the caller says otherwise: unsigned, one scale for the tensor.
ACTIVATION = Scheme(bits=8, symmetric=False, granularity="per_tensor")
#: What weights are unless the caller says otherwise: signed and symmetric, one scale per output channel.
WEIGHT = Scheme(bits=8, symmetric=True, granularity="per_channel")


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


def through(end: float, low: Tensor, high: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Return scale and zero point for a range widened to ``-end``, with ``end`` a whole number of steps.

    The steps are as fine as that allows: at most 1 / n coarser than :func:`qparams`, if ``end`` has n of those. A range
    in which ``end`` is less than a step is left as it is.
    """
    low, high = torch.clamp(low.double(), max=-end), torch.clamp(high.double(), min=0.0)
    fine = (torch.maximum(-low, high) / scheme.qmax) if scheme.symmetric else (high - low) / (scheme.qmax - scheme.qmin)
    steps = torch.floor(end / fine * (1 + 1e-6))  # a float32 scale may lie a little beside end / n
    if float(steps) < 1:
        return qparams(low, high, scheme)
    scale = end / steps
    zero_point = torch.zeros_like(scale)
    if not scheme.symmetric:
        zero_point = torch.clamp(torch.round(scheme.qmin - low / scale), scheme.qmin + float(steps), scheme.qmax)
    return scale.float(), zero_point.int()


def quantize(values: Tensor, scale: Tensor, zero_point: Tensor, scheme: Scheme, axis: int = 0) -> Tensor:
    """Return the integers, as float32: round half to even, then saturate.

    Args:
        values: any shape.
        scale: 0-dimensional; one per index of ``axis``; or per group the shape of ``values`` with one entry for each
            group along ``axis``.
        zero_point: of the same shape.
        scheme: bits, symmetry, group size.
        axis: of the channels, or along which groups lie.
    """
    scale, zero_point = (spread(item, values, axis, scheme.group_size) for item in (scale, zero_point))
    return torch.clamp(torch.round(values / scale) + zero_point, scheme.qmin, scheme.qmax)


def dequantize(
    integers: Tensor, scale: Tensor, zero_point: Tensor, axis: int = 0, group_size: int | None = None
) -> Tensor:
    """Return ``(integers - zero_point) * scale``."""
    scale, zero_point = (spread(item, integers, axis, group_size) for item in (scale, zero_point))
    return (integers - zero_point) * scale


def on_grid(values: Tensor, scale: Tensor, zero_point: Tensor, scheme: Scheme, axis: int = 0) -> Tensor:
    """Return the nearest representable values."""
    integers = quantize(values, scale, zero_point, scheme, axis)
    return dequantize(integers, scale, zero_point, axis, scheme.group_size)


def spread(parameter: Tensor, values: Tensor, axis: int, group_size: int | None = None) -> Tensor:
    """Return scales or zero points in a shape that broadcasts against ``values``."""
    if parameter.dim() == 0:
        return parameter
    if group_size is not None:
        return parameter.repeat_interleave(group_size, axis).narrow(axis, 0, values.shape[axis])
    shape = [1] * values.dim()
    shape[axis] = -1
    return parameter.view(shape)


def scale_shape(shape: tuple[int, ...], scheme: Scheme, axis: int) -> tuple[int, ...]:
    """Return the shape of the scales of a tensor of ``shape``."""
    if scheme.granularity == "per_tensor":
        return ()
    if scheme.granularity == "per_channel":
        return (shape[axis],)
    return (*shape[:axis], -(-shape[axis] // int(scheme.group_size or 1)), *shape[axis + 1 :])


def sqnr_db(reference: Tensor, other: Tensor) -> float:
    """Power of ``reference`` over power of the difference, in dB; ``inf`` when they are equal."""
    noise = float((reference.double() - other.double()).square().sum())
    signal = float(reference.double().square().sum())
    if noise == 0:
        return float("inf")
    return float(10 * torch.log10(torch.tensor(max(signal, 1e-300) / noise, dtype=torch.float64)))
