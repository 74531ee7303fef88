"""Scales, zero points and rounding against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from slim_core.errors import SlimError
from slim_quant.observers import weight_range
from slim_quant.schemes import Scheme, dequantize, on_grid, qparams, quantize, scale_shape, sqnr_db, through

SCHEMES = st.builds(Scheme, st.integers(2, 8), st.booleans(), st.just("per_tensor"))
VALUES = arrays(np.float32, st.integers(1, 50), elements=st.floats(-1000, 1000, width=32))


def reference_qparams(low: float, high: float, scheme: Scheme) -> tuple[float, int]:
    """Written out by itself, in numpy."""
    low, high = min(low, 0.0), max(high, 0.0)
    if scheme.symmetric:
        return max(-low, high) / (2 ** (scheme.bits - 1) - 1) or 1.0, 0
    scale = (high - low) / (2**scheme.bits - 1)
    return (scale, int(np.clip(np.rint(-low / scale), 0, 2**scheme.bits - 1))) if scale else (1.0, 0)


@pytest.mark.parametrize(
    ("bits", "symmetric", "ends"),
    [
        (8, True, (-127, 127)),
        (8, False, (0, 255)),
        (4, True, (-7, 7)),
        (4, False, (0, 15)),
        (2, True, (-1, 1)),
        (2, False, (0, 3)),
    ],
)
def test_integer_ranges(bits: int, symmetric: bool, ends: tuple[int, int]) -> None:
    scheme = Scheme(bits, symmetric)
    assert (scheme.qmin, scheme.qmax) == ends


@pytest.mark.parametrize("bits", [1, 9])
def test_other_bits_are_refused(bits: int) -> None:
    with pytest.raises(SlimError, match="2 to 8"):
        Scheme(bits)


def test_an_unknown_granularity_is_refused() -> None:
    with pytest.raises(SlimError, match="unknown granularity 'per_row'"):
        Scheme(granularity="per_row")


@given(values=VALUES, scheme=SCHEMES)
def test_qparams_equal_the_numpy_reference(values: np.ndarray, scheme: Scheme) -> None:
    scale, zero_point = qparams(torch.tensor(values.min()), torch.tensor(values.max()), scheme)
    expected, zero = reference_qparams(float(values.min()), float(values.max()), scheme)
    assert float(scale) == pytest.approx(max(expected, 2.0**-126), rel=1e-6)
    assert int(zero_point) == zero


@given(values=VALUES, scheme=SCHEMES)
def test_the_error_is_at_most_half_a_step_inside_the_range(values: np.ndarray, scheme: Scheme) -> None:
    tensor = torch.from_numpy(values)
    scale, zero_point = qparams(tensor.min(), tensor.max(), scheme)
    error = (on_grid(tensor, scale, zero_point, scheme) - tensor).abs()
    # an affine zero point is rounded, which moves the ends by up to half a step; float32 rounds once more
    bound = scale / 2 if scheme.symmetric else scale
    inside = (tensor >= (scheme.qmin - zero_point) * scale) & (tensor <= (scheme.qmax - zero_point) * scale)
    assert bool((error <= bound + 1e-3 * scale + 1e-30).all())
    assert bool((error[inside] <= scale / 2 + 1e-3 * scale + 1e-30).all())


@given(values=VALUES, scheme=SCHEMES)
def test_zero_is_exact_and_the_grid_is_a_fixed_point(values: np.ndarray, scheme: Scheme) -> None:
    tensor = torch.from_numpy(values)
    scale, zero_point = qparams(tensor.min(), tensor.max(), scheme)
    assert float(on_grid(torch.zeros(()), scale, zero_point, scheme)) == 0.0
    once = on_grid(tensor, scale, zero_point, scheme)
    assert torch.equal(on_grid(once, scale, zero_point, scheme), once)


@given(values=VALUES, scheme=SCHEMES)
def test_the_grid_is_torchs_fake_quantize(values: np.ndarray, scheme: Scheme) -> None:
    tensor = torch.from_numpy(values)
    scale, zero_point = qparams(tensor.min(), tensor.max(), scheme)
    grid = on_grid(tensor, scale, zero_point, scheme)
    fake = torch.fake_quantize_per_tensor_affine(grid, scale, zero_point, scheme.qmin, scheme.qmax)
    assert torch.equal(fake, grid)


def test_per_channel_equals_each_channel_by_itself() -> None:
    weight = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    scheme = Scheme(8, True, "per_channel")
    scale, zero_point = qparams(weight.amin((1, 2, 3)), weight.amax((1, 2, 3)), scheme)
    got = on_grid(weight, scale, zero_point, scheme, axis=0)
    for channel in range(4):
        expected = on_grid(weight[channel], scale[channel], zero_point[channel], scheme)
        assert torch.equal(got[channel], expected)


def test_a_dead_channel_has_scale_one_and_stays_zero() -> None:
    scheme = Scheme(8, True, "per_channel")
    scale, zero_point = qparams(torch.zeros(2), torch.tensor([0.0, 1.0]), scheme)
    assert scale.tolist() == pytest.approx([1.0, 1 / 127])
    assert on_grid(torch.zeros(2, 3), scale, zero_point, scheme).abs().sum() == 0


def test_integers_saturate_and_halves_round_to_even() -> None:
    scale, zero = torch.tensor(1.0), torch.tensor(0, dtype=torch.int32)
    values = torch.tensor([0.5, 1.5, 2.5, -0.5, 300.0, -300.0])
    assert quantize(values, scale, zero, Scheme()).tolist() == [0, 2, 2, 0, 127, -127]
    assert dequantize(torch.tensor([3.0]), torch.tensor(0.5), torch.tensor(1)).tolist() == [1.0]


def test_sqnr_by_hand() -> None:
    assert sqnr_db(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5])) == pytest.approx(10 * np.log10(25 / 0.25))
    assert sqnr_db(torch.ones(2), torch.ones(2)) == float("inf")


@given(st.floats(-40, 0), st.floats(0, 40), st.booleans(), st.sampled_from([4, 8]))
def test_a_scale_through_an_end_has_it_as_a_whole_number_of_steps(
    low: float, high: float, symmetric: bool, bits: int
) -> None:
    scheme = Scheme(bits, symmetric)
    scale, zero_point = through(3.0, torch.tensor(low), torch.tensor(high), scheme)
    wide = min(low, -3.0)
    plain = float(qparams(torch.tensor(wide), torch.tensor(high), scheme)[0])
    steps = 3.0 / float(scale)
    if plain <= 3.0:
        assert steps == pytest.approx(round(steps), rel=1e-6)
        assert plain * (1 - 1e-6) <= float(scale) <= plain * (1 + 1 / round(steps)) * (1 + 1e-6)
        assert int(zero_point) - round(steps) >= (-(1 << (bits - 1)) if symmetric else 0)  # -3 is an integer too
        assert (scheme.qmax - int(zero_point)) * float(scale) >= high - 1.01 * float(scale)
    again = through(3.0, *((end - zero_point) * scale for end in (scheme.qmin, scheme.qmax)), scheme)
    assert float(again[0]) == pytest.approx(float(scale), rel=1e-6)
    assert int(again[1]) == int(zero_point)


@given(
    arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 9)), elements=st.floats(-100, 100, width=32)),
    st.integers(1, 10),
    st.integers(2, 8),
    st.booleans(),
)
def test_each_group_is_quantized_by_itself(values: np.ndarray, size: int, bits: int, symmetric: bool) -> None:
    """Against a loop over rows and groups; the last group may be shorter."""
    scheme = Scheme(bits, symmetric, "per_group", size)
    low, high = weight_range(torch.tensor(values), scheme, 1)
    scale, zero_point = qparams(low, high, scheme)
    assert tuple(scale.shape) == scale_shape(values.shape, scheme, 1)
    found = on_grid(torch.tensor(values), scale, zero_point, scheme, 1)
    alone = Scheme(bits, symmetric, "per_tensor")
    for row in range(len(values)):
        for group in range(0, values.shape[1], size):
            part = torch.tensor(values[row, group : group + size])
            ends = qparams(*weight_range(part, alone, 0), alone)
            assert torch.equal(found[row, group : group + size], on_grid(part, *ends, alone))
            assert bool(((found[row, group : group + size] - part).abs() <= ends[0] * 0.5001).all())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((4, True, "per_group"), "needs a group size"),
        ((4, True, "per_group", 0), "needs a group size"),
        ((4, True, "per_channel", 8), "has no group size"),
    ],
)
def test_a_group_size_stands_with_groups_only(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(SlimError, match=message):
        Scheme(*arguments)


@given(SCHEMES)
def test_schemes_are_json_and_back(scheme: Scheme) -> None:
    assert Scheme.from_json(scheme.to_json()) == scheme
