"""From scores to masks, in numpy: which weights stay. The same scores always give the same masks, ties included.

Of units with equal scores the first stays: in the order of the layers, then in that of the matrix. Not here: where
scores come from (``scores.py``) and how many weights may stay (``planning.py``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slim_core.checkpoint.sparse import from_blocks, from_matrix, matrix_shape, to_blocks, to_matrix
from slim_prune.sparsity.errors import SparsityError
from slim_prune.sparsity.schemes import NM, Block, Scheme, Unstructured

Array = NDArray[Any]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Units:
    """What competes in one weight: single elements, or blocks.

    Args:
        scores: one per unit.
        sizes: how many weights each unit has; ``None``: one each.
    """

    scores: Array
    sizes: NDArray[np.int64] | None

    @property
    def weights(self) -> int:
        return len(self.scores) if self.sizes is None else int(self.sizes.sum())


def whole(total: int, share: float) -> int:
    """Return how many of ``total`` weights are at most ``share`` of them."""
    return min(total, math.floor(total * share * (1 + 1e-12) + 1e-9))


def select(
    scheme: Unstructured | Block,
    scores: Mapping[str, Array],
    axes: Mapping[str, int],
    kept: int,
    fixed: Mapping[str, int] | None = None,
) -> dict[str, Mask]:
    """Return the masks (true: stays) of the ``kept`` best weights.

    Blocks stay in the order of their mean scores until the next one would be too many.

    Args:
        scheme: what competes, and where.
        scores: for each weight one score per element.
        axes: the input dimension of each weight.
        kept: how many elements stay, over all weights that ``fixed`` does not name.
        fixed: how many elements of some weights stay; these do not compete.
    """
    units = {name: units_of(scheme, values, axes[name]) for name, values in scores.items()}
    fixed = fixed or {}
    counts = {name: fixed[name] for name in units if name in fixed}
    free = [name for name in units if name not in fixed]
    chosen = {name: _best(units[name], count) for name, count in counts.items()}
    if scheme.scope == "global":
        chosen |= _global({name: units[name] for name in free}, kept, scheme.floor)
    else:
        total = sum(units[name].weights for name in free)
        shapes = {name: scores[name].shape for name in free}
        shares = erk(shapes, kept / total) if scheme.scope == "erk" and total else {}
        for name in free:
            share = shares.get(name, kept / total if total else 0.0)
            chosen[name] = _best(units[name], whole(units[name].weights, share))
    return {name: spread(scheme, chosen[name], scores[name].shape, axes[name]) for name in scores}


def above(
    scheme: Unstructured | Block, scores: Mapping[str, Array], axes: Mapping[str, int], threshold: float
) -> dict[str, Mask]:
    """Return the masks of all units whose score, or mean score, is at least ``threshold``."""
    return {
        name: spread(scheme, units_of(scheme, values, axes[name]).scores >= threshold, values.shape, axes[name])
        for name, values in scores.items()
    }


def n_of_m(scores: Array, axis: int, scheme: NM) -> Mask:
    """Return the mask of the ``n`` highest of each ``m`` scores along the inputs; of equal ones the first."""
    matrix = to_matrix(scores, scheme.layout, axis).astype(np.float64)
    _, height, width = matrix.shape
    short = -width % scheme.m
    if short:
        matrix = np.pad(matrix, ((0, 0), (0, 0), (0, short)), constant_values=-np.inf)
    groups = to_blocks(matrix, 1, scheme.m)
    order = np.argsort(-groups, axis=-1, kind="stable")[..., : scheme.n]
    mask = np.zeros(groups.shape, bool)
    np.put_along_axis(mask, order, True, -1)
    return from_matrix(from_blocks(mask, 1, scheme.m, height, width), scores.shape, scheme.layout, axis)


def is_n_of_m(mask: Mask, axis: int, scheme: NM) -> bool:
    """Return whether every group of a mask keeps at most ``n``."""
    groups = to_blocks(to_matrix(mask, scheme.layout, axis), 1, scheme.m)
    return not groups.size or int(np.count_nonzero(groups, axis=-1).max()) <= scheme.n


def erk(shapes: Mapping[str, tuple[int, ...]], share: float) -> dict[str, float]:
    """Return the share of each weight that stays, so that ``share`` of all stays (Evci et al., 2019, arXiv 1911.11134).

    A weight's share is proportional to the sum of its sizes over their product, and at most 1.

    Args:
        shapes: of the weights.
        share: of all weights together.
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    raw = {name: sum(shape) / max(1, sizes[name]) for name, shape in shapes.items()}
    whole_ones: set[str] = set()
    while True:
        rest = [name for name in shapes if name not in whole_ones]
        left = share * sum(sizes.values()) - sum(sizes[name] for name in whole_ones)
        weight = sum(raw[name] * sizes[name] for name in rest)
        factor = left / weight if weight else 0.0
        over = [name for name in rest if factor * raw[name] > 1]
        if not over:
            return {name: 1.0 if name in whole_ones else max(0.0, factor * raw[name]) for name in shapes}
        whole_ones.add(max(over, key=lambda name: raw[name]))


def units_of(scheme: Scheme, scores: Array, axis: int) -> Units:
    """Return what competes in a weight with these scores."""
    if not isinstance(scheme, Block):
        return Units(scores.reshape(-1), None)
    rows, columns = scheme.shape
    matrix = to_matrix(scores, scheme.layout, axis).astype(np.float64)
    count, height, width = matrix.shape
    sizes = np.minimum(rows, height - np.arange(0, height, rows))[:, None] * np.minimum(
        columns, width - np.arange(0, width, columns)
    )
    sums = to_blocks(matrix, rows, columns).sum(-1)  # (matrices, block rows, block columns)
    return Units((sums / sizes).reshape(-1), np.tile(sizes.reshape(-1), count).astype(np.int64))


def spread(scheme: Scheme, chosen: Mask, shape: tuple[int, ...], axis: int) -> Mask:
    """Return the mask of a weight from what was chosen of its units."""
    if not isinstance(scheme, Block):
        return chosen.reshape(shape)
    rows, columns = scheme.shape
    count, height, width = matrix_shape(shape, scheme.layout, axis)
    blocks = chosen.reshape(count, -(-height // rows), -(-width // columns), 1)
    blocks = np.broadcast_to(blocks, (*blocks.shape[:3], rows * columns))
    return from_matrix(from_blocks(blocks, rows, columns, height, width), shape, scheme.layout, axis)


def check_scores(name: str, scores: Array, shape: tuple[int, ...]) -> None:
    """Check that scores are one finite number per weight.

    Raises:
        SparsityError: they are not.
    """
    if scores.shape != shape:
        raise SparsityError(f"the importance gave scores of shape {scores.shape} for a weight of {shape}", where=name)
    if not np.isfinite(scores).all():
        raise SparsityError(
            "the importance gave scores that are not finite", where=name, hint="the weights hold NaN or infinity"
        )


def _global(units: Mapping[str, Units], kept: int, floor: float) -> dict[str, Mask]:
    if not any(len(item.scores) for item in units.values()):
        return {name: np.zeros(0, bool) for name in units}
    starts = np.cumsum([0, *(len(item.scores) for item in units.values())])
    scores = np.concatenate([item.scores for item in units.values()])
    sized = any(item.sizes is not None for item in units.values())
    sizes = (
        np.concatenate([np.ones(len(i.scores), np.int64) if i.sizes is None else i.sizes for i in units.values()])
        if sized
        else None
    )
    chosen = np.zeros(len(scores), bool)
    if floor:
        share = kept / sum(item.weights for item in units.values())
        for start, item in zip(starts, units.values(), strict=False):
            chosen[start : start + len(item.scores)] = _best(item, whole(item.weights, floor * share))
        kept -= int(chosen.sum()) if sizes is None else int(sizes[chosen].sum())
    left = np.flatnonzero(~chosen)
    rest = Units(scores[left], None if sizes is None else sizes[left])
    chosen[left] = _best(rest, max(0, kept))
    return {name: chosen[a:b] for name, a, b in zip(units, starts[:-1], starts[1:], strict=True)}


def _best(units: Units, count: int) -> Mask:
    """Return which units stay so that at most ``count`` weights do."""
    scores = units.scores
    chosen = np.zeros(len(scores), bool)
    if units.sizes is None:
        count = min(count, len(scores))
        if count <= 0:
            return chosen
        limit = np.partition(scores, len(scores) - count)[len(scores) - count]
        chosen[scores > limit] = True
        equal = np.flatnonzero(scores == limit)
        chosen[equal[: count - int(chosen.sum())]] = True
        return chosen
    order = np.argsort(-scores, kind="stable")
    sums = np.cumsum(units.sizes[order])
    number = int(np.searchsorted(sums, count, side="right"))
    chosen[order[:number]] = True
    return chosen
