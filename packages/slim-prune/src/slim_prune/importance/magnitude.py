"""Magnitude criteria: small weights first.

Li et al. 2017, "Pruning Filters for Efficient ConvNets", arXiv:1608.08710, over all members of the channel group as in
Fang et al. 2023, "DepGraph: Towards Any Structural Pruning", arXiv:2301.12900.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from slim_core.graph.types import ChannelGroup
from slim_prune.importance.aggregate import Normalize, over_members

_BLOCK = 2**17  # elements that are worked on at a time: they stay in cache


def l1(group: ChannelGroup, tensors: Mapping[str, Tensor], *, normalize: Normalize = "mean") -> Tensor:
    """Sum of absolute weights: ``(units,)``."""
    return over_members(group, tensors, l1_norms, normalize=normalize)


def l2(group: ChannelGroup, tensors: Mapping[str, Tensor], *, normalize: Normalize = "mean") -> Tensor:
    """Euclidean norm of the weights: ``(units,)``. Several indices of one unit add their norms."""
    return over_members(group, tensors, l2_norms, normalize=normalize)


def l1_norms(tensor: Tensor, dim: int) -> Tensor:
    """Return the sum of absolute values of each slice along ``dim``: ``(tensor.shape[dim],)``."""
    return _slice_sums(tensor, dim, torch.abs)


def l2_norms(tensor: Tensor, dim: int) -> Tensor:
    """Return the Euclidean norm of each slice along ``dim``: ``(tensor.shape[dim],)``."""
    return _slice_sums(tensor, dim, torch.square).sqrt_()


def _slice_sums(tensor: Tensor, dim: int, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Sum ``function(weight)`` over all dimensions but ``dim``, in blocks of rows; half precision in float32."""
    if tensor.dtype in (torch.float16, torch.bfloat16):
        tensor = tensor.float()
    if tensor.dim() == 1:
        return function(tensor)
    others = [other for other in range(tensor.dim()) if other != dim]
    step = max(1, _BLOCK * tensor.shape[0] // max(1, tensor.numel()))
    if step >= tensor.shape[0]:
        return _folded(function(tensor), dim, others)
    parts = [_folded(function(block), dim, others) for block in tensor.split(step)]
    return torch.cat(parts) if dim == 0 else torch.stack(parts).sum(0)


def _folded(values: Tensor, dim: int, others: list[int]) -> Tensor:
    if dim < 2 and values.dim() > 2 and values.is_contiguous():  # kernel positions lie together: fold them first
        values, others = values.flatten(2).sum(2), [1 - dim]
    return values.sum(others)
