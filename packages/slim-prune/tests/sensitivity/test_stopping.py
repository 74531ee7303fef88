"""The interval of early stopping: closed forms, its coverage on drawn data, and what counts as decided."""

from __future__ import annotations

import numpy as np
import pytest

from slim_core.errors import SlimError
from slim_prune.sensitivity.stopping import Differences, EarlyStop, SurestLast, surest_last


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


def asked(
    margins: np.ndarray, pruned: np.ndarray, count: int, rng: np.random.Generator, size: int = 128
) -> tuple[SurestLast, float]:
    """Return what is known after ``count`` samples in the order of early stopping, and the true mean difference."""
    drawn = rng.permutation(len(margins))
    sizes = [size] * (len(margins) // size)
    order, pilot = surest_last(margins[drawn], sizes)
    whole, other = margins[drawn][order], pruned[drawn][order]
    found = SurestLast(whole, pilot, 0.999)
    differences = (other > 0).astype(float) - (whole > 0).astype(float)
    for start in range(0, count, size):
        found.add(differences[start : start + size], other[start : start + size])
    return found, float(differences.mean())


def test_behind_a_random_part_the_least_sure_come_first() -> None:
    margins = np.random.default_rng(0).normal(size=1280)
    order, pilot = surest_last(margins, [128] * 10)
    assert pilot == 512
    assert order[:512].tolist() == list(range(512))
    assert sorted(order.tolist()) == list(range(1280))
    assert (np.diff(np.abs(margins[order[512:]])) >= 0).all()


def test_few_samples_stay_in_random_order() -> None:
    order, pilot = surest_last(np.arange(96.0), [48, 48])
    assert (order.tolist(), pilot) == (list(range(96)), 96)


@pytest.mark.parametrize("noise", [0.05, 0.4, 0.8, 5.0])
@pytest.mark.parametrize("tails", [4, 1000])
def test_what_is_decided_behind_a_random_part_is_within_the_tolerance(noise: float, tails: int) -> None:
    rng = np.random.default_rng(2)
    stop = EarlyStop(tolerance=0.002)
    for _ in range(40):
        margins = rng.normal(3.0, 2.0, 2560)
        pruned = margins + noise * rng.standard_t(tails, 2560)
        for count in range(512, 2561, 128):
            found, true = asked(margins, pruned, count, np.random.default_rng(1))
            if stop.decided(found.mean, found.margin, count):
                assert abs(found.mean - true) <= 0.002
                break


def test_small_changes_are_decided_with_fewer_samples_than_in_random_order() -> None:
    rng = np.random.default_rng(3)
    margins = rng.normal(5.0, 2.0, 5120)
    found, true = asked(margins, margins + rng.normal(0.0, 0.2, 5120), 1024, rng)
    plain = Differences(5120, 0.999, 1.0)
    plain.add(np.zeros(1024))
    assert abs(found.mean - true) <= found.margin <= 0.002 < plain.margin


def test_all_samples_in_that_order_are_all_samples() -> None:
    rng = np.random.default_rng(4)
    margins = rng.normal(1.0, 1.0, 1280)
    found, true = asked(margins, rng.normal(1.0, 1.0, 1280), 1280, rng)
    assert found.margin == 0.0
    assert found.mean == pytest.approx(true)


def test_what_has_other_margins_is_as_uncertain_as_in_random_order() -> None:
    rng = np.random.default_rng(5)
    margins = rng.normal(1.0, 1.0, 2560)
    found, _ = asked(margins, rng.normal(-1.0, 1.0, 2560), 512, rng)
    assert found.margin > 0.05


def test_numbers_that_are_none_count_as_changed() -> None:
    found = SurestLast(np.full(1000, 2.0), 512, 0.999)
    found.add(np.zeros(512), np.full(512, np.nan))
    assert found.margin > 0.002
