"""BN scale: the norm's factor of each channel, which sparsity-inducing training has driven towards zero.

Liu et al. 2017, "Learning Efficient Convolutional Networks through Network Slimming", arXiv:1708.06519. Not here: the
training that makes the factors say something (``slimming.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from torch import Tensor

from slim_core.graph.types import ChannelGroup, Graph, Ref
from slim_prune.errors import PlanError
from slim_prune.importance import Importance
from slim_prune.importance.aggregate import Aggregate, Normalize, Tensors, check_names, combined, unit_sums
from slim_prune.importance.magnitude import L1_NORMS, l1

if TYPE_CHECKING:
    from slim_prune.context import Context

#: Norms that work per channel, so that their scale says how much of a channel passes.
_PER_CHANNEL = ("batch_norm", "instance_norm")


class BNScale:
    """The absolute scale of the norms that a unit passes: ``(units,)``.

    Where a group has no batch norm, ``otherwise`` decides; the plan's notes name such groups. Scales are found by what
    the forward computes, whether the norm is a module or a function.

    Args:
        norms: batch or any: batch and instance norms alone, or layer, group and RMS norms too.
        otherwise: l1 or error: how a group without such a norm is scored: by ``l1``, or not at all.
        normalize: one of mean, max, sum, minmax, gaussian, lamp, none; ``"none"`` ranks all layers by one threshold, as
            the paper does.
        aggregate: one of mean, sum, max, prod, first: how the norms of a group become one score.
    """

    label: ClassVar[str] = "bn_scale"
    needs: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        *,
        norms: Literal["batch", "any"] = "batch",
        otherwise: Literal["l1", "error"] = "l1",
        normalize: Normalize = "mean",
        aggregate: Aggregate = "mean",
    ) -> None:
        check_names(normalize, aggregate)
        self._norms, self._otherwise = norms, otherwise
        self._normalize, self._aggregate = normalize, aggregate

    def prepare(self, context: Context) -> Importance:
        """Find the scales in the recorded forward."""
        scales = scale_names(context.coupling.graph, "norm" if self._norms == "any" else "channel")
        without = [group.name for group in context.coupling.groups if not any(m.name in scales for m in group.members)]
        if without and self._otherwise == "l1":
            named = ", ".join(without[:4]) + (f" and {len(without) - 4} more" if len(without) > 4 else "")
            context.note(f"importance bn_scale: scored by l1, because they pass no batch norm: {named}")

        def importance(group: ChannelGroup, tensors: Mapping[str, Tensor]) -> Tensor:
            members = [m for m in group.members if m.name in scales and m.name in tensors]
            if not members:
                return self._fallback(group, tensors)
            memo = tensors if isinstance(tensors, Tensors) else Tensors(tensors)
            scored = ((m, unit_sums(m, memo.measured(L1_NORMS, m.name, m.dim))) for m in members)
            return combined(group, scored, normalize=self._normalize, aggregate=self._aggregate)

        return importance

    def _fallback(self, group: ChannelGroup, tensors: Mapping[str, Tensor]) -> Tensor:
        if self._otherwise == "error":
            raise PlanError(
                "importance 'bn_scale' finds no batch norm whose scale says how much these channels matter",
                where=f"channel group '{group.name}'",
                hint="exclude it, or leave otherwise='l1', which scores such groups by their weights",
            )
        return l1(group, tensors, normalize=self._normalize, aggregate=self._aggregate)


def scale_names(graph: Graph, which: Literal["channel", "norm"] = "channel") -> set[str]:
    """Return the state-dict names of the scales that norms of a recorded forward apply.

    Args:
        graph: the recording.
        which: ``"channel"``: of batch and instance norms; ``"norm"``: of layer, group and RMS norms too.
    """
    wanted = _PER_CHANNEL if which == "channel" else ("norm",)
    found: set[str] = set()
    for node in graph.nodes:
        weight = node.args.get("weight")
        if isinstance(weight, Ref) and any(word in node.op for word in wanted):
            value = graph.values[weight.index]
            if value.kind == "parameter":
                found.update(value.names)
    return found
