"""The counts of units that a group may keep: multiples, floors, and what to do with small groups."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

from slim_core.graph.types import ChannelGroup


@dataclass(frozen=True, slots=True)
class Grid:
    """Permitted unit counts of one group.

    Args:
        counts: ascending; the last one is all units.
        channels_per_unit: channels that one unit stands for in the layers that make them.
        multiple: what the kept channels are a multiple of (all channels are always permitted).
    """

    counts: tuple[int, ...]
    channels_per_unit: int
    multiple: int

    def nearest(self, target: float) -> int:
        """Return the permitted count nearest to ``target`` units; the larger one of two equally near."""
        at = bisect_left(self.counts, target)
        if at == 0:
            return self.counts[0]
        if at == len(self.counts):
            return self.counts[-1]
        below, above = self.counts[at - 1], self.counts[at]
        return above if above - target <= target - below else below

    def up(self, count: int) -> int | None:
        """Return the next permitted count above ``count``, or ``None``."""
        at = bisect_left(self.counts, count + 1)
        return self.counts[at] if at < len(self.counts) else None


def grid(group: ChannelGroup, *, round_to: int = 8, min_channels: int = 1) -> Grid:
    """Return the counts that ``group`` may keep.

    Kept channels are a multiple of ``round_to``. A group that does not hold two such multiples would be all or
    nothing; there the multiple is lowered to the largest divisor of ``round_to`` of which the group holds two. No count
    is below ``min_channels`` channels or one unit.
    """
    width = channels_per_unit(group)
    step = round_to // gcd(round_to, width)  # units whose channels are a multiple of round_to
    divisors = [d for d in range(step, 0, -1) if step % d == 0]
    step = next((d for d in divisors if 2 * d <= group.units), 1)
    floor = max(1, -(-min_channels // width))
    counts = [count for count in range(step, group.units, step) if count >= floor]
    return Grid((*counts, group.units), width, step * width)


def channels_per_unit(group: ChannelGroup) -> int:
    """Return how many channels one unit is in the layers that make it (their greatest common divisor)."""
    making: Sequence[int] = [m.indices.shape[1] for m in group.members if m.kind == "out"]
    return gcd(*(making or [m.indices.shape[1] for m in group.members]))
