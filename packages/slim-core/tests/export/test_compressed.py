"""Packed weights in ONNX graphs: how rows are packed, and which blocks the kernels get."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slim_core.export.compressed import BLOCKS, kernel_block, pack_rows, unpack_rows
from slim_core.export.mode import as_onnx, exporting


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(1, 40), st.sampled_from([2, 4, 8]), st.integers(0, 2**30))
def test_unpacking_rows_gives_back_what_was_packed(rows: int, columns: int, bits: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 1 << bits, (rows, columns))
    packed = pack_rows(values, bits)
    assert packed.shape == (rows, -(-columns * bits // 8))
    assert np.array_equal(unpack_rows(packed, bits, columns), values)


@pytest.mark.parametrize(
    ("block", "columns", "expected"),
    [
        (32, 128, 32), (16, 100, 16), (64, 100, 64), (512, 2048, 512),  # sizes that kernels have
        (48, 96, 16), (96, 384, 32), (160, 640, 32),  # several blocks to a group
        (20, 100, None), (8, 64, None), (7, 70, None),  # smaller than any block
        (384, 384, 128), (1000, 96, 32), (100, 100, 32), (5, 5, 16),  # one group for the row
    ],
)  # fmt: skip
def test_blocks_divide_groups_into_what_kernels_take(block: int, columns: int, expected: int | None) -> None:
    assert kernel_block(block, columns) == expected


@settings(deadline=None)
@given(st.integers(1, 3000), st.integers(1, 3000))
def test_blocks_are_powers_of_two_that_divide_the_group_or_cover_the_row(block: int, columns: int) -> None:
    found = kernel_block(block, columns)
    if found is not None:
        assert found & (found - 1) == 0
        assert found >= BLOCKS[-1]
        assert block >= columns or block % found == 0


def test_a_forward_can_tell_that_it_is_exported_only_inside() -> None:
    assert exporting() is None
    with as_onnx() as record:
        assert exporting() is record
        with as_onnx() as inner:
            assert exporting() is inner
        assert exporting() is record
    assert exporting() is None
