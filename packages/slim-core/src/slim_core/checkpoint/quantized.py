"""Float tensors to the integers that they are made of, and back, bit for bit."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from slim_core.checkpoint.packing import Packing, pack4, unpack4
from slim_core.errors import CheckpointError


def to_integers(values: Tensor, packing: Packing, scale: Tensor, zero_point: Tensor | None, name: str) -> Tensor:
    """Return the stored tensor of a float tensor whose values are ``(q - zero_point) * scale``.

    Raises:
        CheckpointError: a value is not exactly of that form, or its integer is outside the range of the bits.
    """
    scale_all = _spread(scale, packing, values)
    zero_all = None if zero_point is None else _spread(zero_point, packing, values)
    wide = torch.round(values.double() / scale_all.double())
    if zero_all is not None:
        wide = wide + zero_all.double()
    integers = torch.nan_to_num(wide, 0.0).clamp(packing.low, packing.high)
    again = _floats(integers.to(torch.float32), scale_all, zero_all, values.dtype)
    wrong = again != values  # true for NaN as well
    if bool(wrong.any()):
        first = tuple(int(position) for position in wrong.nonzero()[0])
        raise CheckpointError(
            f"{int(wrong.sum())} of {values.numel()} values are not {packing.bits}-bit integers times the scale; the "
            f"first, at {list(first)}, is {values[first].item()!r}",
            field=f"tensors.{name}",
            hint="round the weights to the grid that the transform records, or leave this tensor out of its schemes",
        )
    if packing.packing == "int4":
        return torch.from_numpy(pack4(integers.to(torch.int64).numpy()))
    return integers.to(torch.int8 if packing.packing == "int8" else torch.uint8)


def from_integers(
    stored: Tensor, packing: Packing, shape: tuple[int, ...], dtype: torch.dtype, scale: Tensor,
    zero_point: Tensor | None, name: str,
) -> Tensor:  # fmt: skip
    """Return the float tensor that :func:`to_integers` was given.

    Raises:
        CheckpointError: an integer is outside the range of the bits.
    """
    if packing.packing == "int4":
        count = int(np.prod(shape, dtype=np.int64))
        raw = stored.numpy()
        if count % 2 and raw[-1] >> 4:
            raise CheckpointError("the unused half of the last byte is not zero", field=f"tensors.{name}")
        stored = torch.from_numpy(unpack4(raw, count, signed=packing.signed)).reshape(shape)
    if packing.bits < 8 and stored.numel():
        low, high = int(stored.min()), int(stored.max())
        if low < packing.low or high > packing.high:
            raise CheckpointError(
                f"it holds integers from {low} to {high}; {packing.bits} bits go from {packing.low} to {packing.high}",
                field=f"tensors.{name}",
            )
    floats = stored.to(torch.float32)
    zero_all = None if zero_point is None else _spread(zero_point, packing, floats)
    return _floats(floats, _spread(scale, packing, floats), zero_all, dtype)


def _floats(integers: Tensor, scale: Tensor, zero_point: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Do what ``torch.fake_quantize`` does last, in float32."""
    if zero_point is not None:
        integers = integers - zero_point.to(torch.float32)
    return (integers * scale).to(dtype)


def _spread(parameter: Tensor, packing: Packing, values: Tensor) -> Tensor:
    """Return scales or zero points in a shape that broadcasts over ``values``."""
    if packing.granularity == "per_tensor":
        return parameter.reshape(())
    axis = packing.axis or 0
    if packing.granularity == "per_channel":
        return parameter.reshape([-1 if dim == axis else 1 for dim in range(values.dim())])
    groups = torch.arange(values.shape[axis]) // (packing.group_size or 1)
    return parameter.index_select(axis, groups)
