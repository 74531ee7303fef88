"""Permitted counts: multiples, floors, and groups that are too small for the multiple."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slim_core.graph.types import ChannelGroup, Member
from slim_prune.allocation.grid import grid
from slim_prune.allocation.problem import figure


def group(units: int, width: int = 1) -> ChannelGroup:
    index = np.arange(units * width).reshape(units, width)
    return ChannelGroup("g", units, (Member("g.weight", 0, index, "out", "g"), Member("h.weight", 1, index, "in", "h")))


@pytest.mark.parametrize(
    ("units", "width", "round_to", "least", "counts"),
    [
        (32, 1, 8, 1, (8, 16, 24, 32)),
        (20, 1, 8, 1, (8, 16, 20)),  # all channels are permitted though 20 is no multiple
        (16, 1, 8, 1, (8, 16)),
        (12, 1, 8, 1, (4, 8, 12)),  # one multiple of 8 fits: 4 instead
        (8, 1, 8, 1, (4, 8)),
        (3, 1, 8, 1, (1, 2, 3)),
        (1, 1, 8, 1, (1,)),
        (16, 4, 8, 1, (2, 4, 6, 8, 10, 12, 14, 16)),  # a unit is 4 channels, so 2 units are a multiple of 8
        (6, 64, 8, 1, (1, 2, 3, 4, 5, 6)),
        (32, 1, 8, 16, (16, 24, 32)),
        (32, 1, 8, 17, (24, 32)),
        (16, 4, 8, 20, (6, 8, 10, 12, 14, 16)),
        (8, 1, 8, 100, (8,)),  # a floor above the layer leaves it alone
        (5, 1, 1, 1, (1, 2, 3, 4, 5)),
        (12, 1, 6, 1, (6, 12)),
        (10, 1, 6, 1, (3, 6, 9, 10)),
    ],
)
def test_counts(units, width, round_to, least, counts) -> None:
    assert grid(group(units, width), round_to=round_to, min_channels=least).counts == counts


@given(units=st.integers(1, 300), width=st.integers(1, 6), round_to=st.integers(1, 32), least=st.integers(1, 40))
def test_counts_are_ascending_multiples_above_the_floor_and_end_at_all(units, width, round_to, least) -> None:
    permitted = grid(group(units, width), round_to=round_to, min_channels=least)
    counts = permitted.counts
    assert list(counts) == sorted(set(counts))
    assert counts[-1] == units
    assert all(count * width >= least for count in counts[:-1])
    assert all(count * width % permitted.multiple == 0 for count in counts[:-1])
    if least == 1 and units > 1:
        assert len(counts) > 1  # no group is left untouched because of rounding


@given(units=st.integers(1, 100), round_to=st.integers(1, 16), target=st.floats(0, 110))
def test_nearest_is_the_brute_force_nearest_and_up_the_next(units, round_to, target) -> None:
    permitted = grid(group(units), round_to=round_to)
    best = min(permitted.counts, key=lambda count: (abs(count - target), -count))
    assert permitted.nearest(target) == best
    above = [count for count in permitted.counts if count > best]
    assert permitted.up(best) == (above[0] if above else None)


@pytest.mark.parametrize(
    ("value", "text"), [(24_487_936.5, "24,487,936"), (8.0, "8"), (0.123456789, "0.123457"), (1234.5, "1,234.5")]
)
def test_figures_are_written_for_people(value: float, text: str) -> None:
    assert figure(value) == text
