"""A chain of models from the cheapest to the float one, each a little dearer than the one before. Numbers only.

A goal on accuracy is met by the first model of the chain that keeps it. Because the chain does not depend on the goal,
and the search asks the same positions whatever the goal, a looser goal never gives a dearer model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class Upgrade:
    """One step of the chain: ``unit`` gets ``choice``."""

    unit: str
    choice: str
    gain: float
    cost: float


def chain(
    losses: Mapping[str, Mapping[str, float]], costs: Mapping[str, Mapping[str, float]]
) -> tuple[dict[str, str], list[Upgrade]]:
    """Return where the chain begins, and its steps: those that save the most loss for each unit of cost first.

    Args:
        losses: unit -> choice -> loss.
        costs: unit -> choice -> cost.

    Returns:
        The cheapest choice of each unit, and upgrades in order. Of each unit only the choices on the convex hull of
        loss over cost are used, so that its upgrades come in the order of their cost.
    """
    start: dict[str, str] = {}
    steps: list[tuple[Fraction, int, int, Upgrade]] = []
    for place, (unit, row) in enumerate(losses.items()):
        hull = _hull([(costs[unit][choice], loss, choice) for choice, loss in row.items()])
        start[unit] = hull[0][2]
        for number, (before, after) in enumerate(pairwise(hull)):
            gain, cost = before[1] - after[1], after[0] - before[0]
            steps.append((-Fraction(gain) / Fraction(cost), place, number, Upgrade(unit, after[2], gain, cost)))
    steps.sort(key=lambda item: item[:3])
    return start, [step for *_, step in steps]


def at(start: Mapping[str, str], steps: Sequence[Upgrade], position: int) -> dict[str, str]:
    """Return the model after the first ``position`` upgrades."""
    return dict(start) | {step.unit: step.choice for step in steps[:position]}


def first_that_passes(last: int, passes: Callable[[int], bool]) -> int:
    """Return a position from 0 to ``last`` that passes while the one asked before it does not; ``last`` is not asked.

    Positions 0, 1, 2, 4, 8, … are asked until one passes, then the gap below it is halved. If everything that passes a
    stricter test passes a looser one, the looser one gives no later a position.
    """
    low, high, step = -1, last, 0
    while step < last:
        if passes(step):
            high = step
            break
        low, step = step, max(1, 2 * step)
    while high - low > 1:
        middle = (low + high) // 2
        if passes(middle):
            high = middle
        else:
            low = middle
    return high


def _hull(points: list[tuple[float, float, str]]) -> list[tuple[float, float, str]]:
    """Return the choices on the lower convex hull, from the cheapest on, with falling losses and rising costs."""
    falling: list[tuple[float, float, str]] = []
    for point in sorted(points, key=lambda item: (item[0], item[1])):
        if not falling or point[1] < falling[-1][1]:
            if falling and point[0] == falling[-1][0]:
                continue
            falling.append(point)
    hull: list[tuple[float, float, str]] = []
    for point in falling:
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], point):
            hull.pop()
        hull.append(point)
    return hull


def _slope(first: tuple[float, float, str], second: tuple[float, float, str]) -> Fraction:
    return Fraction(second[1] - first[1]) / Fraction(second[0] - first[0])
