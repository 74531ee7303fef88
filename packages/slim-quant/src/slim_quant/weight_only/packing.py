"""Rows of small integers packed into bytes, for 1 to 8 bits, and back. Pure functions; no scales here.

A row is a little-endian stream of bits: value ``i`` takes the bits ``i * bits`` to ``(i + 1) * bits - 1``, the lowest
first, and each row begins at a byte of its own. So 4 bits lie two to a byte, the first in the low half, as in int4
checkpoints and in the operators of the runtimes; 3 bits take three bytes for eight values, across byte borders.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

#: values that fill whole bytes together, whatever their bits
_BLOCK = 8


def bytes_of(columns: int, bits: int) -> int:
    """Return how many bytes a row of ``columns`` values takes."""
    return (columns * bits + 7) // 8


def pack(values: Tensor, bits: int) -> Tensor:
    """Return ``values`` packed along the last dimension.

    Args:
        values: integers from 0 to ``2**bits - 1``, of any integer dtype: ``(…, columns)``.
        bits: 1 to 8.

    Returns:
        uint8, ``(…, bytes_of(columns, bits))``; bits that are left over are zero.

    Raises:
        ValueError: other bits, or a value that does not fit.
    """
    _check(bits)
    if values.numel() and (int(values.min()) < 0 or int(values.max()) >= 1 << bits):
        raise ValueError(f"values from {int(values.min())} to {int(values.max())} do not fit into {bits} bits")
    if bits == 8:
        return values.to(torch.uint8)
    columns = values.shape[-1]
    if bits in (1, 2, 4):  # whole values to a byte
        each = 8 // bits
        halves = _parts(F.pad(values.to(torch.uint8), (0, -columns % each)), each)
        packed = halves[..., 0].clone()
        for position in range(1, each):
            packed |= halves[..., position] << (bits * position)
        return packed
    wide = _parts(F.pad(values.long(), (0, -columns % _BLOCK)), _BLOCK)
    word = (wide << _shifts(bits, _BLOCK, values)).sum(-1)  # eight values: `bits` bytes
    octets = (word.unsqueeze(-1) >> _shifts(8, bits, values)) & 0xFF
    return octets.to(torch.uint8).flatten(-2)[..., : bytes_of(columns, bits)].contiguous()


def unpack(packed: Tensor, bits: int, columns: int) -> Tensor:
    """Return the ``columns`` values of each row that :func:`pack` made, as uint8.

    Raises:
        ValueError: other bits, or rows of another length.
    """
    _check(bits)
    if packed.shape[-1] != bytes_of(columns, bits):
        raise ValueError(
            f"{columns} values of {bits} bits take {bytes_of(columns, bits)} bytes, not {packed.shape[-1]}"
        )
    if bits == 8:
        return packed
    if bits in (1, 2, 4):
        parts = [(packed >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)]
        return torch.stack(parts, -1).flatten(-2)[..., :columns]
    octets = _parts(F.pad(packed.long(), (0, -packed.shape[-1] % bits)), bits)
    word = (octets << _shifts(8, bits, packed)).sum(-1)
    values = (word.unsqueeze(-1) >> _shifts(bits, _BLOCK, packed)) & ((1 << bits) - 1)
    return values.to(torch.uint8).flatten(-2)[..., :columns]


def _parts(values: Tensor, size: int) -> Tensor:
    """Cut the last dimension into parts of ``size``."""
    return values.reshape(*values.shape[:-1], values.shape[-1] // size, size)


def _shifts(step: int, count: int, like: Tensor) -> Tensor:
    return torch.arange(0, step * count, step, device=like.device)


def _check(bits: int) -> None:
    if not 1 <= bits <= 8:
        raise ValueError(f"1 to 8 bits can be packed, not {bits}")
