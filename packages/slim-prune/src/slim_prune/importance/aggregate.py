"""From numbers per weight to one score per unit, over all members of a channel group.

Not here: which numbers (``magnitude.py`` and the other criteria).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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

_SCALES: Mapping[str, Callable[[Scores], float]] = {
    "mean": lambda scores: float(scores.mean()),
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
            self._measured[key] = measure(self[name], dim).double().cpu().numpy()
        return self._measured[key]


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
        scores = memo.measured(measure, member.name, member.dim)[member.indices].sum(1)
        scale = _SCALES[normalize](scores)
        total += scores / scale if scale > 0 else 0.0
    return torch.from_numpy(total / len(members))
