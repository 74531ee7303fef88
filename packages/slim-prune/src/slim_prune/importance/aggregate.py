"""From numbers per weight to one score per unit, over all members of a channel group.

Not here: which numbers (``magnitude.py`` and the other criteria).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from slim_core.errors import SlimError
from slim_core.graph.types import ChannelGroup, Member

Normalize = Literal["mean", "max", "sum", "none"]

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


def per_index(tensor: Tensor, dim: int, order: float) -> Tensor:
    """Return the norm of each slice of ``tensor`` along ``dim``: ``(tensor.shape[dim],)``."""
    others = [other for other in range(tensor.dim()) if other != dim]
    wide = torch.float32 if tensor.dtype in (torch.float16, torch.bfloat16) else None
    if not others:
        return tensor.abs() if wide is None else tensor.abs().to(wide)
    norms: Tensor = torch.linalg.vector_norm(tensor, ord=order, dim=others, dtype=wide)
    return norms


def over_members(
    group: ChannelGroup,
    tensors: Mapping[str, Tensor],
    measure: Callable[[Tensor, int], Tensor],
    *,
    normalize: Normalize = "mean",
) -> Tensor:
    """Score every member with ``measure``, bring the members to one scale, and average them: ``(units,)``.

    Args:
        group: the channel group.
        tensors: parameters and buffers by name.
        measure: ``(tensor, dim) -> (tensor.shape[dim],)``: one non-negative number per index.
        normalize: what a member's scores are divided by before averaging, so that a wide layer does not drown a narrow
            one: their mean, maximum or sum, or nothing.
    """
    total: Tensor | None = None
    members = scored_members(group, tensors)
    for member, tensor in members:
        index = torch.from_numpy(member.indices).to(tensor.device)
        measured = measure(tensor, member.dim)
        units = measured[index].sum(1) if index.shape[1] > 1 else measured[index[:, 0]]
        units = _normalized(units, normalize)
        total = units if total is None else total + units.to(total.device)
    if total is None:
        raise SlimError("nothing to score: no member of the group has weights", where=f"channel group '{group.name}'")
    return total / len(members)


def _normalized(scores: Tensor, how: Normalize) -> Tensor:
    if how == "none":
        return scores
    if how == "mean":
        scale = scores.mean()
    elif how == "max":
        scale = scores.max()
    elif how == "sum":
        scale = scores.sum()
    else:
        raise SlimError(f"unknown normalization {how!r}", hint="one of 'mean', 'max', 'sum', 'none'")
    return torch.where(scale > 0, scores / scale, torch.zeros_like(scores))
