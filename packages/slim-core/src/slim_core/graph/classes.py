"""Equivalence classes of integers from pairs of equal ones, vectorised."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def components(count: int, pairs: Sequence[tuple[Ints, Ints]]) -> Ints:
    """Return the class number of each of ``count`` labels: classes count from 0 in the order of their first label.

    Args:
        count: how many labels there are.
        pairs: arrays of equal shape whose entries are equal, pair by pair.
    """
    parent = np.arange(count, dtype=np.int64)
    if pairs:
        left = np.concatenate([np.ravel(a) for a, _ in pairs])
        right = np.concatenate([np.ravel(b) for _, b in pairs])
        upward = False
        while True:
            left, right = parent[left], parent[right]
            apart = left != right
            if not apart.any():
                break
            left, right = left[apart], right[apart]
            low, high = np.minimum(left, right), np.maximum(left, right)
            # Hook each root onto one neighbour, all in the same direction, so that no circle forms. The direction
            # alternates: a star is joined in one round whether its centre is its smallest or its largest.
            if upward:
                parent[low] = high
            else:
                parent[high] = low
            upward = not upward
            while True:
                above = parent[parent]
                if np.array_equal(above, parent):
                    break
                parent = above
    first = np.empty(count, dtype=np.int64)
    first[parent[::-1]] = np.arange(count - 1, -1, -1, dtype=np.int64)  # the last write is the smallest label
    smallest = first[parent]
    is_first = smallest == np.arange(count)
    return (np.cumsum(is_first) - 1)[smallest]
