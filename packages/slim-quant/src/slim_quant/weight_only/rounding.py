"""A weight to its packed form: scales per tensor, channel or group, and round to nearest. No models here."""

from __future__ import annotations

import torch
from torch import Tensor

from slim_core.errors import SlimError
from slim_quant.observers import weight_range
from slim_quant.schemes import Scheme, qparams, quantize
from slim_quant.weight_only.packed import Layout, PackedWeight

#: values that are searched at once, so that a large embedding takes little memory
_CHUNK = 2**22


def layout_of(shape: tuple[int, int], axis: int, scheme: Scheme) -> Layout:
    """Return how a weight of ``shape`` with the input axis ``axis`` is stored under ``scheme``."""
    columns = shape[axis]
    group = min(scheme.group_size or columns, columns)
    return Layout(shape, axis, scheme.bits, max(group, 1), not scheme.symmetric, scheme.granularity == "per_tensor")


def packed(weight: Tensor, axis: int, scheme: Scheme, clip: str = "abs_max") -> PackedWeight:
    """Return ``weight`` rounded to the nearest value of its scheme's grid.

    Args:
        weight: ``(out, in)``, or ``(in, out)`` where ``axis`` is 0.
        axis: the input axis: groups lie along it, channels along the other.
        scheme: bits, symmetry, granularity, group size.
        clip: how ranges are found: ``"abs_max"`` (every value is in range) or ``"mse"`` (the range of least squared
            error is searched).

    Raises:
        SlimError: the weight is not finite.
        UnknownNameError: an unknown ``clip``.
    """
    rows = _rows(weight, axis)
    if not bool(torch.isfinite(rows).all()):
        raise SlimError("a weight holds values that are not finite", hint="train the model again, or skip this layer")
    scale, zero_point = _qparams(rows, scheme, clip)
    return onto(weight, axis, scheme, scale, zero_point)


def onto(weight: Tensor, axis: int, scheme: Scheme, scale: Tensor, zero_point: Tensor) -> PackedWeight:
    """Return ``weight`` rounded to the grid of these scales and zero points, in the form of ``slim_quant.schemes``.

    The scales are taken in the weight's dtype, which dequantizing uses.
    """
    layout, rows = layout_of((weight.shape[0], weight.shape[1]), axis, scheme), _rows(weight, axis)
    scale = scale.to(weight.dtype)
    along = 1 if scheme.granularity == "per_group" else 0
    integers = quantize(rows, scale.float(), zero_point, scheme, along)
    form = layout.forms()["scale"][0]
    zero = zero_point.reshape(form) if layout.affine else None
    return PackedWeight.of(integers.to(torch.int16), scale.reshape(form).contiguous(), zero, layout)


def _rows(weight: Tensor, axis: int) -> Tensor:
    values = weight.detach().float()
    return values if axis == 1 else values.t()


def _qparams(rows: Tensor, scheme: Scheme, clip: str) -> tuple[Tensor, Tensor]:
    along = 1 if scheme.granularity == "per_group" else 0
    if scheme.granularity == "per_tensor":
        return qparams(*weight_range(rows, scheme, along, clip), scheme)
    step = max(1, _CHUNK // max(rows.shape[1], 1))
    parts = [qparams(*weight_range(part, scheme, along, clip), scheme) for part in torch.split(rows, step)]
    return torch.cat([scale for scale, _ in parts]), torch.cat([zero for _, zero in parts])
