"""Boosted trees as plain arrays: fitted with scikit-learn's decision trees, stored as JSON, evaluated with numpy.

All trees have the same depth, so that a whole ensemble is evaluated in as many steps as it is deep, for any number of
rows. Nothing is pickled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slim_core.errors import MeasureError
from slim_core.extras import require

EXTRA = "slim-latency[fit]"
DEPTH = 3
_INNER, _LEAVES = 2**DEPTH - 1, 2**DEPTH

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Trees:
    """An ensemble of complete binary trees; its value is the sum of the leaves that a row reaches.

    Args:
        feature: ``(trees, 2**depth - 1)``: which number an inner node looks at.
        threshold: likewise: rows above it go right.
        leaf: ``(trees, 2**depth)``.
    """

    feature: NDArray[np.int64]
    threshold: Array
    leaf: Array

    def __call__(self, rows: Array) -> Array:
        """Return the sums for ``rows`` of shape ``(rows, features)``."""
        if not len(self.feature):
            return np.zeros(len(rows))
        trees = np.arange(len(self.feature))
        place = np.zeros((len(rows), len(trees)), dtype=np.int64)
        for _ in range(DEPTH):
            chosen = np.take_along_axis(rows, self.feature[trees, place], axis=1)
            place = 2 * place + 1 + (chosen > self.threshold[trees, place])
        result: Array = self.leaf[trees, place - _INNER].sum(axis=1)
        return result

    def to_json(self) -> dict[str, Any]:
        return {
            "feature": self.feature.tolist(),
            "threshold": np.round(self.threshold, 6).tolist(),
            "leaf": np.round(self.leaf, 7).tolist(),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any], features: int) -> Trees:
        """Read what :meth:`to_json` wrote.

        Raises:
            MeasureError: sizes or feature numbers do not fit.
        """
        feature = np.asarray(data["feature"], dtype=np.int64).reshape(-1, _INNER)
        threshold = np.asarray(data["threshold"], dtype=np.float64).reshape(-1, _INNER)
        leaf = np.asarray(data["leaf"], dtype=np.float64).reshape(-1, _LEAVES)
        if not len(feature) == len(threshold) == len(leaf) or (feature.size and not feature.min() >= 0):
            raise MeasureError("the fitted trees of the table do not fit together")
        if feature.size and feature.max() >= features:
            raise MeasureError("the fitted trees of the table look at numbers that there are not")
        return Trees(feature, threshold, leaf)


def boost(
    rows: Array, target: Array, weights: Array, *, rising: Sequence[int], trees: int = 120, rate: float = 0.1,
    leaf: int = 3, seed: int = 0,
) -> Trees:  # fmt: skip
    """Fit trees to ``target`` by least squares, one after the other.

    Args:
        rows: ``(rows, features)``.
        target: ``(rows,)``.
        weights: ``(rows,)``: how much each row counts.
        rising: features with which the result may not fall.
        trees: how many.
        rate: share of each tree's answer that is taken.
        leaf: rows that a leaf holds at least.
        seed: of ties.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    maker = require("sklearn.tree", EXTRA).DecisionTreeRegressor
    constraints = [1 if number in rising else 0 for number in range(rows.shape[1])]
    left, parts = target.astype(np.float64).copy(), []
    for number in range(trees):
        tree = maker(max_depth=DEPTH, min_samples_leaf=leaf, monotonic_cst=constraints, random_state=seed + number)
        tree.fit(rows, left, sample_weight=weights)
        part = _complete(tree.tree_, rate)
        parts.append(part)
        left -= Trees(part[0][None], part[1][None], part[2][None])(rows)
    if not parts:
        return Trees(np.zeros((0, _INNER), np.int64), np.zeros((0, _INNER)), np.zeros((0, _LEAVES)))
    return Trees(*(np.stack([part[number] for part in parts]) for number in range(3)))  # type: ignore[arg-type]


def _complete(tree: Any, rate: float) -> tuple[NDArray[np.int64], Array, Array]:
    """Return a scikit-learn tree as a complete one: a leaf that comes early is repeated below."""
    feature, threshold, leaf = np.zeros(_INNER, np.int64), np.zeros(_INNER), np.zeros(_LEAVES)

    def fill(node: int, place: int) -> None:
        if place >= _INNER:
            leaf[place - _INNER] = rate * float(tree.value[node].ravel()[0])
            return
        inner = tree.children_left[node] >= 0
        if inner:
            # scikit-learn compares in single precision
            feature[place], threshold[place] = tree.feature[node], float(tree.threshold[node])
        fill(int(tree.children_left[node]) if inner else node, 2 * place + 1)
        fill(int(tree.children_right[node]) if inner else node, 2 * place + 2)

    fill(0, 0)
    return feature, threshold, leaf
