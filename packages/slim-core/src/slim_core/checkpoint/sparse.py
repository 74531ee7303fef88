"""Sparse tensors as bytes: where the stored elements stand, and their values. numpy only; see ``sparse_tensors``.

Works on bit patterns, unsigned integers of an element's width: an element is zero where all of its bits are. A negative
zero and a NaN are stored like any other value, so what is unpacked equals what was packed bit for bit.

Not here: which tensors are stored like this (``writing``), and what a header says of them (``header``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slim_core.checkpoint import limits
from slim_core.checkpoint.node import Node
from slim_core.checkpoint.packing import pack4, unpack4
from slim_core.errors import CheckpointError

PACKINGS = ("bitmap", "gaps", "blocks", "n_m")
LAYOUTS = ("flat", "channels")

#: A stored tensor unfolds to at most so many times its bytes: what reading allocates is bounded by the file's size.
MAX_UNFOLD = 256
MAX_BLOCK = 4096  # elements of a block
MAX_GROUP = 16  # m of N:M: bounds the table of combinations

Bits = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Sparse:
    """How a tensor's elements are stored.

    Args:
        packing: ``bitmap``: a bit per element, then those that are not zero. ``gaps``: a byte per stored element, how
            many zeros stand before it (255: so many zeros, and no element), then the elements. ``blocks``: a bit per
            block of the matrix, then whole blocks. ``n_m``: for each group of ``m`` columns the number of a
            combination, then ``n`` values each.
        count: how many elements or blocks are stored; 0 for ``n_m``, where every group stores ``n``.
        block: rows and columns of a block.
        index: bytes of ``gaps``.
        n, m: of N:M.
        layout: the matrix: ``flat``, (out, in * kh * kw); ``channels``, one (out, in) for each (kh, kw).
        axis: the tensor's input dimension, 0 or 1.
    """

    packing: str
    count: int = 0
    block: tuple[int, int] | None = None
    index: int = 0
    n: int | None = None
    m: int | None = None
    layout: str | None = None
    axis: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return what the header says: the keys that this packing has."""
        if self.packing == "bitmap":
            return {"packing": "bitmap", "count": self.count}
        if self.packing == "gaps":
            return {"packing": "gaps", "count": self.count, "index": self.index}
        where = {"layout": self.layout, "axis": self.axis}
        if self.packing == "blocks":
            return {"packing": "blocks", "count": self.count, "block": list(self.block or ()), **where}
        return {"packing": "n_m", "n": self.n, "m": self.m, **where}


def read_sparse(node: Node) -> Sparse:
    """Return what the header says of a sparse tensor.

    Raises:
        CheckpointError: names the key that is wrong.
    """
    if type(node.value) is not dict or "packing" not in node.value:
        node.fail("an object with 'packing' was expected")
    kind = node.child("packing").choice(PACKINGS)
    if kind == "bitmap":
        fields = node.record(("packing", "count"))
        return Sparse(kind, fields["count"].whole(0, limits.MAX_SIZE))
    if kind == "gaps":
        fields = node.record(("packing", "count", "index"))
        count, index = (fields[key].whole(0, limits.MAX_SIZE) for key in ("count", "index"))
        return Sparse(kind, count, index=index)
    if kind == "blocks":
        fields = node.record(("packing", "count", "block", "layout", "axis"))
        count = fields["count"].whole(0, limits.MAX_SIZE)
        return Sparse(kind, count, block=_block(fields["block"]), **_view(fields))
    fields = node.record(("packing", "n", "m", "layout", "axis"))
    n, m = _group(fields)
    return Sparse(kind, n=n, m=m, **_view(fields))


def read_hint(node: Node) -> Sparse | None:
    """Return the pattern that a transform's record names for a tensor: ``blocks`` or ``n_m``, or ``None``.

    Raises:
        CheckpointError: names the key that is wrong.
    """
    if type(node.value) is not dict:
        node.fail("an object was expected")
    if not node.value:
        return None
    if "block" in node.value:
        fields = node.record(("block", "layout", "axis"))
        return Sparse("blocks", block=_block(fields["block"]), **_view(fields))
    fields = node.record(("n", "m", "layout", "axis"))
    n, m = _group(fields)
    return Sparse("n_m", n=n, m=m, **_view(fields))


def _view(fields: dict[str, Node]) -> dict[str, Any]:
    return {"layout": fields["layout"].choice(LAYOUTS), "axis": fields["axis"].whole(0, 1)}


def _block(node: Node) -> tuple[int, int]:
    sizes = node.sizes(2, MAX_BLOCK)
    if len(sizes) != 2 or not 1 <= math.prod(sizes) <= MAX_BLOCK:
        node.fail(f"rows and columns of a block were expected, of at most {MAX_BLOCK} elements")
    return sizes[0], sizes[1]


def _group(fields: dict[str, Node]) -> tuple[int, int]:
    m = fields["m"].whole(2, MAX_GROUP)
    return fields["n"].whole(1, m - 1), m


# --- the matrix of a weight ---


def matrix_shape(shape: Sequence[int], layout: str, axis: int) -> tuple[int, int, int]:
    """Return ``(matrices, rows, columns)`` of a weight with this shape.

    Raises:
        CheckpointError: it has fewer than two dimensions.
    """
    if len(shape) < 2:
        raise CheckpointError(f"a tensor of shape {list(shape)} is no matrix")
    outputs, taps = shape[1 - axis], math.prod(shape[2:])
    return (1, outputs, shape[axis] * taps) if layout == "flat" else (taps, outputs, shape[axis])


def to_matrix(weight: Bits, layout: str, axis: int) -> Bits:
    """Return a weight as ``(matrices, rows, columns)``: rows are outputs, columns inputs.

    Args:
        weight: ``(out, in, …)``, or ``(in, out, …)`` where ``axis`` is 0.
        layout: ``flat``: one matrix whose columns are in * kh * kw; ``channels``: a matrix for each (kh, kw).
        axis: the input dimension.
    """
    if axis == 0:
        weight = weight.swapaxes(0, 1)
    if layout == "channels":
        weight = weight.transpose(*range(2, weight.ndim), 0, 1)
        return weight.reshape(math.prod(weight.shape[:-2]), *weight.shape[-2:])
    return weight.reshape(1, weight.shape[0], math.prod(weight.shape[1:]))


def from_matrix(matrix: Bits, shape: Sequence[int], layout: str, axis: int) -> Bits:
    """Return the weight of this shape that :func:`to_matrix` made the matrix of."""
    outer = (shape[1 - axis], shape[axis])
    if layout == "channels":
        weight = matrix.reshape(*shape[2:], *outer)
        weight = weight.transpose(weight.ndim - 2, weight.ndim - 1, *range(weight.ndim - 2))
    else:
        weight = matrix.reshape(*outer, *shape[2:])
    return np.ascontiguousarray(weight.swapaxes(0, 1) if axis == 0 else weight)


def to_blocks(matrix: Bits, rows: int, columns: int) -> Bits:
    """Return ``(matrices, block rows, block columns, rows * columns)``, padded with zeros at the edges."""
    count, height, width = matrix.shape
    down, across = -(-height // rows), -(-width // columns)
    if (down * rows, across * columns) != (height, width):
        matrix = np.pad(matrix, ((0, 0), (0, down * rows - height), (0, across * columns - width)))
    blocks = matrix.reshape(count, down, rows, across, columns).transpose(0, 1, 3, 2, 4)
    return blocks.reshape(count, down, across, rows * columns)


def from_blocks(blocks: Bits, rows: int, columns: int, height: int, width: int) -> Bits:
    """Return the matrices ``(matrices, height, width)`` that :func:`to_blocks` cut; the padding is dropped."""
    count, down, across, _ = blocks.shape
    wide = blocks.reshape(count, down, across, rows, columns).transpose(0, 1, 3, 2, 4)
    return wide.reshape(count, down * rows, across * columns)[:, :height, :width]


# --- sizes ---


def stored_bytes(sparse: Sparse, shape: Sequence[int], bits: int, field: str) -> int:
    """Return how many bytes a tensor takes.

    Args:
        sparse: how it is stored.
        shape: of the tensor.
        bits: of an element: 4, or 8 to 64.
        field: for errors.

    Raises:
        CheckpointError: the tensor cannot be stored like this.
    """
    places = math.prod(shape)
    if sparse.packing == "bitmap":
        index, values = _octets(places), sparse.count
    elif sparse.packing == "gaps":
        index, values = sparse.index, sparse.count
    else:
        if len(shape) < 2:
            raise CheckpointError(f"a tensor of shape {list(shape)} is no matrix", field=field)
        count, height, width = matrix_shape(shape, sparse.layout or "flat", sparse.axis or 0)
        rows, columns = sparse.block or (1, sparse.m or 1)
        places = count * -(-height // rows) * -(-width // columns)
        if sparse.packing == "blocks":
            index, values = _octets(places), sparse.count * rows * columns
        else:
            index, values = _octets(places * _code_bits(sparse.n or 0, sparse.m or 0)), places * (sparse.n or 0)
    if sparse.count > places:
        raise CheckpointError(f"{sparse.count} of {places} elements or blocks cannot be stored", field=field)
    return index + _octets(values * bits)


def choose(elements: Bits, bits: int, hint: Sparse | None, dense: int) -> Sparse | None:
    """Return how a tensor takes the fewest bytes, or ``None`` where nothing is smaller than ``dense`` bytes.

    Args:
        elements: bit patterns in the tensor's shape.
        bits: of an element.
        hint: a pattern to try beside the bitmap; what does not have it is not stored with it.
        dense: what is to be undercut.
    """
    shape = elements.shape
    count = int(np.count_nonzero(elements))
    found = [Sparse("bitmap", count)]
    if 8 * count < elements.size:  # else a byte for each is more than a bit for all
        found.append(Sparse("gaps", count, index=len(_gaps(elements.reshape(-1) != 0))))
    if hint is not None and len(shape) >= 2 and elements.size:
        matrix = to_matrix(elements, hint.layout or "flat", hint.axis or 0)
        if hint.packing == "n_m":
            groups = to_blocks(matrix, 1, hint.m or 1)
            if int(np.count_nonzero(groups, axis=-1).max()) <= (hint.n or 0):
                found.append(hint)
        else:
            blocks = to_blocks(matrix, *(hint.block or (1, 1)))
            count = int(np.count_nonzero(blocks.any(-1)))
            found.append(Sparse("blocks", count, block=hint.block, layout=hint.layout, axis=hint.axis))
    best: Sparse | None = None
    for sparse in found:
        size = stored_bytes(sparse, shape, bits, "")
        if size < dense and unfolds(unfolded(sparse, shape), bits, size):
            best, dense = sparse, size
    return best


def unfolded(sparse: Sparse, shape: Sequence[int]) -> int:
    """Return how many elements unpacking makes room for: those of the tensor, and the padding of its blocks.

    Raises:
        CheckpointError: the tensor has fewer than two dimensions, and blocks need a matrix.
    """
    if sparse.packing in ("bitmap", "gaps"):
        return math.prod(shape)
    count, height, width = matrix_shape(shape, sparse.layout or "flat", sparse.axis or 0)
    rows, columns = sparse.block or (1, sparse.m or 1)
    return count * -(-height // rows) * -(-width // columns) * rows * columns


def unfolds(count: int, bits: int, stored: int) -> bool:
    """Return whether so many elements may be stored in so few bytes."""
    return count * bits <= MAX_UNFOLD * 8 * stored


# --- to bytes and back ---


def pack(elements: Bits, sparse: Sparse, bits: int) -> NDArray[np.uint8]:
    """Return the bytes of a tensor: what says where the values stand, then the values in order.

    Args:
        elements: bit patterns (unsigned integers; one byte each where ``bits`` is 4) in the tensor's shape.
        sparse: what :func:`choose` returned for them.
        bits: of an element.
    """
    if sparse.packing == "bitmap":
        stored = elements.reshape(-1) != 0
        return _joined(np.packbits(stored, bitorder="little"), elements.reshape(-1)[stored], bits)
    if sparse.packing == "gaps":
        stored = elements.reshape(-1) != 0
        return _joined(_gaps(stored), elements.reshape(-1)[stored], bits)
    matrix = to_matrix(elements, sparse.layout or "flat", sparse.axis or 0)
    rows, columns = sparse.block or (1, sparse.m or 1)
    blocks = to_blocks(matrix, rows, columns).reshape(-1, rows * columns)
    if sparse.packing == "blocks":
        stored = blocks.any(-1)
        return _joined(np.packbits(stored, bitorder="little"), blocks[stored], bits)
    # The values of a group, then zeros from the left where it has fewer than n; places ascending.
    n, m = sparse.n or 0, sparse.m or 0
    places = np.sort(np.argsort(blocks == 0, axis=-1, kind="stable")[:, :n], axis=-1)
    codes = _numbers(n, m)[(1 << places).sum(-1)]
    width = _code_bits(n, m)
    index = np.packbits((codes[:, None] >> np.arange(width)) & 1, bitorder="little")
    return _joined(index, np.take_along_axis(blocks, places, -1), bits)


def unpack(stored: NDArray[np.uint8], sparse: Sparse, shape: Sequence[int], dtype: Any, bits: int, field: str) -> Bits:
    """Return the bit patterns that :func:`pack` was given. The number of bytes must be that of :func:`stored_bytes`.

    Raises:
        CheckpointError: the bytes contradict themselves.
    """
    if sparse.packing == "bitmap":
        total = math.prod(shape)
        where = _places(stored, total, sparse.count, field)
        elements = np.zeros(total, dtype)
        elements[where] = _values(stored[_octets(total) :], sparse.count, dtype, bits, field)
        return elements.reshape(tuple(shape))
    if sparse.packing == "gaps":
        total = math.prod(shape)
        positions = _positions(stored[: sparse.index], total, sparse.count, field)
        elements = np.zeros(total, dtype)
        elements[positions] = _values(stored[sparse.index :], sparse.count, dtype, bits, field)
        return elements.reshape(tuple(shape))
    count, height, width = matrix_shape(shape, sparse.layout or "flat", sparse.axis or 0)
    rows, columns = sparse.block or (1, sparse.m or 1)
    down, across = -(-height // rows), -(-width // columns)
    total = count * down * across
    blocks = np.zeros((total, rows * columns), dtype)
    if sparse.packing == "blocks":
        where = _places(stored, total, sparse.count, field)
        values = _values(stored[_octets(total) :], sparse.count * rows * columns, dtype, bits, field)
        blocks[where] = values.reshape(-1, rows * columns)
    else:
        n, m = sparse.n or 0, sparse.m or 0
        octets = _octets(total * _code_bits(n, m))
        codes = _codes(stored[:octets], total, n, m, field)
        values = _values(stored[octets:], total * n, dtype, bits, field).reshape(-1, n)
        np.put_along_axis(blocks, _combinations(n, m)[codes], values, -1)
    blocks = blocks.reshape(count, down, across, rows * columns)
    matrix = from_blocks(blocks, rows, columns, height, width)
    if np.count_nonzero(matrix) != np.count_nonzero(blocks):
        raise CheckpointError("the padding of its blocks is not zero", field=field)
    return from_matrix(matrix, shape, sparse.layout or "flat", sparse.axis or 0)


def _gaps(stored: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return the bytes of ``gaps`` for these places."""
    zeros = np.diff(np.flatnonzero(stored), prepend=-1) - 1  # before each stored element
    skips = zeros // 255
    index = np.full(len(zeros) + int(skips.sum()), 255, np.uint8)
    index[np.cumsum(skips + 1) - 1] = zeros % 255
    return index


def _positions(index: NDArray[np.uint8], total: int, count: int, field: str) -> NDArray[np.int64]:
    """Return where the elements stand that ``gaps`` describes."""
    ends = np.cumsum(np.where(index == 255, np.int64(255), index.astype(np.int64) + 1))
    positions: NDArray[np.int64] = ends[index != 255] - 1
    if len(positions) != count:
        raise CheckpointError(f"its gaps lead to {len(positions)} places, and {count} values are stored", field=field)
    if len(index) and (index[-1] == 255 or int(ends[-1]) > total):
        raise CheckpointError("its gaps do not end inside the tensor", field=field)
    return positions


def _joined(index: NDArray[np.uint8], values: Bits, bits: int) -> NDArray[np.uint8]:
    flat = np.ascontiguousarray(values).reshape(-1)
    data = pack4(flat.astype(np.int64)) if bits == 4 else flat.view(np.uint8)
    return np.concatenate([index, data])


def _places(stored: NDArray[np.uint8], total: int, count: int, field: str) -> NDArray[np.bool_]:
    flags = np.unpackbits(stored[: _octets(total)], bitorder="little")
    if flags[total:].any():
        raise CheckpointError("the unused bits behind its bitmap are not zero", field=field)
    found = int(np.count_nonzero(flags))
    if found != count:
        raise CheckpointError(f"its bitmap has {found} bits set, and {count} values are stored", field=field)
    return flags[:total].view(np.bool_)


def _values(stored: NDArray[np.uint8], count: int, dtype: Any, bits: int, field: str) -> Bits:
    if bits == 4:
        if count % 2 and stored[-1] >> 4:
            raise CheckpointError("the unused half of the last byte is not zero", field=field)
        return unpack4(stored, count, signed=False).astype(dtype)
    return stored.view(dtype)


def _codes(stored: NDArray[np.uint8], total: int, n: int, m: int, field: str) -> NDArray[np.int64]:
    width = _code_bits(n, m)
    flags = np.unpackbits(stored, bitorder="little")
    if flags[total * width :].any():
        raise CheckpointError("the unused bits behind its codes are not zero", field=field)
    table = flags[: total * width].reshape(total, width)
    codes = np.zeros(total, np.int64)
    for bit in range(width):
        codes |= table[:, bit].astype(np.int64) << bit
    if total and int(codes.max()) >= math.comb(m, n):
        raise CheckpointError(f"a code is {int(codes.max())}; {n}:{m} has {math.comb(m, n)} of them", field=field)
    return codes


def _octets(bits: int) -> int:
    return -(-bits // 8)


def _code_bits(n: int, m: int) -> int:
    return max(1, (math.comb(m, n) - 1).bit_length())


@lru_cache(maxsize=8)
def _combinations(n: int, m: int) -> NDArray[np.int64]:
    """Return all choices of n places of m, ascending each, in lexicographic order: ``(combinations, n)``."""
    return np.array(list(combinations(range(m), n)), np.int64)


@lru_cache(maxsize=8)
def _numbers(n: int, m: int) -> NDArray[np.int64]:
    """Return the number of the combination for each set of places as a bit mask."""
    table = np.zeros(1 << m, np.int64)
    table[(1 << _combinations(n, m)).sum(-1)] = np.arange(math.comb(m, n))
    return table
