"""Statistics against closed forms and tables."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest

from slim_core.measure import stats


class TestMedianInterval:
    @pytest.mark.parametrize(
        ("count", "low", "high"), [(6, 1, 6), (10, 2, 9), (15, 4, 12), (20, 6, 15), (30, 10, 21), (50, 18, 33)]
    )
    def test_ends_are_the_order_statistics_of_the_sign_test_tables(self, count: int, low: int, high: int) -> None:
        found = stats.median_interval(list(range(count, 0, -1)))
        assert found[:2] == (low, high)

    @pytest.mark.parametrize("count", [6, 7, 10, 31, 100])
    def test_the_confidence_is_the_binomial_sum(self, count: int) -> None:
        low, _, confidence = stats.median_interval(list(range(1, count + 1)))
        outside = sum(comb(count, k) for k in range(int(low))) / 2**count
        assert confidence == pytest.approx(1 - 2 * outside)
        assert confidence >= 0.95

    def test_it_is_the_tightest_that_keeps_the_confidence(self) -> None:
        for count in range(6, 60):
            low, _, _ = stats.median_interval(list(range(1, count + 1)))
            tighter = sum(comb(count, k) for k in range(int(low) + 1)) / 2**count
            assert 1 - 2 * tighter < 0.95

    @pytest.mark.parametrize(("count", "confidence"), [(1, 0.0), (2, 0.5), (3, 0.75), (5, 0.9375)])
    def test_few_values_give_their_range_and_own_up_to_it(self, count: int, confidence: float) -> None:
        assert stats.median_interval(list(range(count))) == (0, count - 1, pytest.approx(confidence))

    def test_many_values(self) -> None:
        low, high, confidence = stats.median_interval(list(range(10_000)))
        # normal approximation: n/2 +- 1.96 sqrt(n)/2
        assert (low, high) == (pytest.approx(4902, abs=2), pytest.approx(5098, abs=2))
        assert confidence == pytest.approx(0.95, abs=2e-3)

    def test_it_covers_the_median_of_a_skewed_distribution_as_often_as_it_says(self) -> None:
        generator = np.random.default_rng(0)
        draws = generator.lognormal(sigma=1.5, size=(1000, 15))  # true median: 1
        inside = [low <= 1 <= high for low, high, _ in map(stats.median_interval, draws)]
        expected = stats.median_interval(range(15))[2]
        assert np.mean(inside) == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / 1000))

    def test_nothing_is_an_error(self) -> None:
        with pytest.raises(ValueError, match="no values"):
            stats.median_interval([])


class TestNoise:
    def test_equal_samples_have_none(self) -> None:
        assert stats.noise_floor([3.0] * 10) == 0

    def test_it_is_relative(self) -> None:
        samples = list(np.random.default_rng(1).normal(10, 1, 40))
        assert stats.noise_floor([7 * value for value in samples]) == pytest.approx(stats.noise_floor(samples))

    def test_it_is_the_mean_disagreement_of_random_halves(self) -> None:
        # the median of n normal samples has the deviation 1.2533 s / sqrt(n) for large n; the mean absolute difference
        # of two such medians is sqrt(2) * that * sqrt(2 / pi)
        generator = np.random.default_rng(2)
        found = np.mean([stats.noise_floor(generator.normal(100, 1, 100)) for _ in range(60)])
        expected = 1.2533 / np.sqrt(50) * np.sqrt(2) * np.sqrt(2 / np.pi) / 100
        assert found == pytest.approx(expected, rel=0.1)

    def test_four_samples_at_least(self) -> None:
        assert stats.noise_floor([1, 2, 3]) is None
        assert stats.noise_floor([1, 1, 1, 1]) == 0

    def test_the_same_samples_give_the_same(self) -> None:
        samples = [1.0, 2.0, 4.0, 8.0, 16.0]
        assert stats.noise_floor(samples) == stats.noise_floor(samples)


class TestDrift:
    def test_the_later_half_against_the_earlier(self) -> None:
        assert stats.drift([1.0, 1.0, 1.0, 1.2, 1.2, 1.2]) == pytest.approx(0.2)
        assert stats.drift([2.0, 2.0, 1.0, 1.0]) == pytest.approx(-0.5)

    def test_the_middle_of_an_odd_number_belongs_to_neither(self) -> None:
        assert stats.drift([1.0, 1.0, 99.0, 1.0, 1.0]) == 0

    def test_four_samples_at_least(self) -> None:
        assert stats.drift([1.0, 2.0, 3.0]) is None


def test_quartiles() -> None:
    assert stats.quartiles([1, 2, 3, 4, 5]) == (2, 3, 4)
