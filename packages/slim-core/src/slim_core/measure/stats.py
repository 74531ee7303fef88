"""Statistics of timings: medians, how far a repetition would move them, and intervals that assume no distribution."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, lgamma, log

import numpy as np

#: random splits into halves that the noise is averaged over; more change the third digit only
_SPLITS = 200


def quartiles(samples: Sequence[float]) -> tuple[float, float, float]:
    """Return lower quartile, median and upper quartile."""
    low, middle, high = np.percentile(np.asarray(samples, dtype=np.float64), [25, 50, 75])
    return float(low), float(middle), float(high)


def noise_floor(samples: Sequence[float], seed: int = 0) -> float | None:
    """Return how much two halves of the samples disagree: mean relative difference of their medians.

    The halves are drawn at random, so that it tells chance from drift. A difference between two candidates that is
    smaller than this means nothing. ``None`` for fewer than four samples.
    """
    values = np.asarray(samples, dtype=np.float64)
    if len(values) < 4:
        return None
    generator = np.random.default_rng(seed)
    half = len(values) // 2
    order = generator.permuted(np.tile(np.arange(len(values)), (_SPLITS, 1)), axis=1)
    shuffled = values[order]
    first, second = np.median(shuffled[:, :half], axis=1), np.median(shuffled[:, half : 2 * half], axis=1)
    return float(np.mean(np.abs(first - second)) / np.median(values))


def drift(samples: Sequence[float]) -> float | None:
    """Return by how much the later half of the samples is slower than the earlier one: 0.1 is 10 % slower.

    A clock that is throttled during the measurement shows here. ``None`` for fewer than four samples.
    """
    if len(samples) < 4:
        return None
    half = len(samples) // 2
    return float(np.median(samples[-half:]) / np.median(samples[:half]) - 1)


def median_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """Return an interval for the median, and the confidence that it really has.

    The ends are order statistics, chosen by the binomial distribution (the interval of the sign test), so nothing is
    assumed about how the values are distributed. Fewer than six values cannot give 95 %: then the whole range is
    returned with the confidence that it has, ``1 - 2**(1 - n)``.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    count = len(ordered)
    if count == 0:
        raise ValueError("no values")
    tail, below = (1 - confidence) / 2, 0.0
    rank, outside = 0, 0.5**count
    for successes in range(count // 2):
        below += exp(lgamma(count + 1) - lgamma(successes + 1) - lgamma(count - successes + 1) - count * log(2))
        if below > tail:
            break
        rank, outside = successes, below
    return float(ordered[rank]), float(ordered[count - 1 - rank]), 1 - 2 * outside
