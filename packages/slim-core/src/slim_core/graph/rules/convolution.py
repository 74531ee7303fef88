"""Convolutions: plain, grouped, depthwise, transposed."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from slim_core.graph.rules.base import Context, Dims, Labels, Rule
from slim_core.graph.types import Node, Ref


def convolution(node: Node, ctx: Context) -> None:
    if node.args.get("transposed", "transpose" in node.op):
        _transposed(node, ctx)
    else:
        _plain(node, ctx)


def _plain(node: Node, ctx: Context) -> None:
    weight: Ref = node.args["weight"]
    out, inside, *kernel = ctx.dims(weight)
    x, batch, over = _input(node, ctx, len(kernel))
    ctx.role(weight, 0, "out")
    ctx.role(weight, 1, "in")
    for labels in kernel:
        ctx.fix(labels)
    groups = node.args["groups"]
    if groups == 1:
        _tie_sized(ctx, x, inside)
    elif out is not None:
        per_in, per_out = ctx.shape(weight)[1], ctx.shape(weight)[0] // groups
        whole = per_in == 1 or per_out == 1
        touched = out if x is None else np.concatenate([out, x])
        if not whole and x is not None:
            whole = ctx.choose(2, touched) == 1
        if whole:  # a group goes as a whole: its inputs and its outputs
            ctx.tie(ctx.tie_rows(x, groups), ctx.tie_rows(out, groups))
            ctx.freeze(inside, "the inputs of one group of a grouped convolution go as a whole")
        else:  # equal positions of all groups go together
            ctx.tie_columns(out, groups)
            ctx.tie(ctx.tie_columns(x, groups), inside)
    _finish(node, ctx, batch, out, over)


def _transposed(node: Node, ctx: Context) -> None:
    weight: Ref = node.args["weight"]
    inside, out, *kernel = ctx.dims(weight)
    x, batch, over = _input(node, ctx, len(kernel))
    ctx.role(weight, 0, "in")
    ctx.role(weight, 1, "out")
    for labels in kernel:
        ctx.fix(labels)
    _tie_sized(ctx, x, inside)
    groups = node.args["groups"]
    made: Labels | None = out
    if groups > 1:
        per_in, per_out = ctx.shape(weight)[0] // groups, ctx.shape(weight)[1]
        if per_in == 1 or per_out == 1:
            rows = ctx.tie_rows(inside, groups)
            ctx.freeze(out, "the outputs of one group of a grouped convolution go as a whole")
            made = None if rows is None else np.repeat(rows, per_out)
        else:
            ctx.tie_columns(inside, groups)
            made = None if out is None else np.tile(out, groups)
    _finish(node, ctx, batch, made, over)


def _input(node: Node, ctx: Context, spatial: int) -> tuple[Labels | None, Dims, Dims]:
    """Return the labels of the channels, of what stands before them, and of what the windows slide over."""
    ref: Ref = node.args["input"] if "input" in node.args else node.args["self"]
    dims = ctx.dims(ref)
    channel = len(dims) - spatial - 1
    over = dims[channel + 1 :]
    if spatial == 1 and over[0] is not None and _mixes_neighbours(node, ctx, ref):
        ctx.takes_statistics(over[0])
        return dims[channel], dims[:channel], over
    for labels in over:
        ctx.freeze(labels, "a convolution slides over this dimension")
    return dims[channel], dims[:channel], (None,) * spatial


def _mixes_neighbours(node: Node, ctx: Context, x: Ref) -> bool:
    """Return whether one window slides along the channels, as in efficient channel attention: it goes on over the rest.

    It has one input, one output, and gives as many entries as it takes.
    """
    weight: Ref = node.args["weight"]
    steps = node.args.get("stride", ())
    same = ctx.graph.values[node.outputs[0]].shape[-1] == ctx.shape(x)[-1]
    return ctx.shape(weight)[:2] == (1, 1) and same and all(step == 1 for step in steps)


def _tie_sized(ctx: Context, first: Labels | None, second: Labels | None) -> None:
    if first is not None or second is not None:
        ctx.tie(first, second)


def _finish(node: Node, ctx: Context, batch: Dims, made: Labels | None, over: Dims) -> None:
    bias: Ref | None = node.args["bias"]
    if bias is not None:
        ctx.tie(made, ctx.dims(bias)[0])
    ctx.set((*batch, made, *over), (*([False] * len(batch)), True, *([False] * len(over))))


NAMES = (
    "convolution", "_convolution", "cudnn_convolution", "mkldnn_convolution", "conv1d", "conv2d", "conv3d",
    "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
)  # fmt: skip

RULES: Mapping[str, Rule] = {f"aten.{name}": convolution for name in NAMES}
