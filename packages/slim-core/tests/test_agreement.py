"""Differences of outputs: hand-computed, and where numbers are missing."""

from __future__ import annotations

import math

import numpy as np
import pytest

from slim_core.agreement import difference
from slim_core.export.parity import measure
from slim_core.measure.agree import compare

NAN, INF = math.nan, math.inf


def arrays(one: list[complex], other: list[complex]) -> tuple[np.ndarray, np.ndarray]:
    return np.array(one), np.array(other)


def test_figures_are_those_computed_by_hand() -> None:
    found = difference([arrays([3.0, 4.0], [3.0, 4.5]), arrays([-5.0], [-5.0])])
    assert (found.max_diff, found.largest) == (0.5, 5.0)
    assert found.sqnr_db == pytest.approx(10 * math.log10((9 + 16 + 25) / 0.25))


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ([1.0, 2.0], [NAN, NAN], NAN),
        ([NAN, NAN], [1.0, 2.0], NAN),
        ([NAN, 2.0], [1.0, NAN], NAN),
        ([1.0, INF], [NAN, 2.0], NAN),
        ([NAN, 2.0], [NAN, 2.5], 0.5),
        ([INF, -INF, 1.0], [INF, -INF, 1.25], 0.25),
        ([INF], [-INF], INF),
        ([INF], [1e30], INF),
        ([1.0], [-INF], INF),
        ([], [], 0.0),
        ([1 + 1j], [1 - 1j], 2.0),
    ],
)
def test_what_is_no_number_must_stand_in_the_same_places(
    one: list[complex], other: list[complex], expected: float
) -> None:
    for pairs in ([arrays(one, other)], [arrays([5.0], [5.0]), arrays(one, other), arrays([1.0], [1.0])]):
        assert difference(pairs).max_diff == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("quantized", [False, True])
def test_outputs_of_nothing_but_nan_pass_neither_check(quantized: bool) -> None:
    reference, broken = np.ones((2, 3), np.float32), np.full((2, 3), np.nan, np.float32)
    assert not measure([(reference, broken)], (2,)).acceptable(quantized=quantized)
    assert not compare([reference], [broken], None if quantized else 1e-3, "broken").ok


def test_a_reference_with_nan_accepts_the_same_nan() -> None:
    values = np.array([NAN, 1.0])
    assert measure([(values, values)], (1,)).acceptable(quantized=False)
    assert compare([values], [values], 1e-3, "same").ok
