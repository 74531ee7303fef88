"""Masks against plain numpy: exact counts, ties, blocks by loops, every group of N:M, ERK's closed form."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slim_prune.sparsity import NM, Block, SparsityError, Unstructured
from slim_prune.sparsity.schemes import resolve, to_json
from slim_prune.sparsity.selecting import above, erk, is_n_of_m, n_of_m, select, whole

SHAPES = {"a": (4, 6), "b": (3, 4, 2, 2), "c": (7, 5)}
AXES = {"a": 1, "b": 1, "c": 0}


def drawn(seed: int, levels: int) -> dict[str, np.ndarray]:
    """Return scores with few levels: many ties."""
    rng = np.random.RandomState(seed)
    return {name: rng.randint(0, levels, shape).astype(np.float32) for name, shape in SHAPES.items()}


def by_sorting(scores: dict[str, np.ndarray], kept: int) -> dict[str, np.ndarray]:
    """The oracle: a stable sort of everything, in order of the layers and of their elements."""
    flat = np.concatenate([values.reshape(-1) for values in scores.values()])
    chosen = np.zeros(flat.size, bool)
    chosen[sorted(range(flat.size), key=lambda i: -flat[i])[:kept]] = True  # Python's sort is stable
    found, start = {}, 0
    for name, values in scores.items():
        found[name] = chosen[start : start + values.size].reshape(values.shape)
        start += values.size
    return found


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([1, 3, 1000]), st.floats(0, 1))
def test_global_ranking_is_that_of_a_stable_sort(seed, levels, share) -> None:
    scores = drawn(seed, levels)
    total = sum(values.size for values in scores.values())
    kept = whole(total, share)
    masks = select(Unstructured(floor=0), scores, AXES, kept)
    expected = by_sorting(scores, kept)
    assert all(np.array_equal(masks[name], expected[name]) for name in scores)
    assert sum(int(mask.sum()) for mask in masks.values()) == kept


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([1, 3, 1000]), st.floats(0, 1))
def test_each_layer_keeps_the_same_share_of_its_own_best(seed, levels, share) -> None:
    scores = drawn(seed, levels)
    total = sum(values.size for values in scores.values())
    kept = whole(total, share)
    masks = select(Unstructured(scope="layer"), scores, AXES, kept)
    for name, values in scores.items():
        expected = by_sorting({name: values}, math.floor(values.size * kept / total + 1e-6))
        assert np.array_equal(masks[name], expected[name])


def test_what_is_fixed_does_not_compete() -> None:
    scores = drawn(0, 1000)
    masks = select(Unstructured(floor=0), scores, AXES, 10, {"b": 5})
    assert np.array_equal(masks["b"], by_sorting({"b": scores["b"]}, 5)["b"])
    expected = by_sorting({name: scores[name] for name in ("a", "c")}, 10)
    assert all(np.array_equal(masks[name], expected[name]) for name in ("a", "c"))


def test_a_floor_holds_every_layer_up_and_the_rest_competes() -> None:
    scores = {"a": np.arange(1, 25.0).reshape(4, 6), "c": np.arange(35.0).reshape(7, 5) / 1000}
    masks = select(Unstructured(floor=0.5), scores, AXES, 20)
    assert int(masks["c"].sum()) == int(0.5 * 20 / 59 * 35) == 5
    assert int(masks["a"].sum()) == 15
    assert np.array_equal(masks["a"].reshape(-1), np.arange(24) >= 9)
    assert np.array_equal(masks["c"].reshape(-1), np.arange(35) >= 30)
    assert not select(Unstructured(floor=0), scores, AXES, 20)["c"].any()


@pytest.mark.parametrize("scheme", [Unstructured(), Block((2, 2))])
def test_a_threshold_keeps_what_is_at_least_as_high(scheme) -> None:
    scores = {"a": np.array([[1.0, 3.0, 0.0], [1.0, 3.0, 2.0], [2.0, 2.0, 2.0]])}
    mask = above(scheme, scores, {"a": 1}, 2.0)["a"]
    if isinstance(scheme, Unstructured):
        assert np.array_equal(mask, scores["a"] >= 2)
    else:  # means: 2, 1 / 2, 2
        assert mask.tolist() == [[True, True, False], [True, True, False], [True, True, True]]


def matrices(values: np.ndarray, layout: str, axis: int) -> list[list[list[tuple[int, ...]]]]:
    """The oracle's view: for each matrix, rows and columns of element positions; by explicit loops."""
    outs, ins, taps = values.shape[1 - axis], values.shape[axis], list(np.ndindex(*values.shape[2:]))

    def place(o: int, i: int, tap: tuple[int, ...]) -> tuple[int, ...]:
        return (o, i, *tap) if axis == 1 else (i, o, *tap)

    if layout == "flat":
        return [[[place(o, i, tap) for i in range(ins) for tap in taps] for o in range(outs)]]
    return [[[place(o, i, tap) for i in range(ins)] for o in range(outs)] for tap in taps]


def blocks(values: np.ndarray, scheme: Block, axis: int) -> list[list[tuple[int, ...]]]:
    """Return the positions of each block, in order."""
    rows, columns = scheme.shape
    return [
        [place for line in matrix[top : top + rows] for place in line[left : left + columns]]
        for matrix in matrices(values, scheme.layout, axis)
        for top in range(0, len(matrix), rows)
        for left in range(0, len(matrix[0]), columns)
    ]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**31), st.sampled_from([(1, 4), (4, 1), (16, 1), (8, 8), (2, 3)]),
    st.sampled_from(["flat", "channels"]), st.floats(0, 1), st.sampled_from([3, 1000]),
)  # fmt: skip
def test_blocks_stay_whole_by_their_mean_score(seed, shape, layout, share, levels) -> None:
    scores = drawn(seed, levels)
    scheme = Block(shape, layout, floor=0)
    kept = whole(sum(values.size for values in scores.values()), share)
    masks = select(scheme, scores, AXES, kept)
    ranked = []
    for name, values in scores.items():
        for places in blocks(values, scheme, AXES[name]):
            mean = sum(float(values[place]) for place in places) / len(places)
            ranked.append((mean, name, places))
    left, expected = kept, {name: np.zeros(values.shape, bool) for name, values in scores.items()}
    for _, name, places in sorted(ranked, key=lambda item: -item[0]):
        if len(places) > left:
            break
        left -= len(places)
        for place in places:
            expected[name][place] = True
    assert all(np.array_equal(masks[name], expected[name]) for name in scores)


def test_blocks_are_ranked_by_magnitude_and_not_by_a_mean_in_which_signs_cancel() -> None:
    weight = np.array([[5.0, -5.0, 1.0, 1.0]])
    assert select(Block((1, 2)), {"w": np.abs(weight)}, {"w": 1}, 2)["w"].tolist() == [[True, True, False, False]]


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 2**31), st.sampled_from([(2, 4), (1, 4), (1, 2), (3, 8), (4, 16)]),
    st.sampled_from(["flat", "channels"]), st.sampled_from([2, 1000]),
    st.lists(st.integers(1, 9), min_size=2, max_size=4).map(tuple), st.integers(0, 1),
)  # fmt: skip
def test_every_group_keeps_its_n_highest_and_the_first_of_equal_ones(seed, n_m, layout, levels, shape, axis) -> None:
    values = np.random.RandomState(seed).randint(0, levels, shape).astype(np.float32)
    scheme = NM(*n_m, layout=layout)
    mask = n_of_m(values, axis, scheme)
    for matrix in matrices(values, layout, axis):
        for row in matrix:
            for start in range(0, len(row), scheme.m):
                group = row[start : start + scheme.m]
                best = sorted(range(len(group)), key=lambda i: -values[group[i]])[: scheme.n]
                assert [i for i, place in enumerate(group) if mask[place]] == sorted(best)
    assert is_n_of_m(mask, axis, scheme)


def test_a_group_with_one_more_is_no_n_of_m() -> None:
    mask = n_of_m(np.random.RandomState(0).rand(4, 8), 1, NM())
    assert is_n_of_m(mask, 1, NM())
    mask[0] = [True, True, True, False, False, False, False, False]
    assert not is_n_of_m(mask, 1, NM())


@settings(max_examples=50, deadline=None)
@given(st.floats(0.01, 0.99))
def test_erk_gives_shares_proportional_to_sizes_sum_over_product_and_meets_the_total(share) -> None:
    shapes = {"small": (8, 3, 3, 3), "large": (64, 64, 3, 3), "head": (10, 64)}
    shares = erk(shapes, share)
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    assert sum(shares[name] * sizes[name] for name in shapes) == pytest.approx(share * sum(sizes.values()), rel=1e-9)
    assert all(0 <= value <= 1 for value in shares.values())
    raw = {name: sum(shape) / sizes[name] for name, shape in shapes.items()}
    free = [name for name in shapes if shares[name] < 1]
    for one, two in itertools.pairwise(free):
        assert shares[one] / raw[one] == pytest.approx(shares[two] / raw[two])


@pytest.mark.parametrize(
    ("scheme", "words"),
    [
        ("blocks", "did you mean 'block'"),
        ({"name": "block", "shape": [0, 4]}, "two sizes"),
        ({"name": "block", "size": 4}, "no option 'size'"),
        ({"name": "block", "shape": [128, 64]}, "at most 4096"),
        ("4:4", "1 <= n < m"),
        ({"name": "n_m", "n": 2, "m": 32}, "1 <= n < m"),
        ({"name": "2:4", "layout": "rows"}, "unknown layout"),
        ({"name": "2:4", "layout": "flat", "permute": True}, "channels only"),
        ({"name": "unstructured", "scope": "locally"}, "unknown scope"),
        ({"name": "unstructured", "floor": 1.0}, "a part of the share"),
    ],
)
def test_schemes_that_mean_nothing_are_refused(scheme, words) -> None:
    with pytest.raises(SparsityError) as caught:
        resolve(scheme)
    assert words in str(caught.value)


@pytest.mark.parametrize("scheme", [Unstructured("erk"), Block((16, 1), "channels", floor=0.1), NM(1, 8, permute=True)])
def test_schemes_survive_json(scheme) -> None:
    assert resolve(to_json(scheme)) == scheme
    assert resolve("3:8") == NM(3, 8)
