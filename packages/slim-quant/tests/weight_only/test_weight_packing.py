"""Integers as bits in bytes: every width, every shape, against bits written out by numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slim_core.checkpoint.packing import pack4, unpack4
from slim_core.export.compressed import pack_rows, unpack_rows
from slim_quant.weight_only.packing import bytes_of, pack, unpack

shapes = st.lists(st.integers(0, 5), max_size=2).flatmap(
    lambda lead: st.integers(1, 40).map(lambda last: (*lead, last))
)


def drawn(shape: tuple[int, ...], bits: int, seed: int) -> torch.Tensor:
    return torch.randint(0, 1 << bits, shape, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None)
@given(shapes, st.integers(1, 8), st.integers(0, 2**30))
def test_unpacking_gives_back_what_was_packed(shape: tuple[int, ...], bits: int, seed: int) -> None:
    values = drawn(shape, bits, seed)
    packed = pack(values, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (*shape[:-1], bytes_of(shape[-1], bits))
    assert torch.equal(unpack(packed, bits, shape[-1]), values.to(torch.uint8))


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 8), st.integers(0, 2**30))
def test_rows_are_little_endian_streams_of_bits(columns: int, bits: int, seed: int) -> None:
    values = drawn((3, columns), bits, seed)
    stream = ((values.numpy()[..., None] >> np.arange(bits)) & 1).reshape(3, -1).astype(np.uint8)
    assert np.array_equal(pack(values, bits).numpy(), np.packbits(stream, axis=1, bitorder="little"))
    assert np.array_equal(unpack_rows(pack(values, bits).numpy(), bits, columns), values.numpy())


@settings(deadline=None)
@given(st.integers(1, 40), st.sampled_from([2, 4, 8]), st.integers(0, 2**30))
def test_the_exporter_packs_as_the_model_does(columns: int, bits: int, seed: int) -> None:
    values = drawn((3, columns), bits, seed)
    assert np.array_equal(pack_rows(values.numpy(), bits), pack(values, bits).numpy())


@settings(deadline=None)
@given(st.integers(1, 20), st.integers(0, 2**30))
def test_four_bits_lie_as_in_checkpoints(pairs: int, seed: int) -> None:
    values = drawn((2 * pairs,), 4, seed)
    assert np.array_equal(pack(values, 4).numpy(), pack4(values.numpy()))
    assert np.array_equal(unpack4(pack(values, 4).numpy(), 2 * pairs, signed=False), values.numpy())


@pytest.mark.parametrize("bits", [0, 9])
def test_other_widths_are_refused(bits: int) -> None:
    with pytest.raises(ValueError, match="1 to 8 bits"):
        pack(torch.zeros(4, dtype=torch.int64), bits)


@pytest.mark.parametrize("value", [-1, 8])
def test_values_that_do_not_fit_are_refused(value: int) -> None:
    with pytest.raises(ValueError, match="do not fit into 3 bits"):
        pack(torch.tensor([0, value]), 3)


def test_rows_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="take 2 bytes, not 3"):
        unpack(torch.zeros(2, 3, dtype=torch.uint8), 4, 4)
