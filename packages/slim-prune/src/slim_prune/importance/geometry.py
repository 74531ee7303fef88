"""FPGM: filters near the geometric median of their layer can be replaced by the others.

He et al. 2019, "Filter Pruning via Geometric Median for Deep Convolutional Neural Networks Acceleration",
arXiv:1811.00250, over all members of the channel group.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from slim_core.graph.types import ChannelGroup, Member
from slim_prune.importance.aggregate import (
    Aggregate,
    Normalize,
    check_names,
    combined,
    nothing_to_score,
    scored_members,
)

Distance = Literal["l2", "l1", "cosine"]

_BLOCK = 2**24  # distances that are held at a time


def fpgm(
    group: ChannelGroup,
    tensors: Mapping[str, Tensor],
    *,
    distance: Distance = "l2",
    normalize: Normalize = "mean",
    aggregate: Aggregate = "mean",
) -> Tensor:
    """Sum of the distances to the other units' weights: ``(units,)``; the least is nearest to the geometric median.

    Weights of norms and other scales have one number per unit; they are left out where the group has any others.

    Args:
        group: the channel group.
        tensors: parameters and buffers by name.
        distance: l2, l1 or cosine: what is measured between two units' weights.
        normalize: one of mean, max, sum, minmax, gaussian, lamp, none: what brings the members to one scale.
        aggregate: one of mean, sum, max, prod, first: how the members' scores become one.
    """
    check_names(normalize, aggregate)
    members = scored_members(group, tensors)
    wide = [(member, tensor) for member, tensor in members if tensor.dim() > 1] or members
    if not wide:
        raise nothing_to_score(group)
    scored = (
        (member, distance_sums(slices(member, tensor), distance).double().cpu().numpy()) for member, tensor in wide
    )
    return combined(group, scored, normalize=normalize, aggregate=aggregate)


def slices(member: Member, tensor: Tensor) -> Tensor:
    """Return everything that each unit has in a tensor, as one row per unit: ``(units, weights)``."""
    index = torch.from_numpy(member.indices).to(tensor.device)
    rows = tensor.movedim(member.dim, 0).index_select(0, index.reshape(-1))
    return rows.reshape(len(index), -1)


def distance_sums(rows: Tensor, distance: Distance = "l2") -> Tensor:
    """Return the sum of the distances from each row to all rows: ``(rows,)``. Half precision counts in float32."""
    if rows.dtype in (torch.float16, torch.bfloat16):
        rows = rows.float()
    if distance == "cosine":
        rows = torch.nn.functional.normalize(rows, dim=1)
        similar = rows @ rows.sum(0)  # (rows,)
        return len(rows) - similar
    if distance == "l2":
        rows = rows - rows.mean(0)  # changes no distance, and lessens cancellation
    step = max(1, _BLOCK // max(1, len(rows)))
    sums = rows.new_empty(len(rows))
    for start in range(0, len(rows), step):
        block = rows[start : start + step]
        distances = torch.cdist(block, rows, p=1.0 if distance == "l1" else 2.0)  # (block, rows)
        distances.diagonal(start).zero_()  # a row is at no distance from itself, whatever rounding says
        sums[start : start + step] = distances.sum(1)
    return sums
