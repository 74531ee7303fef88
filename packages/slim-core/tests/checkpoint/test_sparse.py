"""Sparse tensors in and out of bytes: bit for bit, in as many bytes as the closed form says, never more than dense."""

from __future__ import annotations

import checkpoint_kit as kit
import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slim_core.checkpoint.packing import Packing
from slim_core.checkpoint.quantized import from_integers, to_integers
from slim_core.checkpoint.sparse import Sparse, from_matrix, stored_bytes, to_matrix
from slim_core.checkpoint.sparse_tensors import from_sparse, to_sparse

DTYPES = {torch.float64: 64, torch.float32: 32, torch.float16: 16, torch.bfloat16: 16}


@st.composite
def patterns(draw, shape: tuple[int, ...]):
    """Draw how a tensor of a shape may be stored; ``count`` is left open."""
    kinds = ["bitmap"] if len(shape) < 2 else ["bitmap", "blocks", "n_m"]
    kind = draw(st.sampled_from(kinds))
    if kind == "bitmap":
        return Sparse(kind)
    where = {"layout": draw(st.sampled_from(["flat", "channels"])), "axis": draw(st.integers(0, 1))}
    if kind == "blocks":
        return Sparse(kind, block=(draw(st.integers(1, 5)), draw(st.integers(1, 5))), **where)
    m = draw(st.integers(2, 8))
    return Sparse(kind, n=draw(st.integers(1, m - 1)), m=m, **where)


def shaped(weight: np.ndarray, sparse: Sparse) -> tuple[np.ndarray, int]:
    """Return the weight with zeros where N:M wants them, and the count of the form; by explicit loops."""
    if sparse.packing == "bitmap":
        return weight, int(np.count_nonzero(weight))
    matrix = to_matrix(weight, sparse.layout, sparse.axis).copy()
    taps, height, width = matrix.shape
    count = 0
    if sparse.packing == "n_m":
        for tap, row in np.ndindex(taps, height):
            for start in range(0, width, sparse.m):
                left = sparse.n
                for column in range(start, min(start + sparse.m, width)):
                    if left == 0:
                        matrix[tap, row, column] = 0
                    left -= int(matrix[tap, row, column] != 0)
    else:
        rows, columns = sparse.block
        for tap, top, left in np.ndindex(taps, -(-height // rows), -(-width // columns)):
            block = matrix[tap, top * rows : (top + 1) * rows, left * columns : (left + 1) * columns]
            count += int(bool(np.count_nonzero(block)))
    return from_matrix(matrix, weight.shape, sparse.layout, sparse.axis), count


@st.composite
def cases(draw):
    """Draw a dtype, bit patterns with a density of zeros, and a form that stores them."""
    shape = tuple(draw(st.lists(st.integers(0, 6), min_size=1, max_size=4)))
    dtype = draw(st.sampled_from(sorted(DTYPES, key=str)))
    sparse = draw(patterns(shape))
    rng = np.random.RandomState(draw(st.integers(0, 2**31)))
    bits = DTYPES[dtype]
    raw = rng.randint(0, 256, (*shape, bits // 8)).astype(np.uint8)  # every bit pattern: NaN with payload, -0.0, …
    elements = raw.reshape(-1).view(f"u{bits // 8}").reshape(shape)
    elements = np.where(rng.rand(*shape) < draw(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0])), 0, elements)
    elements, count = shaped(elements.astype(f"u{bits // 8}"), sparse)
    if sparse.packing != "n_m":
        sparse = Sparse(sparse.packing, count, block=sparse.block, layout=sparse.layout, axis=sparse.axis)
    return dtype, shape, sparse, torch.from_numpy(elements.view(f"i{bits // 8}").copy()).view(dtype)


@settings(max_examples=300, deadline=None)
@given(cases())
def test_every_bit_comes_back_from_as_many_bytes_as_the_closed_form_says(case) -> None:
    dtype, shape, sparse, values = case
    stored = to_sparse(values, None, shape, sparse)
    assert stored.dtype == torch.uint8
    assert tuple(stored.shape) == (stored_bytes(sparse, shape, DTYPES[dtype], ""),)
    again = from_sparse(stored, None, shape, dtype, sparse, "w")
    assert (again.dtype, tuple(again.shape)) == (dtype, shape)
    assert not values.numel() or kit.bits(again) == kit.bits(values)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["int8", "uint8", "int4"]), st.integers(0, 2**31), st.data())
def test_integers_come_back_too(kind, seed, data) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)))
    sparse = data.draw(patterns(shape))
    packing = Packing(kind, 4 if kind == "int4" else 8, kind != "uint8", "per_tensor", None, None, "s", None)
    rng = np.random.RandomState(seed)
    integers = rng.randint(packing.low, packing.high + 1, shape) * (rng.rand(*shape) < 0.5)
    integers, count = shaped(integers, sparse)
    if sparse.packing != "n_m":
        sparse = Sparse(sparse.packing, count, block=sparse.block, layout=sparse.layout, axis=sparse.axis)
    scale = torch.tensor(0.25)
    floats = torch.from_numpy(integers.astype(np.float32)) * scale
    dense = to_integers(floats, packing, scale, None, "w")
    stored = to_sparse(dense, packing, shape, sparse)
    bits = 4 if kind == "int4" else 8
    assert len(stored) == stored_bytes(sparse, shape, bits, "")
    again = from_sparse(stored, packing, shape, dense.dtype, sparse, "w")
    assert torch.equal(again, dense)
    assert torch.equal(from_integers(again, packing, shape, torch.float32, scale, None, "w"), floats)
