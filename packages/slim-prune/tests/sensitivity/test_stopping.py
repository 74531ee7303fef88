"""The interval of early stopping: closed forms, its coverage on drawn data, and what counts as decided."""

from __future__ import annotations

import numpy as np
import pytest

from slim_core.errors import SlimError
from slim_prune.sensitivity.stopping import Differences, EarlyStop


def seen(values: np.ndarray, total: int, confidence: float = 0.95, spread: float | None = 1.0) -> Differences:
    found = Differences(total, confidence, spread)
    found.add(values)
    return found


def test_nothing_is_uncertain_when_all_samples_were_seen() -> None:
    assert seen(np.array([0.0, 1.0, -1.0]), 3).margin == 0.0


def test_without_samples_everything_is() -> None:
    assert Differences(10, 0.95).margin == float("inf")


def test_the_margin_of_a_share_is_that_of_agresti_and_coull() -> None:
    values = np.r_[np.full(30, -1.0), np.zeros(370)]
    z, n = 1.959964, 400
    variance = (30 - 30**2 / n + z**2 / 2) / (n + z**2)
    expected = z * np.sqrt(variance * (4000 - n) / (4000 - 1) / (n + z**2))
    assert seen(values, 4000).margin == pytest.approx(expected, rel=1e-5)


def test_no_difference_so_far_is_no_certainty() -> None:
    assert seen(np.zeros(500), 10_000).margin > 0.003


@pytest.mark.parametrize("share", [0.002, 0.02, 0.2])
def test_the_interval_holds_the_true_difference(share: float) -> None:
    rng = np.random.default_rng(0)
    everything = np.where(rng.random(2000) < share, rng.choice([-1.0, 1.0], 2000, p=[0.8, 0.2]), 0.0)
    hits = 0
    for _ in range(400):
        found = seen(rng.permutation(everything)[:300], 2000)
        hits += abs(found.mean - everything.mean()) <= found.margin
    assert hits >= 0.94 * 400


def test_batches_add_up() -> None:
    values = np.random.default_rng(1).normal(size=90)
    parts = Differences(1000, 0.99)
    for part in np.split(values, 3):
        parts.add(part)
    assert parts.margin == pytest.approx(seen(values, 1000, 0.99, None).margin)
    assert parts.mean == pytest.approx(values.mean())


def test_what_counts_as_decided() -> None:
    stop = EarlyStop(tolerance=0.01, relative=0.1, ceiling=0.5, min_samples=100)
    assert not stop.decided(0.0, 0.0, 99)
    assert stop.decided(0.0, 0.01, 100)
    assert not stop.decided(0.0, 0.011, 100)
    assert stop.decided(0.2, 0.02, 100)  # a tenth of the drop
    assert stop.decided(0.7, 0.15, 100)  # surely above the ceiling
    assert not stop.decided(0.6, 0.15, 100)


@pytest.mark.parametrize("options", [{"tolerance": 0.0}, {"relative": -1.0}, {"confidence": 1.0}])
def test_settings_without_sense_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(SlimError, match="early stopping"):
        EarlyStop(**options)
