"""Reductions, softmax and pooling: what is summed must be zero when masked; what is averaged or compared is frozen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slim_core.graph.rules.base import Context, Rule
from slim_core.graph.rules.pointwise import added
from slim_core.graph.types import Node, Ref

SUMS = ("sum", "nansum", "count_nonzero")
NORMS = ("norm", "linalg_vector_norm", "frobenius_norm")
OTHERS = (
    "mean", "nanmean", "max", "min", "amax", "amin", "argmax", "argmin", "aminmax", "prod", "any", "all", "std",
    "var", "var_mean", "std_mean", "logsumexp", "median", "nanmedian", "mode", "kthvalue",
)  # fmt: skip
#: keep the dimension, but mix along it
ALONG = (
    "softmax", "_softmax", "log_softmax", "_log_softmax", "_safe_softmax", "softmin", "sort", "topk", "cumprod",
    "cummax", "cummin", "logcumsumexp", "argsort", "msort",
)  # fmt: skip
POOLS = (
    "max_pool{}d", "max_pool{}d_with_indices", "avg_pool{}d", "adaptive_avg_pool{}d", "_adaptive_avg_pool{}d",
    "adaptive_max_pool{}d", "lp_pool{}d", "fractional_max_pool{}d",
)  # fmt: skip
UPSAMPLINGS = (
    "upsample_nearest{}d", "_upsample_nearest_exact{}d", "upsample_linear{}d", "upsample_bilinear{}d",
    "upsample_bicubic{}d", "upsample_trilinear{}d", "_upsample_bilinear{}d_aa", "_upsample_bicubic{}d_aa",
    "reflection_pad{}d", "replication_pad{}d", "_pad_circular{}",
)  # fmt: skip


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
    for names, rule in ((SUMS, summed), (NORMS, normed), (OTHERS, frozen), (ALONG, along), (("cumsum",), cumulated)):
        table |= {f"aten.{name}": rule for name in names}
    for spatial in (1, 2, 3):
        table |= {f"aten.{name.format(spatial)}": _pool(spatial) for name in (*POOLS, *UPSAMPLINGS)}
    for name in ("max.other", "min.other"):
        table[f"aten.{name}"] = added
    return table


RULES: Mapping[str, Rule] = _table()
