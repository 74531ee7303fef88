"""Normalizations. Batch and instance norm work per channel; layer, group and RMS norm take statistics over channels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slim_core.graph.masking import DIRECTION_DIM
from slim_core.graph.rules.base import Context, Labels, Rule
from slim_core.graph.types import Node, Ref


def batch_norm(node: Node, ctx: Context) -> None:
    x: Ref = node.args["input"]
    dims = list(ctx.dims(x))
    training = node.args.get("training", node.args.get("train", node.args.get("use_input_stats", False)))
    names = ("weight", "bias", "running_mean", "running_var")
    for ref in (node.args.get(name) for name in names):
        if isinstance(ref, Ref):
            dims[1] = _tied(ctx, dims[1], ctx.dims(ref)[0])
    zero = [False] * len(dims)
    zero[1] = True if not training else ctx.zero(x)[1] or isinstance(node.args.get("weight"), Ref)
    if not isinstance(node.args.get("running_mean"), Ref):
        zero[1] = zero[1] and (ctx.zero(x)[1] or isinstance(node.args.get("weight"), Ref))
    elif not isinstance(node.args.get("weight"), Ref):
        zero[1] = zero[1] and ctx.zero(x)[1]
    _set(node, ctx, dims, zero)


def layer_norm(node: Node, ctx: Context) -> None:
    """``layer_norm``, ``rms_norm``: the last dimensions, which the weight has."""
    x: Ref = node.args["input"]
    dims, zero = list(ctx.dims(x)), list(ctx.zero(x))
    over = range(len(dims) - len(node.args["normalized_shape"]), len(dims))
    weight, bias = node.args.get("weight"), node.args.get("bias")
    for dim in over:
        ctx.takes_statistics(dims[dim])
        for ref in (weight, bias):
            if isinstance(ref, Ref):
                dims[dim] = _tied(ctx, dims[dim], ctx.dims(ref)[dim - over.start])
        zero[dim] = isinstance(weight, Ref) or ("rms" in node.op and zero[dim])
    for dim in range(over.start):
        zero[dim] = zero[dim] and not isinstance(bias, Ref)
    if len(over) > 1:
        for dim in over:
            ctx.freeze(dims[dim], "a norm takes statistics over several dimensions at once")
    _set(node, ctx, dims, zero)


def group_norm(node: Node, ctx: Context) -> None:
    x: Ref = node.args["input"]
    dims = list(ctx.dims(x))
    groups: int = node.args.get("num_groups", node.args.get("group", 1))
    weight = node.args.get("weight")
    for ref in (weight, node.args.get("bias")):
        if isinstance(ref, Ref):
            dims[1] = _tied(ctx, dims[1], ctx.dims(ref)[0])
    channels = ctx.shape(x)[1]
    if groups < channels:
        ctx.takes_statistics(dims[1])
        if groups > 1:
            ctx.tie_columns(dims[1], groups)
    zero = [False] * len(dims)
    zero[1] = isinstance(weight, Ref) or (groups == channels and ctx.zero(x)[1])
    for labels in dims[2:]:
        ctx.freeze(labels, "a norm takes statistics over this dimension")
    _set(node, ctx, dims, zero)


def weight_norm(node: Node, ctx: Context) -> None:
    """``g * v / |v|``, a length for each index of one dimension; the sum of squares passes over masked columns.

    A masked row has a length of zero and keeps its direction (``masking.py``): nothing is divided by zero.
    """
    v, g, dim = node.args["v"], node.args["g"], node.args.get("dim", 0)
    dims, zero = list(ctx.dims(v)), list(ctx.zero(v))
    for position in range(len(dims)):
        if position == dim:
            dims[dim] = _tied(ctx, dims[dim], ctx.dims(g)[dim])
            zero[dim] = ctx.zero(g)[dim]
            if dim != DIRECTION_DIM:
                ctx.protect(dims[dim], "weight norm of a dimension other than the first")
        else:
            ctx.contract(dims[position], zero[position], "weight norm sums squares")
    ctx.role(v, 0, "out")
    ctx.role(v, 1, "in")
    _set(node, ctx, dims, zero)


def _tied(ctx: Context, first: Labels | None, second: Labels | None) -> Labels | None:
    return None if first is None and second is None else ctx.tie(first, second)


def _set(node: Node, ctx: Context, dims: list[Labels | None], zero: Any) -> None:
    ctx.set(dims, zero)
    for position, index in enumerate(node.outputs[1:], 1):  # saved statistics
        ctx.set((None,) * len(ctx.graph.values[index].shape), output=position)


RULES: Mapping[str, Rule] = {
    **{
        f"aten.{name}": batch_norm
        for name in (
            "batch_norm", "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training",
            "cudnn_batch_norm", "miopen_batch_norm", "instance_norm", "_batch_norm_no_update",
        )
    },
    "aten.layer_norm": layer_norm,
    "aten.native_layer_norm": layer_norm,
    "aten.rms_norm": layer_norm,
    "aten._fused_rms_norm": layer_norm,
    "aten._weight_norm": weight_norm,
    "aten._weight_norm_interface": weight_norm,
    "aten.group_norm": group_norm,
    "aten.native_group_norm": group_norm,
}  # fmt: skip
