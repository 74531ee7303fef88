"""Magnitude criteria: small weights first.

Li et al. 2017, "Pruning Filters for Efficient ConvNets", arXiv:1608.08710, over all members of the channel group as in
Fang et al. 2023, "DepGraph: Towards Any Structural Pruning", arXiv:2301.12900.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from slim_core.errors import SlimError
from slim_core.graph.types import ChannelGroup
from slim_prune.importance.aggregate import Aggregate, Normalize, SliceSums, check_names, over_members


def l1(
    group: ChannelGroup,
    tensors: Mapping[str, Tensor],
    *,
    normalize: Normalize = "mean",
    aggregate: Aggregate = "mean",
) -> Tensor:
    """Sum of absolute weights: ``(units,)``.

    Args:
        group: the channel group.
        tensors: parameters and buffers by name.
        normalize: one of mean, max, sum, minmax, gaussian, lamp, none: what brings the members to one scale.
        aggregate: one of mean, sum, max, prod, first: how the members' scores become one.
    """
    return over_members(group, tensors, L1_NORMS, normalize=normalize, aggregate=aggregate)


def l2(
    group: ChannelGroup,
    tensors: Mapping[str, Tensor],
    *,
    normalize: Normalize = "mean",
    aggregate: Aggregate = "mean",
) -> Tensor:
    """Euclidean norm of the weights: ``(units,)``. Several indices of one unit add their norms.

    Args:
        group: the channel group.
        tensors: parameters and buffers by name.
        normalize: one of mean, max, sum, minmax, gaussian, lamp, none: what brings the members to one scale.
        aggregate: one of mean, sum, max, prod, first: how the members' scores become one.
    """
    return over_members(group, tensors, L2_NORMS, normalize=normalize, aggregate=aggregate)


def lamp(group: ChannelGroup, tensors: Mapping[str, Tensor], *, aggregate: Aggregate = "mean") -> Tensor:
    """Squared norm over the sum of all that are not smaller: ``(units,)``, comparable over layers.

    Lee et al. 2021, "Layer-Adaptive Sparsity for the Magnitude-Based Pruning", arXiv:2010.07611, for slices in place
    of single weights. Within one layer it ranks as ``l2`` does; it is meant for a global ranking.

    Args:
        group: the channel group.
        tensors: parameters and buffers by name.
        aggregate: one of mean, sum, max, prod, first: how the members' scores become one.
    """
    return over_members(group, tensors, SQUARED_NORMS, normalize="lamp", aggregate=aggregate)


class Lp:
    """The p-norm of the weights: ``(units,)``. Several indices of one unit add their norms.

    Args:
        p: the norm's order, above 0; below 1 many small weights count more than one large.
        normalize: one of mean, max, sum, minmax, gaussian, lamp, none: what brings the members to one scale.
        aggregate: one of mean, sum, max, prod, first: how the members' scores become one.
    """

    def __init__(self, *, p: float = 2.0, normalize: Normalize = "mean", aggregate: Aggregate = "mean") -> None:
        if not 0 < p < float("inf"):
            raise SlimError(f"importance 'lp': p must be above 0, not {p!r}", hint="1 and 2 are the common ones")
        check_names(normalize, aggregate)
        self.p, self.normalize, self.aggregate = p, normalize, aggregate
        self._measure = SliceSums(self._power, finish=lambda sums: sums.pow(1 / p))

    def __call__(self, group: ChannelGroup, tensors: Mapping[str, Tensor]) -> Tensor:
        return over_members(group, tensors, self._measure, normalize=self.normalize, aggregate=self.aggregate)

    def _power(self, values: Tensor, *, out: Tensor | None = None) -> Tensor:
        return torch.pow(values.abs(), self.p, out=out)


#: ``(tensor, dim) -> (tensor.shape[dim],)``: the sum of absolute values of each slice.
L1_NORMS = SliceSums(torch.abs)
#: The Euclidean norm of each slice.
L2_NORMS = SliceSums(torch.square, finish=torch.sqrt)
#: The squared Euclidean norm of each slice.
SQUARED_NORMS = SliceSums(torch.square)
