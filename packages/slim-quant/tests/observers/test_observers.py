"""Observers against closed forms and numpy, in one batch and in many."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slim_core.errors import UnknownNameError
from slim_quant.observers import (
    OBSERVERS,
    Histogram,
    MovingAverageObserver,
    PercentileObserver,
    make_observer,
    weight_range,
)
from slim_quant.schemes import Scheme, on_grid, qparams

AFFINE = Scheme(8, False)


def normal(count: int = 200_000) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(0))


def observed(name: str, *batches: torch.Tensor, scheme: Scheme = AFFINE) -> tuple[float, float]:
    observer = make_observer(name)
    for batch in batches:
        observer.update(batch)
    low, high = observer.range(scheme)
    return float(low), float(high)


def error(values: torch.Tensor, low: float, high: float, scheme: Scheme) -> float:
    scale, zero_point = qparams(torch.tensor(low), torch.tensor(high), scheme)
    return float((on_grid(values, scale, zero_point, scheme) - values).square().mean())


def test_min_max_is_numpys() -> None:
    batches = normal().split(1000)
    whole = normal().numpy()
    assert observed("min_max", *batches) == (whole.min(), whole.max())


def test_abs_max_is_symmetric_where_both_signs_occur() -> None:
    assert observed("abs_max", torch.tensor([-1.0, 3.0]), torch.tensor([-5.0, 2.0])) == (-5.0, 5.0)
    assert observed("abs_max", torch.tensor([0.0, 3.0])) == (0.0, 3.0)


def test_the_moving_average_is_the_recurrence() -> None:
    highs = [4.0, 8.0, 2.0]
    observer = MovingAverageObserver(0.9)
    for high in highs:
        observer.update(torch.tensor([-1.0, high]))
    low, high = observer.range(AFFINE)
    assert float(high) == pytest.approx(0.9 * (0.9 * 4 + 0.1 * 8) + 0.1 * 2)
    assert float(low) == -1.0


@pytest.mark.parametrize("share", [0.9, 0.99, 0.999])
def test_percentiles_of_uniform_values_are_the_closed_form(share: float) -> None:
    values = torch.linspace(0, 10, 100_001)
    observer = PercentileObserver(share)
    for batch in values.split(999):
        observer.update(batch)
    assert float(observer.range(AFFINE)[1]) == pytest.approx(10 * share, abs=2 * 10 / 2048)


def test_two_sided_percentiles_equal_numpys_to_a_bin() -> None:
    observer = PercentileObserver(0.99)
    for batch in normal().split(777):
        observer.update(batch)
    low, high = (float(end) for end in observer.range(AFFINE))
    expected = np.quantile(normal().numpy(), [0.005, 0.995])
    assert (low, high) == pytest.approx(expected, abs=2 * observer.histogram.width)


def test_mse_keeps_the_whole_range_of_uniform_values() -> None:
    """For uniform values clipping never pays at 8 bits: the error is step^2 / 12 at the full range."""
    low, high = observed("mse", torch.linspace(-1, 3, 100_001))
    assert (low, high) == pytest.approx((-1, 3), rel=0.02)


def test_mse_of_a_normal_at_four_bits_is_the_threshold_of_least_error() -> None:
    """Against a search over 251 thresholds with the error computed on the values themselves."""
    low, high = observed("mse", *normal().split(5000), scheme=Scheme(4, True))
    best = min(np.linspace(1.5, 4, 251), key=lambda clip: error(normal(), -clip, clip, Scheme(4, True)))
    assert max(-low, high) == pytest.approx(best, rel=0.03)


@pytest.mark.parametrize("bits", [4, 8])
def test_mse_is_never_worse_than_min_max_or_percentile(bits: int) -> None:
    scheme = Scheme(bits, False)
    values = torch.cat([normal().abs() * 2, torch.tensor([60.0])])  # one outlier
    errors = {name: error(values, *observed(name, values, scheme=scheme), scheme) for name in OBSERVERS}
    assert errors["mse"] <= 1.01 * min(errors.values())
    assert errors["mse"] < 0.9 * errors["min_max"]


@pytest.mark.parametrize("name", OBSERVERS)
def test_one_sided_values_get_zero_as_their_end(name: str) -> None:
    low, high = observed(name, normal().abs())
    scale, zero_point = qparams(torch.tensor(low), torch.tensor(high), AFFINE)
    assert int(zero_point) == 0
    assert float(scale) > 0


@pytest.mark.parametrize("name", OBSERVERS)
def test_zeros_only_are_a_range_of_no_extent(name: str) -> None:
    assert observed(name, torch.zeros(10), torch.zeros(3)) == (0.0, 0.0)


@pytest.mark.parametrize("name", OBSERVERS)
def test_an_observer_that_saw_nothing_says_so(name: str) -> None:
    with pytest.raises(ValueError, match="nothing was observed"):
        make_observer(name).range(AFFINE)


@pytest.mark.parametrize("name", ["percentile", "mse"])
def test_values_that_are_not_finite_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="not finite"):
        make_observer(name).update(torch.tensor([1.0, math.nan]))


def test_an_unknown_observer_has_a_close_match() -> None:
    with pytest.raises(UnknownNameError, match="percentil") as caught:
        make_observer("percentiles")
    assert "'percentile'" in str(caught.value.hint)


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=60), st.integers(1, 20))
def test_histograms_lose_no_value_and_place_each_in_its_bin(values: list[float], size: int) -> None:
    histogram = Histogram(64)
    for batch in torch.tensor(values).split(size):
        histogram.update(batch)
    assert int(histogram.counts.sum()) == len(values)
    if histogram.reach:
        centers = histogram.centers()
        for center, count in zip(centers, histogram.counts, strict=True):
            near = sum(abs(value - float(center)) <= histogram.width / 2 * (1 + 1e-3) + 1e-6 for value in values)
            assert count <= near


def test_a_histograms_memory_is_bounded() -> None:
    histogram = Histogram(64)
    for power in range(40):
        histogram.update(torch.full((10,), 2.0**power))
    assert len(histogram.counts) == 64
    assert int(histogram.counts.sum()) == 400


@pytest.mark.parametrize("axis", [0, 1])
def test_weight_ranges_per_channel_are_numpys(axis: int) -> None:
    weight = torch.randn(4, 5, 3, 3, generator=torch.Generator().manual_seed(0))
    low, high = weight_range(weight, Scheme(8, True, "per_channel"), axis)
    expected = np.abs(weight.numpy()).max(axis=tuple(dim for dim in range(4) if dim != axis))
    np.testing.assert_array_equal(high.numpy(), expected)
    np.testing.assert_array_equal(low.numpy(), -expected)


def test_a_weight_range_per_tensor_is_one_number() -> None:
    low, high = weight_range(torch.tensor([[1.0, -3.0], [2.0, 0.5]]), Scheme(8, True), 0)
    assert (float(low), float(high)) == (-3.0, 3.0)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_least_error_ranges_of_weights_beat_the_extremes_in_every_channel(bits: int) -> None:
    scheme = Scheme(bits, True, "per_channel")
    weight = torch.randn(8, 200, generator=torch.Generator().manual_seed(1)) ** 3

    def errors(observer: str) -> torch.Tensor:
        scale, zero_point = qparams(*weight_range(weight, scheme, 0, observer), scheme)
        return (on_grid(weight, scale, zero_point, scheme) - weight).square().sum(1)

    assert bool((errors("mse") <= errors("abs_max")).all())
    if bits < 8:
        assert float(errors("mse").sum()) < 0.95 * float(errors("abs_max").sum())
