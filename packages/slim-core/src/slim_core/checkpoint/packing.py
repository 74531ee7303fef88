"""Quantized tensors as integers: the description, shapes, and int4 packed two to a byte. numpy only; see ``quantized``.

The integers are exact: dequantizing, ``(q - zero_point) * scale`` in float32, gives back every bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slim_core.errors import CheckpointError

PACKINGS = ("int8", "uint8", "int4")

#: dtypes that a zero point may have
INTEGER_RANGE = ("int64", "int32", "int16", "int8", "uint8")


@dataclass(frozen=True, slots=True)
class Packing:
    """How a float tensor became integers.

    Args:
        packing: ``int8`` and ``uint8`` take a byte each; ``int4`` two values to a byte, the first in the low half.
        bits: 2 to 8 (``int4``: to 4): bounds the integers.
        signed: ``-2**(bits-1)`` to ``2**(bits-1) - 1``, or 0 to ``2**bits - 1``.
        granularity: one scale per tensor, per index of ``axis``, or per ``group_size`` neighbours along ``axis``.
        axis: the dimension; ``None`` per tensor.
        group_size: only per group; the last group may be shorter.
        scale: stored name of the float32 scales, a transform's tensor or one of the state dict.
        zero_point: stored name of the integer zero points, or ``None`` for 0.
    """

    packing: str
    bits: int
    signed: bool
    granularity: str
    axis: int | None
    group_size: int | None
    scale: str
    zero_point: str | None

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}

    @property
    def low(self) -> int:
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def high(self) -> int:
        return (1 << (self.bits - 1 if self.signed else self.bits)) - 1


def packed_form(packing: Packing, shape: Sequence[int]) -> tuple[str, tuple[int, ...]]:
    """Return dtype and shape of the stored tensor."""
    if packing.packing == "int4":
        return "uint8", ((math.prod(shape) + 1) // 2,)
    return packing.packing, tuple(shape)


def scale_shape(packing: Packing, shape: Sequence[int], field: str) -> tuple[tuple[int, ...], ...]:
    """Return the shapes that the scales may have, the usual one first.

    Raises:
        CheckpointError: the axis is not a dimension of the tensor.
    """
    if packing.granularity == "per_tensor":
        return (), (1,)
    axis = packing.axis
    if axis is None or axis >= len(shape):
        raise CheckpointError(f"axis {axis} is not a dimension of {list(shape)}", field=f"{field}.axis")
    if packing.granularity == "per_channel":
        return ((shape[axis],),)
    size = packing.group_size or 1
    return ((*shape[:axis], -(-shape[axis] // size), *shape[axis + 1 :]),)


def pack4(values: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return integers of four bits, two to a byte: the first of a pair in the low half, a missing one as zero."""
    halves = (values.reshape(-1) & 0xF).astype(np.uint8)
    if halves.size % 2:
        halves = np.concatenate([halves, np.zeros(1, np.uint8)])
    return np.bitwise_or(halves[0::2], np.left_shift(halves[1::2], np.uint8(4)), dtype=np.uint8)


def unpack4(packed: NDArray[np.uint8], count: int, *, signed: bool) -> NDArray[np.int8]:
    """Return ``count`` integers as int8 of what :func:`pack4` made."""
    halves = np.empty(packed.size * 2, np.uint8)
    halves[0::2] = packed & 0xF
    halves[1::2] = packed >> 4
    values = halves[:count].astype(np.int8)
    if signed:
        values = np.where(values > 7, values - 16, values).astype(np.int8)
    return values
