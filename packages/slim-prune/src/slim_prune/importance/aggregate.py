"""From numbers per weight to one score per unit, over all members of a channel group.

Not here: which numbers (``magnitude.py`` and the other criteria).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slim_core.errors import SlimError
from slim_core.graph.types import ChannelGroup, Member

#: What brings the members of a group to one scale; see :func:`normalized`.
Normalize = Literal["mean", "max", "sum", "minmax", "gaussian", "lamp", "none"]
#: How the scores of the members become one; see :func:`combined`.
Aggregate = Literal["mean", "sum", "max", "prod", "first"]
Measure = Callable[[Tensor, int], Tensor]
Scores = NDArray[np.float64]

_BLOCK = 2**18  # elements that are worked on at a time: they stay in cache
_SCALES: Mapping[str, Callable[[Scores], float]] = {
    "mean": lambda scores: float(np.add.reduce(scores)) / len(scores),
    "max": lambda scores: float(scores.max()),
    "sum": lambda scores: float(scores.sum()),
    "none": lambda scores: 1.0,
}
_COMBINED: Mapping[str, Callable[[Scores], Scores]] = {
    "sum": lambda table: table.sum(0),
    "max": lambda table: table.max(0),
    "prod": lambda table: table.prod(0),
    "first": lambda table: table[0],
}

#: What says nothing about how much a channel matters: offsets and statistics.
_NOT_SCORED = ("bias", "running_mean", "running_var", "num_batches_tracked")


def scored_members(group: ChannelGroup, tensors: Mapping[str, Tensor]) -> list[tuple[Member, Tensor]]:
    """Return the members that carry weights, with their tensors: all but offsets (biases) and running statistics.

    A group of nothing else is scored by whatever it has.
    """
    present = [(member, tensors[member.name]) for member in group.members if member.name in tensors]
    floating = [(member, tensor) for member, tensor in present if tensor.is_floating_point()]
    weights = [
        (member, tensor) for member, tensor in floating if not member.name.rsplit(".", 1)[-1].endswith(_NOT_SCORED)
    ]
    return weights or floating


class Tensors(dict[str, Tensor]):
    """Tensors by name that remember what was measured on them: wide layers belong to many groups."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__(tensors)
        self._measured: dict[tuple[Measure, str, int], Scores] = {}

    def measured(self, measure: Measure, name: str, dim: int) -> Scores:
        """Return ``measure(self[name], dim)`` in float64; computed once for each measuring function."""
        key = (measure, name, dim)
        known = self._measured.get(key)
        if known is None:
            tensor = self[name]
            if isinstance(measure, SliceSums) and dim < 2 <= tensor.dim():
                found = measure.along(tensor, (0, 1))  # a weight is mostly asked for both, and reading it is the cost
            else:
                found = {dim: measure(tensor, dim)}
            for other, values in found.items():
                self._measured[measure, name, other] = values.double().cpu().numpy()
            known = self._measured[key]
        return known


class SliceSums:
    """Measures the slices of a weight: the sum of ``function(weight)`` over all other dimensions, then ``finish``.

    The weight is read once, in blocks that stay in cache, for all dimensions that are asked. Half precision is summed
    in float32.

    Args:
        function: element-wise, with an ``out`` argument: ``torch.abs``, ``torch.square``.
        finish: applied to the sums.
    """

    def __init__(self, function: Callable[..., Tensor], finish: Callable[[Tensor], Tensor] | None = None) -> None:
        self._function, self._finish = function, finish

    def __call__(self, tensor: Tensor, dim: int) -> Tensor:
        return self.along(tensor, (dim,))[dim]

    def along(self, tensor: Tensor, dims: Sequence[int]) -> dict[int, Tensor]:
        """Return the measure along each of ``dims``: ``(tensor.shape[dim],)`` each."""
        if tensor.dim() == 1 or max(dims) > 1 or tensor.numel() == 0:
            sums = {dim: self._whole(tensor, dim) for dim in dims}
        else:
            rows, columns = self._rows_and_columns(tensor)
            sums = {dim: rows if dim == 0 else columns for dim in dims}
        return sums if self._finish is None else {dim: self._finish(values) for dim, values in sums.items()}

    def _whole(self, tensor: Tensor, dim: int) -> Tensor:
        values = self._function(_wide(tensor))
        others = [other for other in range(values.dim()) if other != dim]
        return values.sum(others) if others else values

    def _rows_and_columns(self, tensor: Tensor) -> tuple[Tensor, Tensor]:
        count, inner = tensor.shape[0], tensor.shape[1:].numel()
        step = max(1, min(count, _BLOCK // inner))
        first = _wide(tensor[:1])
        rows, columns = first.new_empty(count), first.new_zeros(inner)
        buffer = first.new_empty(step, inner)
        for start in range(0, count, step):
            block = _wide(tensor[start : start + step]).reshape(-1, inner)
            values = self._function(block, out=buffer[: len(block)])
            torch.sum(values, 1, out=rows[start : start + step])
            columns += values.sum(0)
        return rows, columns.reshape(tensor.shape[1], -1).sum(1)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def over_members(
    group: ChannelGroup,
    tensors: Mapping[str, Tensor],
    measure: Measure,
    *,
    normalize: Normalize = "mean",
    aggregate: Aggregate = "mean",
) -> Tensor:
    """Score every member with ``measure``, bring the members to one scale, and make one score of them: ``(units,)``.

    Args:
        group: the channel group.
        tensors: parameters and buffers by name.
        measure: ``(tensor, dim) -> (tensor.shape[dim],)``: one non-negative number per index. A function of a module
            rather than a lambda is called once per tensor and dimension, however many groups ask.
        normalize: what brings the members to one scale, so that a wide layer does not drown a narrow one; see
            :func:`normalized`.
        aggregate: how the members' scores become one; see :func:`combined`.
    """
    memo = tensors if isinstance(tensors, Tensors) else Tensors(tensors)
    members = scored_members(group, tensors)
    if not members:
        raise nothing_to_score(group)
    scale_of = _SCALES.get(normalize)
    if aggregate == "mean" and scale_of is not None:  # what nearly every plan asks for, without detours
        total = np.zeros(group.units)
        for member, _ in members:
            scores = unit_sums(member, memo.measured(measure, member.name, member.dim))
            scale = scale_of(scores)
            if scale > 0:
                total += scores / scale
        return torch.from_numpy(total / len(members))
    check_names(normalize, aggregate)
    scored = ((member, unit_sums(member, memo.measured(measure, member.name, member.dim))) for member, _ in members)
    return combined(group, scored, normalize=normalize, aggregate=aggregate)


def unit_sums(member: Member, values: Scores) -> Scores:
    """Return one number per unit from one per index of the member's dimension: those of each unit are added."""
    indices = member.indices
    return values.take(indices[:, 0]) if indices.shape[1] == 1 else values.take(indices).sum(1)


def combined(
    group: ChannelGroup,
    scored: Iterable[tuple[Member, Scores]],
    *,
    normalize: Normalize = "mean",
    aggregate: Aggregate = "mean",
    signed: bool = False,
) -> Tensor:
    """Bring the scores of several members to one scale and make one score per unit of them: ``(units,)``, float64.

    Args:
        group: the channel group.
        scored: the members with their scores, ``(units,)`` each.
        normalize: see :func:`normalized`.
        aggregate: ``"mean"``, ``"sum"``, ``"max"`` or ``"prod"`` over the members, or ``"first"``: only the first
            member that makes the channels counts, as if nothing were coupled to it.
        signed: scores may be negative; a scale is then that of their absolute values.
    """
    parts = list(scored)
    if aggregate == "first":
        parts = [next((part for part in parts if part[0].kind == "out"), parts[0])]
    table = np.stack([normalized(scores, normalize, signed=signed) for _, scores in parts])
    return torch.from_numpy(table.mean(0) if aggregate == "mean" else _COMBINED[aggregate](table))


def normalized(scores: Scores, how: Normalize, *, signed: bool = False) -> Scores:
    """Bring the scores of one member (or of one group) to a common scale.

    ``"mean"``, ``"max"`` and ``"sum"`` divide by that figure; ``"minmax"`` maps the range onto 0 to 1; ``"gaussian"``
    gives zero mean and unit standard deviation; ``"lamp"`` divides each by the sum of all that are not smaller (Lee et
    al. 2021, arXiv:2010.07611), which makes scores of different layers comparable; ``"none"`` leaves them. Scores that
    are all alike become zero where there is nothing to divide by.
    """
    if how in _SCALES:
        scale = _SCALES[how](np.abs(scores) if signed else scores)
        return scores / scale if scale > 0 else np.zeros_like(scores)
    if how == "lamp":
        order = np.argsort(scores, kind="stable")
        ascending = scores[order]
        tail = np.cumsum(ascending[::-1])[::-1]
        result = np.empty_like(scores)
        result[order] = np.divide(ascending, tail, out=np.zeros_like(tail), where=tail > 0)
        return result
    start, scale = (scores.mean(), scores.std()) if how == "gaussian" else (scores.min(), np.ptp(scores))
    return (scores - start) / scale if scale > 0 else np.zeros_like(scores)


def check_names(normalize: str, aggregate: str = "mean") -> None:
    """Raise ``SlimError`` for a normalization or aggregation that there is not."""
    for what, name, known in (
        ("normalization", normalize, get_args(Normalize)),
        ("aggregation over members", aggregate, get_args(Aggregate)),
    ):
        if name not in known:
            raise SlimError(f"unknown {what} {name!r}", hint=f"one of {', '.join(known)}")


def nothing_to_score(group: ChannelGroup) -> SlimError:
    return SlimError("nothing to score: no member of the group has weights", where=f"channel group '{group.name}'")
