"""The way from the whole model to the final budget: how much may be left after a share of it. Pure functions."""

from __future__ import annotations

import math
from typing import Literal

Spacing = Literal["geometric", "linear", "cubic"]

#: ASFP reaches three quarters of the goal after one eighth of the training (He et al., 2019, arXiv 1808.07471).
_EARLY, _MOST = 1 / 8, 3 / 4


def shares(steps: int) -> tuple[float, ...]:
    """Return how far along the way each of ``steps`` equal steps ends: ``(1 / steps, …, 1)``."""
    return tuple(step / steps for step in range(1, steps + 1))


def limit_at(original: float, limit: float, share: float, spacing: Spacing) -> float:
    """Return what may be left after ``share`` of the way from ``original`` to ``limit``.

    Args:
        original: cost of the whole model.
        limit: what may be left in the end.
        share: how far along the way, 0 to 1.
        spacing: ``linear``: every step takes the same amount; ``geometric``: the same share of what is there;
            ``cubic``: much at first and less and less (Zhu and Gupta, 2017, arXiv 1710.01878).
    """
    if share >= 1 or limit >= original:
        return limit
    if spacing == "geometric":
        return float(original * (limit / original) ** share)
    done = 1 - (1 - share) ** 3 if spacing == "cubic" else share
    return original - (original - limit) * done


def asymptotic(share: float) -> float:
    """Return the part of the final pruning rate that asymptotic soft filter pruning uses after ``share`` of training.

    The curve ``a * exp(-k * t) + b`` through 0 at the start, three quarters after one eighth, and 1 at the end
    (He et al., 2019, arXiv 1808.07471, equation 4).
    """
    return (1 - math.exp(-_RATE * share)) / (1 - math.exp(-_RATE))


def _rate() -> float:
    """Solve ``(1 - exp(-k * early)) = most * (1 - exp(-k))`` for k > 0 by fixed-point iteration, which contracts."""
    rate = 1.0
    for _ in range(200):
        rate = -math.log(1 - _MOST * (1 - math.exp(-rate))) / _EARLY
    return rate


_RATE = _rate()
