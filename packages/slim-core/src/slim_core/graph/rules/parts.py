"""Operators that join tensors or take parts of them: ``cat``, ``stack``, ``split``, slices, selection, lookup."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from slim_core.graph.rules.base import Context, Labels, Rule, UnsupportedError
from slim_core.graph.rules.products import concatenated
from slim_core.graph.types import Node, Ref


def cat(node: Node, ctx: Context) -> None:
    refs: Sequence[Ref] = [ref for ref in node.args["tensors"] if ctx.shape(ref) != (0,)]
    rank = len(ctx.shape(refs[0]))
    dim = node.args.get("dim", node.args.get("axis", 0)) % rank
    dims: list[Labels | None] = []
    zero: list[bool] = []
    for position in range(rank):
        parts = [ctx.dims(ref)[position] for ref in refs]
        flags = [ctx.zero(ref)[position] for ref in refs]
        if position == dim:
            sizes = [ctx.shape(ref)[dim] for ref in refs]
            dims.append(concatenated(parts, sizes, ctx, "is joined with channels, but belongs to no parameter"))
            zero.append(all(flag or part is None for flag, part in zip(flags, parts, strict=True)))
        else:
            dims.append(_all_tied(parts, ctx))
            zero.append(all(flags))
    ctx.set(dims, zero)


def stack(node: Node, ctx: Context) -> None:
    refs: Sequence[Ref] = node.args["tensors"]
    rank = len(ctx.shape(refs[0]))
    position = node.args["dim"] % (rank + 1)
    dims = [_all_tied([ctx.dims(ref)[n] for ref in refs], ctx) for n in range(rank)]
    zero = [all(ctx.zero(ref)[n] for ref in refs) for n in range(rank)]
    ctx.set([*dims[:position], None, *dims[position:]], [*zero[:position], False, *zero[position:]])


def _all_tied(parts: Sequence[Labels | None], ctx: Context) -> Labels | None:
    label = parts[0]
    for other in parts[1:]:
        tied = ctx.tie(label, other)
        label = tied if label is not None else None
    return label


def chunk(node: Node, ctx: Context) -> None:
    """``chunk`` and ``split`` by one size: parts are cut anew from what is left, so equal positions go together."""
    x: Ref = node.args["self"]
    dim = node.args["dim"] % len(ctx.shape(x))
    dims, zero = list(ctx.dims(x)), ctx.zero(x)
    sizes = [ctx.graph.values[index].shape[dim] for index in node.outputs]
    labels = dims[dim]
    if labels is not None and len(sizes) > 1:
        if len(set(sizes)) == 1:
            part = ctx.tie_columns(labels, len(sizes))
            for position in range(len(sizes)):
                dims[dim] = part
                ctx.set(dims, zero, output=position)
            return
        ctx.freeze(labels, "is cut into unequal parts")
    _cut(node, ctx, x, dim, sizes)


def split(node: Node, ctx: Context) -> None:
    """``split`` by a list of sizes: parts are free, or (second reading) equal positions of equal parts go together."""
    x: Ref = node.args["self"]
    dim = node.args["dim"] % len(ctx.shape(x))
    sizes = [ctx.graph.values[index].shape[dim] for index in node.outputs]
    labels = ctx.dims(x)[dim]
    if labels is not None and len(sizes) > 1 and len(set(sizes)) == 1 and ctx.choose(2, labels) == 1:
        ctx.tie_columns(labels, len(sizes))
    _cut(node, ctx, x, dim, sizes)


def _cut(node: Node, ctx: Context, x: Ref, dim: int, sizes: Sequence[int]) -> None:
    dims, labels, start = list(ctx.dims(x)), ctx.dims(x)[dim], 0
    for position, size in enumerate(sizes):
        if labels is not None:
            part = labels[start : start + size]
            if size == 1:
                _alone(part, ctx)
            dims[dim] = part if size > 1 else None
        ctx.set(dims, ctx.zero(x), output=position)
        start += size


def _alone(labels: Labels, ctx: Context) -> None:
    """A single index could stretch in broadcasting once it stands alone: it stays."""
    ctx.freeze(labels, "is cut off alone")


def slicing(node: Node, ctx: Context) -> None:
    x: Ref = node.args["self"]
    dims, zero = list(ctx.dims(x)), ctx.zero(x)
    dim = node.args["dim"] % len(dims)
    labels = dims[dim]
    if labels is not None:
        length, step = len(labels), node.args.get("step") or 1
        start, end, _ = slice(node.args.get("start"), node.args.get("end"), None).indices(length)
        part = labels[start:end:step]
        if len(part) == length:
            pass
        elif len(part) < 2:
            _alone(part, ctx)
        elif step > 1:  # removing must not change which phase an index has
            whole = length - length % step
            ctx.tie_rows(labels[:whole], whole // step)
            ctx.freeze(labels[whole:], "does not fill a step of a strided slice")
            if start >= step or end < whole:
                ctx.freeze(labels, "is cut by a strided slice with fixed ends")
        elif length % len(part) == 0 and start % len(part) == 0 and ctx.choose(2, labels) == 1:
            ctx.tie_columns(labels, length // len(part))
        dims[dim] = part if len(part) > 1 else None
    ctx.set(dims, zero)


def select(node: Node, ctx: Context) -> None:
    x: Ref = node.args["self"]
    dims, zero = list(ctx.dims(x)), list(ctx.zero(x))
    dim = node.args["dim"] % len(dims)
    ctx.freeze(dims[dim], "one of its entries is selected by number")
    del dims[dim], zero[dim]
    ctx.set(dims, zero)


def unbind(node: Node, ctx: Context) -> None:
    x: Ref = node.args["self"]
    dims, zero = list(ctx.dims(x)), list(ctx.zero(x))
    dim = node.args.get("dim", 0) % len(dims)
    ctx.freeze(dims[dim], "its entries are taken apart by number")
    del dims[dim], zero[dim]
    for position in range(len(node.outputs)):
        ctx.set(dims, zero, output=position)


def embedding(node: Node, ctx: Context) -> None:
    weight, indices = node.args["weight"], node.args["indices"]
    vocabulary, channels = ctx.dims(weight)
    ctx.role(weight, 1, "out")
    ctx.freeze(vocabulary, "rows are looked up by number")
    ctx.set((*ctx.dims(indices), channels), (*([False] * len(ctx.shape(indices))), ctx.zero(weight)[1]))


def index_select(node: Node, ctx: Context) -> None:
    x: Ref = node.args["self"]
    dims, zero = list(ctx.dims(x)), list(ctx.zero(x))
    dim = node.args["dim"] % len(dims)
    ctx.freeze(dims[dim], "is looked up by numbers")
    chosen = ctx.dims(node.args["index"])
    dims[dim], zero[dim] = (chosen[0] if chosen else None), False
    ctx.set(dims, zero)


def index(node: Node, ctx: Context) -> None:
    """Lookup by tensors of numbers: the dimensions that they index are frozen, the others go through."""
    x: Ref = node.args["self"]
    dims, zero = list(ctx.dims(x)), list(ctx.zero(x))
    lookups: Sequence[Ref | None] = node.args["indices"]
    places = [n for n, ref in enumerate(lookups) if ref is not None]
    shape = ctx.graph.values[node.outputs[0]].shape
    used = [ref for ref in lookups if ref is not None]
    if any(ctx.value(ref).dtype in ("bool", "uint8") for ref in used):
        raise UnsupportedError("indexing by a mask")
    for ref in used:
        for labels in ctx.dims(ref):
            ctx.freeze(labels, "its entries are numbers that look something up")
    for place in places:
        ctx.freeze(dims[place], "is looked up by numbers")
    rank = len(shape) - (len(dims) - len(places))
    rest = [n for n in range(len(dims)) if n not in places]
    front = places[0] if places == list(range(places[0], places[-1] + 1)) else 0
    order = [n for n in rest if n < front], [n for n in rest if n >= front]
    ctx.set(
        [*(dims[n] for n in order[0]), *([None] * rank), *(dims[n] for n in order[1])],
        [*(zero[n] for n in order[0]), *([False] * rank), *(zero[n] for n in order[1])],
    )


def gather(node: Node, ctx: Context) -> None:
    ctx.freeze_all("is gathered by numbers")


def pad(node: Node, ctx: Context) -> None:
    """``constant_pad_nd``: new entries are alike, and free to join any channels."""
    x: Ref = node.args["self"]
    dims, zero = list(ctx.dims(x)), list(ctx.zero(x))
    amounts, shape = node.args["pad"], ctx.shape(x)
    value = node.args.get("value") or 0
    for n in range(len(amounts) // 2):
        dim = len(shape) - 1 - n
        before, behind = amounts[2 * n], amounts[2 * n + 1]
        labels = dims[dim]
        if before == behind == 0:
            continue
        if min(before, behind) < 0:
            ctx.freeze(labels, "is cropped by a fixed amount")
            dims[dim] = None
        elif labels is not None:
            dims[dim] = np.concatenate([ctx.fresh(before), labels, ctx.fresh(behind)])
            zero[dim] = zero[dim] and value == 0
        else:
            dims[dim] = None
    if value != 0:
        zero = [flag and dim_ is None for flag, dim_ in zip(zero, dims, strict=True)]
    ctx.set(dims, zero)


RULES: Mapping[str, Rule] = {
    "aten.cat": cat,
    "aten.concat": cat,
    "aten.concatenate": cat,
    "aten.stack": stack,
    "aten.chunk": chunk,
    "aten.split.Tensor": chunk,
    "aten.split.sizes": split,
    "aten.split_with_sizes": split,
    "aten.unsafe_chunk": chunk,
    "aten.unsafe_split": chunk,
    "aten.slice": slicing,
    "aten.select": select,
    "aten.unbind": unbind,
    "aten.embedding": embedding,
    "aten.index_select": index_select,
    "aten.index": index,
    "aten.gather": gather,
    "aten.constant_pad_nd": pad,
}
