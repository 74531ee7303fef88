"""Magnitude criteria: small weights first.

Li et al. 2017, "Pruning Filters for Efficient ConvNets", arXiv:1608.08710, over all members of the channel group as in
Fang et al. 2023, "DepGraph: Towards Any Structural Pruning", arXiv:2301.12900.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from slim_core.graph.types import ChannelGroup
from slim_prune.importance.aggregate import Normalize, SliceSums, over_members


def l1(group: ChannelGroup, tensors: Mapping[str, Tensor], *, normalize: Normalize = "mean") -> Tensor:
    """Sum of absolute weights: ``(units,)``."""
    return over_members(group, tensors, L1_NORMS, normalize=normalize)


def l2(group: ChannelGroup, tensors: Mapping[str, Tensor], *, normalize: Normalize = "mean") -> Tensor:
    """Euclidean norm of the weights: ``(units,)``. Several indices of one unit add their norms."""
    return over_members(group, tensors, L2_NORMS, normalize=normalize)


#: ``(tensor, dim) -> (tensor.shape[dim],)``: the sum of absolute values of each slice.
L1_NORMS = SliceSums(torch.abs)
#: The Euclidean norm of each slice.
L2_NORMS = SliceSums(torch.square, finish=torch.sqrt)
