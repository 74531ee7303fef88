"""Observers on distributions whose best threshold is known: uniform, normal, Laplace; and against plain numpy searches.

Values are quantiles at even steps, so that nothing is random: value ``i`` of ``n`` is the one at ``(i + 1/2) / n``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from slim_quant.observers import make_observer
from slim_quant.schemes import Scheme, qparams

COUNT = 200_001
Distribution = Callable[[], NDArray[np.float64]]


def shares() -> NDArray[np.float64]:
    return (np.arange(COUNT) + 0.5) / COUNT


def uniform() -> NDArray[np.float64]:
    return 2 * shares() - 1


def normal() -> NDArray[np.float64]:
    inverse = NormalDist().inv_cdf
    half = np.array([inverse(share) for share in shares()[: COUNT // 2 + 1]])
    return np.concatenate([half, -half[:-1][::-1]])


def laplace() -> NDArray[np.float64]:
    centered = shares() - 0.5
    return -np.sign(centered) * np.log1p(-2 * np.abs(centered))


def threshold(name: str, values: NDArray[np.float64], bits: int, symmetric: bool = True) -> float:
    """What the observer finds after batches in an order that mixes large and small values."""
    observer = make_observer(name)
    order = np.random.default_rng(0).permutation(len(values))
    for batch in torch.tensor(values[order], dtype=torch.float32).split(7001):
        observer.update(batch)
    low, high = observer.range(Scheme(bits, symmetric))
    return max(-float(low), float(high))


def minimum(loss: Callable[[float], float], largest: float) -> float:
    return float(min(np.linspace(largest / 4000, largest, 4000), key=loss))


def normal_squared(clip: float, step: float) -> float:
    """Saturation error of a standard normal beyond ``clip``, and step^2 / 12 within (Banner et al., 1810.05723)."""
    density, outside = math.exp(-(clip**2) / 2) / math.sqrt(2 * math.pi), math.erfc(clip / math.sqrt(2)) / 2
    return 2 * ((1 + clip**2) * outside - clip * density) + step**2 / 12 * (1 - 2 * outside)


def laplace_squared(clip: float, step: float) -> float:
    return 2 * math.exp(-clip) + step**2 / 12 * (1 - math.exp(-clip))


def normal_moved(clip: float, step: float) -> float:
    """The mean absolute error: a quarter of a step within."""
    density, outside = math.exp(-(clip**2) / 2) / math.sqrt(2 * math.pi), math.erfc(clip / math.sqrt(2)) / 2
    return 2 * (density - clip * outside) + step / 4 * (1 - 2 * outside)


def laplace_moved(clip: float, step: float) -> float:
    return math.exp(-clip) + step / 4 * (1 - math.exp(-clip))


CLOSED = {
    ("mse", "normal"): (normal, normal_squared),
    ("mse", "laplace"): (laplace, laplace_squared),
    ("emd", "normal"): (normal, normal_moved),
    ("emd", "laplace"): (laplace, laplace_moved),
}


@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize(("name", "shape"), CLOSED)
def test_the_threshold_is_the_minimum_of_the_closed_form(name: str, shape: str, bits: int) -> None:
    make, loss = CLOSED[name, shape]
    values = make()
    qmax = Scheme(bits, True).qmax
    expected = minimum(lambda clip: loss(clip, clip / qmax), float(values.max()))
    found = threshold(name, values, bits)
    assert loss(found, found / qmax) <= 1.03 * loss(expected, expected / qmax)
    assert found == pytest.approx(expected, rel=0.08)


@pytest.mark.parametrize(
    ("make", "bits", "published"),
    [(normal, 4, 2.55), (normal, 8, 3.92), (laplace, 4, 5.03), (laplace, 8, 9.89)],
)
def test_the_thresholds_that_were_published_for_the_least_squared_error(
    make: Distribution, bits: int, published: float
) -> None:
    """Banner, Nahshan, Soudry, "Post training 4-bit quantization of convolutional networks" (1810.05723).

    They have 2^bits steps where a symmetric scheme has 2^bits - 2, and say that their formula is approximate.
    """
    assert threshold("mse", make(), bits) == pytest.approx(published, rel=0.07)


@pytest.mark.parametrize("name", ["mse", "emd", "entropy", "percentile", "min_max", "abs_max"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_nothing_of_a_uniform_distribution_is_cut(name: str, symmetric: bool) -> None:
    assert threshold(name, uniform(), 8, symmetric) == pytest.approx(1.0, rel=0.02)


def test_entropy_cuts_the_tails_and_more_so_with_fewer_bits() -> None:
    values = laplace()
    four, eight = threshold("entropy", values, 4), threshold("entropy", values, 8)
    assert four < eight < 0.99 * values.max()


@pytest.mark.parametrize("make", [normal, laplace])
@pytest.mark.parametrize("bits", [4, 8])
def test_entropy_is_the_best_of_a_plain_numpy_search(make: Distribution, bits: int) -> None:
    """The same distributions, written as loops over levels."""
    values, scheme = make(), Scheme(bits, True)
    reach = 2.0 ** math.ceil(math.log2(values.max()))
    every, edges = np.histogram(values[values != 0], bins=8192, range=(-reach, reach))
    counts, middles = every[every > 0], ((edges[:-1] + edges[1:]) / 2)[every > 0].clip(values.min(), values.max())

    def divergence(clip: float) -> float:
        inside = np.abs(middles) <= clip
        seen = counts[inside].astype(float)
        seen[0] += counts[middles < -clip].sum()
        seen[-1] += counts[middles > clip].sum()
        told = np.zeros_like(seen)
        levels = np.rint(middles[inside] / (clip / scheme.qmax))
        for level in np.unique(levels):
            told[levels == level] = counts[inside][levels == level].mean()
        seen, told = seen / seen.sum(), told / told.sum()
        return float((seen * np.log(seen / told)).sum())

    clips = np.linspace(1 / 64, 1, 64) * values.max()
    losses = [divergence(clip) for clip in clips]
    found = threshold("entropy", values, bits)
    assert divergence(found) <= min(losses) * 1.02


@pytest.mark.parametrize("name", ["mse", "emd", "entropy"])
def test_zeros_of_a_relu_do_not_move_the_threshold(name: str) -> None:
    """They are represented exactly whatever the scale."""
    positive = laplace()[COUNT // 2 + 1 :]
    without = threshold(name, positive, 8, symmetric=False)
    with_zeros = threshold(name, np.concatenate([positive, np.zeros(10 * len(positive))]), 8, symmetric=False)
    assert with_zeros == without


def test_the_average_is_over_the_samples_largest_values() -> None:
    samples = np.random.default_rng(0).normal(size=(100, 3, 4))
    observer = make_observer("average_abs_max")
    for batch in torch.tensor(samples, dtype=torch.float32).split(30):  # the last batch is smaller
        observer.update(batch)
    low, high = observer.range(Scheme(8, True))
    expected = np.abs(samples).max((1, 2)).mean()
    assert float(high) == pytest.approx(expected, rel=1e-6)
    assert float(low) == pytest.approx(-expected, rel=1e-6)


@pytest.mark.parametrize("name", ["mse", "emd", "entropy", "percentile", "min_max", "abs_max", "average_abs_max"])
def test_the_order_of_batches_does_not_matter(name: str) -> None:
    """Bins double from powers of two: a histogram that grew is the one that began wide."""
    rows = torch.tensor(laplace()[:-1], dtype=torch.float32).view(100, 2000)
    ranges = []
    for batches in (rows.split(10), rows.flip(0).split(25)):
        observer = make_observer(name)
        for batch in batches:
            observer.update(batch)
        ranges.append(tuple(float(end) for end in observer.range(Scheme(8, False))))
    assert ranges[0] == pytest.approx(ranges[1], rel=1e-12)


def test_a_range_beyond_the_sampled_values_is_still_exact_at_its_ends() -> None:
    values = torch.zeros(3_000_000)
    values[1_234_567] = 7.0
    values[2_000_001] = -3.0
    observer = make_observer("mse")
    observer.update(values)
    assert (observer.histogram.low, observer.histogram.high) == (-3.0, 7.0)
    low, high = (float(end) for end in observer.range(Scheme(8, False)))
    assert -3.0 <= low <= 0.0 <= high <= 7.0


def test_quantiles_of_a_sample_are_those_of_all_values() -> None:
    values = torch.tensor(normal(), dtype=torch.float32).repeat(8)  # in order: the sample must take from everywhere
    observer = make_observer({"name": "percentile", "share": 0.99})
    observer.update(values)
    assert float(observer.histogram.counts.sum()) < len(values) / 4
    high = float(observer.range(Scheme(8, False))[1])
    assert high == pytest.approx(NormalDist().inv_cdf(0.995), abs=3 * observer.histogram.width)


@pytest.mark.parametrize("name", ["mse", "emd"])
def test_an_affine_range_of_skewed_values_is_near_the_best_of_a_grid(name: str) -> None:
    values = np.concatenate([laplace() * 0.2, np.abs(normal())])
    scheme = Scheme(6, False)
    observer = make_observer(name)
    observer.update(torch.tensor(values, dtype=torch.float32))
    power = 2 if name == "mse" else 1
    sample = values[::37]

    def loss(low: float, high: float) -> float:
        scale, zero = (float(item) for item in qparams(torch.tensor(low), torch.tensor(high), scheme))
        levels = np.clip(np.rint(sample / scale) + zero, scheme.qmin, scheme.qmax)
        return float((np.abs((levels - zero) * scale - sample) ** power).mean())

    found = loss(*(float(end) for end in observer.range(scheme)))
    grid = [
        loss(low, high) for low in np.linspace(values.min(), -0.05, 40) for high in np.linspace(1, values.max(), 40)
    ]
    assert found <= 1.05 * min(grid)
