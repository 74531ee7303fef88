"""Weights on their grids, against a reference in numpy that loops over groups."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from slim_core.errors import SlimError
from slim_quant.schemes import Scheme
from slim_quant.weight_only.packed import PackedWeight
from slim_quant.weight_only.rounding import packed


def drawn(rows: int, columns: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator) * torch.rand(rows, 1, generator=generator) * 3


def scheme_of(bits: int, symmetric: bool, group: int | None, single: bool = False) -> Scheme:
    if single:
        return Scheme(bits, symmetric, "per_tensor")
    return Scheme(bits, symmetric, "per_channel" if group is None else "per_group", group)


def reference(weight: Tensor, bits: int, symmetric: bool, group: int | None) -> np.ndarray:
    """Round each group of each row by itself, in the arithmetic of float32 where the definition has it."""
    values = weight.numpy()
    result = np.empty_like(values)
    size = group or values.shape[1]
    for row in range(values.shape[0]):
        for start in range(0, values.shape[1], size):
            part = values[row, start : start + size]
            low, high = min(float(part.min()), 0.0), max(float(part.max()), 0.0)
            if symmetric:
                limit = 2 ** (bits - 1) - 1
                scale, zero, ends = np.float32(max(-low, high) / limit), 0, (-limit, limit)
            else:
                scale, ends = np.float32((high - low) / (2**bits - 1)), (0, 2**bits - 1)
                zero = int(np.clip(np.rint(-low / ((high - low) / (2**bits - 1))), *ends))
            integers = np.clip(np.rint(part / scale) + zero, *ends).astype(np.float32)
            result[row, start : start + size] = (integers - np.float32(zero)) * scale
    return result


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 6), st.integers(1, 40), st.integers(2, 8), st.booleans(), st.none() | st.integers(1, 48),
    st.integers(0, 2**30),
)  # fmt: skip
def test_weights_are_rounded_as_the_reference_does(
    rows: int, columns: int, bits: int, symmetric: bool, group: int | None, seed: int
) -> None:
    weight = drawn(rows, columns, seed)
    done = packed(weight, 1, scheme_of(bits, symmetric, group))
    assert np.array_equal(done.floats().numpy(), reference(weight, bits, symmetric, group))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 6), st.integers(1, 40), st.integers(2, 8), st.booleans(), st.none() | st.integers(1, 48),
    st.booleans(), st.integers(0, 2**30),
)  # fmt: skip
def test_the_error_is_half_a_step_at_most(
    rows: int, columns: int, bits: int, symmetric: bool, group: int | None, single: bool, seed: int
) -> None:
    weight = drawn(rows, columns, seed)
    done = packed(weight, 1, scheme_of(bits, symmetric, group, single))
    steps = done._by_group(torch.mul, torch.ones(rows, columns), done.scale, None)
    # with a zero point the range moves by up to half a step, which the values at one end then lack as well
    bound = 0.5 if symmetric else 1.0
    assert bool(((done.floats() - weight).abs() <= bound * steps * (1 + 1e-5) + 1e-7).all())


def test_zero_stays_zero_with_zero_points() -> None:
    weight = drawn(4, 32, 0).abs() + 1
    weight[:, 3] = 0
    assert bool((packed(weight, 1, Scheme(4, False, "per_group", 8)).floats()[:, 3] == 0).all())


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_searched_ranges_have_no_larger_error(bits: int) -> None:
    weight = drawn(16, 96, 1)
    weight[:, 0] *= 6
    scheme = Scheme(bits, True, "per_group", 32)
    plain, searched = (packed(weight, 1, scheme, clip).floats() - weight for clip in ("abs_max", "mse"))
    assert float(searched.square().sum()) < 0.93 * float(plain.square().sum())


def test_the_input_axis_may_come_first() -> None:
    weight, scheme = drawn(6, 40, 2), Scheme(4, False, "per_group", 16)
    turned = packed(weight.t().contiguous(), 0, scheme)
    assert turned.layout.shape == (40, 6)
    assert torch.equal(turned.floats(), packed(weight, 1, scheme).floats().t())


def test_rows_are_read_one_by_one() -> None:
    done = packed(drawn(9, 40, 3), 1, Scheme(4, False, "per_group", 16))
    rows = torch.tensor([[3, 0], [8, 3]])
    assert torch.equal(done.floats(rows), done.floats()[rows])


@pytest.mark.parametrize(
    ("bits", "group", "share"), [(4, 64, 0.145), (4, 32, 0.1641), (8, None, 0.253), (3, 64, 0.114)]
)
def test_the_packed_form_takes_the_bytes_that_the_bits_say(bits: int, group: int | None, share: float) -> None:
    weight = drawn(64, 1024, 4)
    done = packed(weight, 1, scheme_of(bits, bits == 8, group))
    parts: list[Tensor] = [part for part in (done.packed, done.scale, done.zero_point) if part is not None]
    assert sum(part.numel() * part.element_size() for part in parts) <= share * weight.numel() * 4


def test_half_precision_keeps_its_dtype() -> None:
    weight = drawn(8, 64, 5).half()
    done: PackedWeight = packed(weight, 1, Scheme(8, True, "per_channel"))
    assert done.floats().dtype == torch.float16
    assert float((done.floats() - weight).abs().max()) <= 0.51 * float(done.scale.max()) + 1e-3


def test_weights_that_are_not_finite_are_refused() -> None:
    weight = drawn(4, 8, 6)
    weight[1, 2] = float("nan")
    with pytest.raises(SlimError, match="not finite"):
        packed(weight, 1, Scheme())
