"""Multiple-choice knapsacks: one option per group, the largest value within a capacity. Arrays only.

Not here: where values and costs come from (``latency.py``).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def solve(values: Sequence[Floats], costs: Sequence[Floats], capacity: float, *, buckets: int = 4000) -> list[int]:
    """Return the option of each group whose values sum to the most while the costs sum to at most ``capacity``.

    Dynamic programming over costs in ``buckets`` equal steps: each cost is rounded to the nearest step, so that the
    true sum may be off by half a step per group; the caller works the answer out. When even the cheapest options cost
    more than the capacity, these are returned.

    Args:
        values: of each group, one per option.
        costs: of each group, one per option; any sign.
        capacity: what the costs may sum to.
        buckets: steps that the room above the cheapest options is cut into.
    """
    cheapest = [int(np.lexsort((-value, cost))[0]) for value, cost in zip(values, costs, strict=True)]
    room = capacity - sum(float(cost[pick]) for cost, pick in zip(costs, cheapest, strict=True))
    if room <= 0 or not values:
        return cheapest
    step = room / buckets
    best = np.zeros(buckets + 1)  # the largest value at a cost of at most so many steps
    picks: list[NDArray[np.int64]] = []
    for value, cost in zip(values, costs, strict=True):
        weight = np.rint((cost - cost.min()) / step).astype(np.int64)
        fits = np.flatnonzero(weight <= buckets)
        table = np.full((len(fits), buckets + 1), -np.inf)
        for row, option in enumerate(fits.tolist()):
            table[row, weight[option] :] = best[: buckets + 1 - weight[option]] + value[option]
        chosen = table.argmax(0)
        best = table[chosen, np.arange(buckets + 1)]
        picks.append(fits[chosen])
    place = buckets
    answer: list[int] = []
    for cost, pick in zip(reversed(costs), reversed(picks), strict=True):
        option = int(pick[place])
        answer.append(option)
        place -= int(np.rint((cost[option] - cost.min()) / step))
    return answer[::-1]
