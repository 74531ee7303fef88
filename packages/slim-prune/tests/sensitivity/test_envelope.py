"""The monotone envelope against the closed form of isotonic regression, and reading it between counts."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slim_prune.sensitivity.envelope import Envelope

DROPS = st.lists(st.floats(-1, 1), min_size=1, max_size=8)


def isotonic(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The min-max formula for the non-increasing fit: smallest over starts of the largest mean over ends."""
    n = len(values)

    def mean(a: int, b: int) -> float:
        return float(np.average(values[a : b + 1], weights=weights[a : b + 1]))

    return np.array([min(max(mean(a, b) for b in range(i, n)) for a in range(i + 1)) for i in range(n)])


@given(drops=DROPS, seed=st.integers(0, 99))
def test_the_envelope_is_the_isotonic_fit_without_gains(drops: list[float], seed: int) -> None:
    weights = np.random.default_rng(seed).integers(1, 9, len(drops)).astype(float)
    envelope = Envelope.of(range(1, len(drops) + 1), drops, len(drops) + 1, weights)
    expected = np.maximum(isotonic(np.array(drops), weights), 0)
    assert envelope.drops[:-1] == pytest.approx(expected.tolist(), abs=1e-12)
    assert envelope.drops[-1] == 0.0


@given(drops=DROPS)
def test_the_envelope_never_rises_with_kept_units(drops: list[float]) -> None:
    envelope = Envelope.of(range(2, 2 * len(drops) + 2, 2), drops, 2 * len(drops) + 2)
    values = [envelope(count) for count in range(1, envelope.counts[-1] + 1)]
    assert all(left >= right - 1e-12 for left, right in pairwise(values))
    assert min(values) >= 0


def test_a_monotone_curve_stays_and_is_read_on_the_line() -> None:
    envelope = Envelope.of([4, 8], [0.5, 0.1], 16)
    assert envelope.drops == (0.5, 0.1, 0.0)
    assert envelope(6) == pytest.approx(0.3)
    assert envelope(12) == pytest.approx(0.05)
    assert envelope(2) == pytest.approx(0.7)  # the line goes on below


def test_gains_are_noise() -> None:
    assert Envelope.of([4, 8], [-0.3, -0.1], 16).drops == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("kept", [0, 17])
def test_counts_outside_the_group_are_refused(kept: int) -> None:
    with pytest.raises(ValueError, match="cannot be kept"):
        Envelope.of([4], [0.5], 16)(kept)
