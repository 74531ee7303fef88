"""The way to the budget: closed forms."""

from __future__ import annotations

import math

import pytest

from slim_prune.schedules.path import asymptotic, limit_at, shares


def test_geometric_steps_take_the_same_share_each() -> None:
    limits = [limit_at(1000, 125, share, "geometric") for share in shares(3)]
    assert limits == pytest.approx([500, 250, 125])


def test_linear_steps_take_the_same_amount_each() -> None:
    assert [limit_at(1000, 400, share, "linear") for share in shares(3)] == pytest.approx([800, 600, 400])


def test_cubic_steps_follow_zhu_and_gupta() -> None:
    final = 0.9
    for share in (0.1, 0.5, 0.9):
        sparsity = final + (0 - final) * (1 - share) ** 3  # their equation 1 with initial sparsity 0
        assert limit_at(100, 10, share, "cubic") == pytest.approx(100 * (1 - sparsity))


@pytest.mark.parametrize("spacing", ["geometric", "linear", "cubic"])
def test_the_end_is_the_limit_to_the_bit_and_the_way_falls(spacing) -> None:
    limit = 123.456789
    limits = [limit_at(1000.0, limit, share, spacing) for share in shares(7)]
    assert limits[-1] == limit
    assert limits == sorted(limits, reverse=True)


def test_a_limit_that_is_met_already_stays() -> None:
    assert limit_at(100, 150, 0.5, "geometric") == 150


def test_the_asymptotic_rate_goes_through_its_three_points() -> None:
    assert asymptotic(0) == 0
    assert asymptotic(1 / 8) == pytest.approx(3 / 4, abs=1e-12)
    assert asymptotic(1) == pytest.approx(1, abs=1e-15)
    # a * exp(-k * t) + b with k from the three points
    ratio = (asymptotic(0.5) - asymptotic(0.25)) / (asymptotic(0.75) - asymptotic(0.5))
    k = 4 * math.log(ratio)
    assert asymptotic(0.3) == pytest.approx((1 - math.exp(-k * 0.3)) / (1 - math.exp(-k)))
