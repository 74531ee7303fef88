"""Multiple-choice knapsacks: one option per group, the least loss within a capacity. Numbers only.

Not here: where losses and costs come from (``choose.py``).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

#: Partial answers that are kept side by side. Where there are more, the range of costs is cut into as many equal steps,
#: and the cheapest of each step stays: the answer is then near the best rather than the best.
MOST = 50_000


def solve(
    losses: Sequence[Sequence[float]], costs: Sequence[Sequence[float]], capacity: float, *, most: int = MOST
) -> list[int] | None:
    """Return the option of each group whose losses sum to the least while the costs sum to at most ``capacity``.

    Partial answers that cost no less and lose no less than another are dropped (Nemhauser and Ullmann, 1969, Management
    Science 15), so the answer is exact while there are at most ``most`` of them. Among equal losses the least cost
    wins. A larger capacity never loses more.

    Args:
        losses: of each group, one per option, finite.
        costs: of each group, one per option, finite; whole numbers are added exactly.
        capacity: what the costs may sum to.
        most: partial answers that are kept.

    Returns:
        The position of the option in each group, or ``None`` when even the cheapest options cost more.
    """
    loss = [np.asarray(group, np.float64) for group in losses]
    cost = [np.asarray(group, np.float64) for group in costs]
    if any(not len(group) or not np.isfinite(group).all() for group in (*loss, *cost)):
        raise ValueError("every group needs options with finite losses and costs")
    rest = sum(float(group.min()) for group in cost)
    spread = sum(float(group.max()) for group in cost) - rest
    if rest > capacity:
        return None
    spent, lost = np.zeros(1), np.zeros(1)
    stages: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []  # of each group: the answer before, and the option
    for extra, more in zip(loss, cost, strict=True):
        rest -= float(more.min())
        spent = (spent[:, None] + more).reshape(-1)
        lost = (lost[:, None] + extra).reshape(-1)
        before, option = np.divmod(np.arange(len(spent)), len(more))
        fits = np.flatnonzero(spent + rest <= capacity + 1e-9 * abs(capacity))
        kept = fits[_front(spent[fits], lost[fits])]
        if len(kept) > most:
            step = np.floor((spent[kept] - spent[kept[0]]) * (most / spread))
            kept = kept[np.flatnonzero(np.diff(step, prepend=-1.0) > 0)]
        spent, lost = spent[kept], lost[kept]
        stages.append((before[kept], option[kept]))
    place, picks = len(spent) - 1, []
    for before, option in reversed(stages):
        picks.append(int(option[place]))
        place = int(before[place])
    return picks[::-1]


def _front(spent: NDArray[np.float64], lost: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the answers that no other one beats, in the order of their cost; losses fall strictly."""
    order = np.lexsort((lost, spent))
    least = np.minimum.accumulate(lost[order])
    falls = np.ones(len(order), bool)
    falls[1:] = least[1:] < least[:-1]
    return order[falls]
