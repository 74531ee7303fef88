"""Reductions, softmax and pooling.

What is summed must be zero when masked. A mean, a variance or the largest of the channels is a statistic over them, as
in a layer norm: it goes on over the channels that stay. What depends on their number or order is frozen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slim_core.graph.rules.base import Context, Rule
from slim_core.graph.rules.pointwise import added
from slim_core.graph.types import Node, Ref

SUMS = ("sum", "nansum", "count_nonzero")
NORMS = ("norm", "linalg_vector_norm", "frobenius_norm")
STATISTICS = ("mean", "nanmean", "max", "min", "amax", "amin", "aminmax", "std", "var", "var_mean", "std_mean")
OTHERS = ("argmax", "argmin", "prod", "any", "all", "logsumexp", "median", "nanmedian", "mode", "kthvalue")
#: keep the dimension, but mix along it
ALONG = (
    "softmax", "_softmax", "log_softmax", "_log_softmax", "_safe_softmax", "sort", "topk", "cumprod",
    "cummax", "cummin", "logcumsumexp", "argsort", "msort",
)  # fmt: skip
#: slide a window over the last dimensions: by how many those are
SLIDING = {
    1: (
        "max_pool1d", "max_pool1d_with_indices", "avg_pool1d", "adaptive_avg_pool1d", "adaptive_max_pool1d",
        "upsample_nearest1d", "_upsample_nearest_exact1d", "upsample_linear1d", "reflection_pad1d", "replication_pad1d",
    ),
    2: (
        "max_pool2d", "max_pool2d_with_indices", "avg_pool2d", "adaptive_avg_pool2d", "_adaptive_avg_pool2d",
        "adaptive_max_pool2d", "fractional_max_pool2d", "upsample_nearest2d", "_upsample_nearest_exact2d",
        "upsample_bilinear2d", "upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa",
        "reflection_pad2d", "replication_pad2d",
    ),
    3: (
        "max_pool3d", "max_pool3d_with_indices", "avg_pool3d", "adaptive_avg_pool3d", "_adaptive_avg_pool3d",
        "adaptive_max_pool3d", "fractional_max_pool3d", "upsample_nearest3d", "_upsample_nearest_exact3d",
        "upsample_trilinear3d", "reflection_pad3d", "replication_pad3d",
    ),
}  # fmt: skip


def summed(node: Node, ctx: Context) -> None:
    x: Ref = node.args["self"]
    for dim in _dims(node, ctx, x):
        ctx.contract(ctx.dims(x)[dim], ctx.zero(x)[dim], "a sum")
    _reduce(node, ctx, x)


def normed(node: Node, ctx: Context) -> None:
    order = node.args.get("ord", node.args.get("p", 2))
    if order is None or (isinstance(order, int | float) and 0 < order < float("inf")):
        summed(node, ctx)
    else:
        frozen(node, ctx)


def frozen(node: Node, ctx: Context) -> None:
    x: Ref = node.args["self"]
    for dim in _dims(node, ctx, x):
        ctx.protect(ctx.dims(x)[dim], f"{node.op.split('.')[1]} over channels")
    _reduce(node, ctx, x)


def statistic(node: Node, ctx: Context) -> None:
    """Mean, variance, extremes: over channels as in a layer norm, unless the place of an extreme is asked for."""
    x: Ref = node.args["self"]
    places = [
        index for index in node.outputs if ctx.graph.values[index].dtype.startswith("int")
        and (ctx.consumers(index) or index in ctx.graph.outputs)
    ]  # fmt: skip
    if places and not ctx.value(x).dtype.startswith("int"):
        frozen(node, ctx)
        return
    for dim in _dims(node, ctx, x):
        ctx.takes_statistics(ctx.dims(x)[dim])
    _reduce(node, ctx, x)


def along(node: Node, ctx: Context) -> None:
    """Softmax, sort and the like: other dimensions go through."""
    x: Ref = node.args["self"] if "self" in node.args else node.args["input"]
    dims = list(ctx.dims(x))
    dim = node.args.get("dim")
    dim = -1 if dim is None else dim
    if dims:
        ctx.protect(dims[dim], f"{node.op.split('.')[1]} over channels")
        dims[dim] = None
    for position in range(len(node.outputs)):
        ctx.set(dims, output=position)


def cumulated(node: Node, ctx: Context) -> None:
    x: Ref = node.args["self"]
    dims, zero = ctx.dims(x), list(ctx.zero(x))
    dim = node.args["dim"]
    ctx.contract(dims[dim], zero[dim], "a cumulative sum")
    zero[dim] = False
    ctx.set(dims, zero)


def pooled(node: Node, ctx: Context, spatial: int) -> None:
    x: Ref = node.args["self"] if "self" in node.args else node.args["input"]
    dims, zero = list(ctx.dims(x)), list(ctx.zero(x))
    for dim in range(len(dims) - spatial, len(dims)):
        ctx.freeze(dims[dim], f"{node.op.split('.')[1]} slides over this dimension")
        dims[dim], zero[dim] = None, False
    for position in range(len(node.outputs)):
        ctx.set(dims, zero, output=position)


def _dims(node: Node, ctx: Context, x: Ref) -> list[int]:
    rank = len(ctx.shape(x))
    dim = node.args.get("dim", node.args.get("axis"))
    if dim is None or dim == ():
        return list(range(rank))
    return sorted(d % rank for d in (dim if isinstance(dim, tuple) else (dim,))) if rank else []


def _reduce(node: Node, ctx: Context, x: Ref) -> None:
    dims, zero, gone = ctx.dims(x), ctx.zero(x), _dims(node, ctx, x)
    keep = bool(node.args.get("keepdim", False))
    left: list[Any] = [
        (None, False) if dim in gone else (dims[dim], zero[dim]) for dim in range(len(dims)) if keep or dim not in gone
    ]
    for position, index in enumerate(node.outputs):
        if len(ctx.graph.values[index].shape) == len(left):
            ctx.set([d for d, _ in left], [z for _, z in left], output=position)
        else:
            ctx.set((None,) * len(ctx.graph.values[index].shape), output=position)


def _pool(spatial: int) -> Rule:
    return lambda node, ctx: pooled(node, ctx, spatial)


def _table() -> dict[str, Rule]:
    table: dict[str, Rule] = {}
    for names, rule in (
        (SUMS, summed), (NORMS, normed), (STATISTICS, statistic), (OTHERS, frozen), (ALONG, along),
        (("cumsum",), cumulated),
    ):  # fmt: skip
        table |= {f"aten.{name}": rule for name in names}
    for spatial, sliding in SLIDING.items():
        table |= {f"aten.{name}": _pool(spatial) for name in sliding}
    for name in ("max.other", "min.other"):
        table[f"aten.{name}"] = added
    return table


RULES: Mapping[str, Rule] = _table()
