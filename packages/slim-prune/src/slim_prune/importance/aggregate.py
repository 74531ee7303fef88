"""From numbers per weight to one score per unit, over all members of a channel group.

Not here: which numbers (``magnitude.py`` and the other criteria).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slim_core.errors import SlimError
from slim_core.graph.types import ChannelGroup, Member

Normalize = Literal["mean", "max", "sum", "none"]
Measure = Callable[[Tensor, int], Tensor]
Scores = NDArray[np.float64]

_BLOCK = 2**18  # elements that are worked on at a time: they stay in cache
_SCALES: Mapping[str, Callable[[Scores], float]] = {
    "mean": lambda scores: float(scores.sum()) / len(scores),
    "max": lambda scores: float(scores.max()),
    "sum": lambda scores: float(scores.sum()),
    "none": lambda scores: 1.0,
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
        if key not in self._measured:
            tensor = self[name]
            if isinstance(measure, SliceSums) and dim < 2 <= tensor.dim():
                found = measure.along(tensor, (0, 1))  # a weight is mostly asked for both, and reading it is the cost
            else:
                found = {dim: measure(tensor, dim)}
            for other, values in found.items():
                self._measured[measure, name, other] = values.double().cpu().numpy()
        return self._measured[key]


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
    group: ChannelGroup, tensors: Mapping[str, Tensor], measure: Measure, *, normalize: Normalize = "mean"
) -> Tensor:
    """Score every member with ``measure``, bring the members to one scale, and average them: ``(units,)``, float64.

    Args:
        group: the channel group.
        tensors: parameters and buffers by name.
        measure: ``(tensor, dim) -> (tensor.shape[dim],)``: one non-negative number per index. A function of a module
            rather than a lambda is called once per tensor and dimension, however many groups ask.
        normalize: what a member's scores are divided by before averaging, so that a wide layer does not drown a narrow
            one: their mean, maximum or sum, or nothing.
    """
    if normalize not in _SCALES:
        raise SlimError(f"unknown normalization {normalize!r}", hint=f"one of {', '.join(_SCALES)}")
    memo = tensors if isinstance(tensors, Tensors) else Tensors(tensors)
    total = np.zeros(group.units)
    members = scored_members(group, tensors)
    if not members:
        raise SlimError("nothing to score: no member of the group has weights", where=f"channel group '{group.name}'")
    for member, _ in members:
        scores = memo.measured(measure, member.name, member.dim)[member.indices]
        scores = scores.sum(1) if scores.shape[1] > 1 else scores[:, 0]
        scale = _SCALES[normalize](scores)
        total += scores / scale if scale > 0 else 0.0
    return torch.from_numpy(total / len(members))
