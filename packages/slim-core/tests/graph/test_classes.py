"""Equivalence classes against a plain union-find."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from slim_core.graph.classes import components


def reference(count: int, pairs: list[tuple[int, int]]) -> list[int]:
    parent = list(range(count))

    def find(n: int) -> int:
        while parent[n] != n:
            n = parent[n]
        return n

    for a, b in pairs:
        a, b = find(a), find(b)
        parent[max(a, b)] = min(a, b)
    numbers: dict[int, int] = {}
    return [numbers.setdefault(find(n), len(numbers)) for n in range(count)]


@given(st.integers(1, 40).flatmap(lambda n: st.tuples(
    st.just(n), st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=60)
)))  # fmt: skip
def test_equals_union_find(case):
    count, pairs = case
    left = np.array([a for a, _ in pairs], dtype=np.int64)
    right = np.array([b for _, b in pairs], dtype=np.int64)
    assert components(count, [(left, right)]).tolist() == reference(count, pairs)


def test_long_chains_and_stars_are_one_class():
    n = 50_000
    numbers = np.arange(n, dtype=np.int64)
    rng = np.random.default_rng(0)
    order = rng.permutation(n)
    assert components(n, [(order[:-1], order[1:])]).max() == 0
    assert components(n, [(numbers[:-1], numbers[1:])]).max() == 0
    assert components(n, [(np.full(n - 1, n - 1), numbers[:-1])]).max() == 0
    assert components(n, [(np.zeros(n - 1, dtype=np.int64), numbers[1:])]).max() == 0


def test_without_pairs_every_label_is_its_own_class():
    assert components(3, []).tolist() == [0, 1, 2]
    assert components(0, []).tolist() == []
