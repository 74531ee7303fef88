"""Operators that rearrange indices without computing: views, permutations, repetition, pixel shuffle.

A view that splits a channel dimension into several lets exactly one of the new dimensions carry the channels; along
the others the channels are tied. Which one is a choice (whole heads, or equal positions of all heads): see
``Context.choose``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from slim_core.graph.rules.base import Context, Dims, Labels, Rule, UnsupportedError
from slim_core.graph.types import Node, Ref

#: what Python writes for an open end
_END = 2**63 - 1
_BY_NUMBER = ("select", "unbind", "chunk", "split", "split_with_sizes", "slice")
_CONTRACTIONS = (
    "matmul", "bmm", "baddbmm", "scaled_dot_product", "einsum",
)  # fmt: skip
_PASSING = (
    "permute", "transpose", "select", "unbind", "chunk", "contiguous", "clone", "mul", "div", "expand", "view",
    "reshape", "split", "unsqueeze", "squeeze", "cat", "slice", "add", "t", "neg", "stack", "rsub", "sub",
)  # fmt: skip


def view(node: Node, ctx: Context) -> None:
    """``view``, ``reshape``, ``flatten``, ``unflatten``: merge and split runs of dimensions."""
    x: Ref = node.args["self"]
    old, new = ctx.shape(x), ctx.graph.values[node.outputs[0]].shape
    if old == new:
        ctx.set(ctx.dims(x), ctx.zero(x))
        return
    if 0 in old:
        raise UnsupportedError("a view of an empty tensor")
    dims: list[Labels | None] = []
    zero: list[bool] = []
    for before, after in _blocks(old, new):
        labels, sizes = [ctx.dims(x)[d] for d in before], [old[d] for d in before]
        labelled = [ctx.zero(x)[d] for d in before if ctx.dims(x)[d] is not None]
        zero += [bool(labelled) and all(labelled)] * len(after)
        finer = _refined(labels, sizes, [new[d] for d in after]) if min(len(before), len(after)) > 1 else None
        if finer is not None:
            for parts in finer:
                dims.append(_merge([part for part, _ in parts], [size for _, size in parts], ctx))
            continue
        merged = _merge(labels, sizes, ctx)
        dims += _split(merged, [new[d] for d in after], list(after), node, ctx)
    ctx.set(dims, zero)


def _refined(
    labels: Sequence[Labels | None], old: Sequence[int], new: Sequence[int]
) -> list[list[tuple[Labels | None, int]]] | None:
    """Return for each new dimension the parts of old ones that it is merged from; ``None`` where that is not clear.

    (L, batch·heads, D) becomes (L·batch, heads·D) by taking the middle apart, which needs no new equalities where it
    was put together from the two before.
    """
    edges = sorted({*np.cumprod(old).tolist(), *np.cumprod(new).tolist()})
    if any(right % left for left, right in zip([1, *edges], edges, strict=False)):
        return None
    parts: list[tuple[Labels | None, int]] = []
    for own, start, end in zip(labels, [1, *np.cumprod(old).tolist()], np.cumprod(old).tolist(), strict=False):
        inner = [edge for edge in edges if start <= edge <= end]
        sizes = [right // left for left, right in zip([start, *inner], inner, strict=False) if right > left]
        if own is None or len(sizes) < 2:
            parts += [(own, size) for size in sizes] if own is None else [(own, end // start)]
            continue
        carrier = _unmixed(own.reshape(sizes))
        if carrier is None:
            return None
        lines = np.moveaxis(own.reshape(sizes), carrier, 0).reshape(sizes[carrier], -1)
        parts += [(np.ascontiguousarray(lines[:, 0]) if n == carrier else None, size) for n, size in enumerate(sizes)]
    found: list[list[tuple[Labels | None, int]]] = []
    rest = iter(parts)
    for size in new:
        taken: list[tuple[Labels | None, int]] = []
        while int(np.prod([part for _, part in taken], dtype=np.int64)) < size:
            taken.append(next(rest))
        found.append(taken)
    return found


def _unmixed(table: Labels) -> int | None:
    """Return the dimension along which all lines carry the same labels, if there is one."""
    for n in range(table.ndim):
        lines = np.moveaxis(table, n, 0).reshape(table.shape[n], -1)
        if not (lines != lines[:, :1]).any():
            return n
    return None


def _blocks(old: Sequence[int], new: Sequence[int]) -> list[tuple[range, range]]:
    """Return the smallest runs of old and new dimensions with equal numbers of entries."""
    blocks: list[tuple[range, range]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        start_i, start_j = i, j
        left = right = 1
        if i < len(old):
            left, i = old[i], i + 1
        if j < len(new):
            right, j = new[j], j + 1
        while left != right:
            if left < right:
                left, i = left * old[i], i + 1
            else:
                right, j = right * new[j], j + 1
        blocks.append((range(start_i, i), range(start_j, j)))
    return blocks


def _merge(parts: Sequence[Labels | None], sizes: Sequence[int], ctx: Context) -> Labels | None:
    """Return the labels of several dimensions flattened into one."""
    real = [(labels, size) for labels, size in zip(parts, sizes, strict=True) if size > 1]
    if len(real) == 1:
        return real[0][0]
    carriers = [n for n, (labels, _) in enumerate(real) if labels is not None]
    if not carriers:
        return None
    # entries that are all alike (a batch that was expanded) yield to a parameter's
    carrier = next((n for n in carriers if ctx.of_state(real[n][0])), carriers[0])
    for extra in carriers:
        if extra != carrier:
            ctx.freeze(real[extra][0], "is flattened together with another channel dimension")
    before = int(np.prod([size for _, size in real[:carrier]], dtype=np.int64))
    behind = int(np.prod([size for _, size in real[carrier + 1 :]], dtype=np.int64))
    labels = real[carrier][0]
    assert labels is not None  # noqa: S101
    return np.tile(np.repeat(labels, behind), before)


def _split(merged: Labels | None, sizes: list[int], where: list[int], node: Node, ctx: Context) -> list[Labels | None]:
    """Return the labels of one dimension split into several, of which one carries them."""
    out: list[Labels | None] = [None] * len(sizes)
    wide = [n for n, size in enumerate(sizes) if size > 1]
    if merged is None or not wide:
        return out
    if len(wide) == 1:
        out[wide[0]] = merged
        return out
    table = merged.reshape([sizes[n] for n in wide])
    readings = _readings(table, wide, where, node, ctx)
    carrier, stream = readings[ctx.choose(len(readings), merged)]
    lines = np.moveaxis(table, carrier, 0).reshape(table.shape[carrier], -1)
    first = np.ascontiguousarray(lines[:, 0])
    if (lines != lines[:, :1]).any():
        ctx.equal.append((np.repeat(first, lines.shape[1] - 1), np.ascontiguousarray(lines[:, 1:]).ravel()))
    if stream is not None and carrier < table.ndim - 1:  # heads come before the positions in them
        ctx.tie(ctx.tie_rows(stream, len(first)), first)
    elif stream is not None:
        ctx.tie(ctx.tie_columns(stream, len(stream) // len(first)), first)
    out[wide[carrier]] = first
    return out


def _readings(
    table: Labels, wide: list[int], where: list[int], node: Node, ctx: Context
) -> list[tuple[int, Labels | None]]:
    """Return the split dimensions in the order in which they are tried as carriers of the channels.

    The second part is the stream that heads were computed from, for the reading in which a head goes with its slice of
    the stream: a forward that takes both widths from ``x.shape`` leaves no other way.
    """
    rank = table.ndim
    undone = _unmixed(table)
    if undone is not None:  # one that needs no new equalities: a flattening that is undone
        return [(undone, None)]
    size = node.args.get("size", node.args.get("shape", ()))
    inferred = [
        isinstance(size, tuple) and where[wide[n]] < len(size) and size[where[wide[n]]] == -1 for n in range(rank)
    ]
    apart = [_taken_apart(node, where[wide[n]], ctx) for n in range(rank)]
    whole = [n for n in range(rank) if not apart[n]]
    if not _reaches_contraction(node, ctx):
        order = sorted(range(rank), key=lambda n: (apart[n], not inferred[n], -table.shape[n], -n))
        return [(n, None) for n in order]
    # heads before positions: the size of a head usually sets the scale
    heads = whole[max(len(whole) - 2, 0)] if whole else rank - 1
    order = sorted(range(rank), key=lambda n: (apart[n], n != heads, -n))
    stream = _stream(node.args["self"], ctx)
    width = int(np.prod([table.shape[n] for n in whole], dtype=np.int64))
    if stream is not None and len(stream) != width:
        stream = None
    tied = [] if stream is None else [(heads, stream)]
    readings = [(heads, None), *tied, *((n, None) for n in order[1:])]
    if ctx.prefer == "head_dim" and len(whole) > 1:
        positions = whole[-1]
        of_stream = [] if stream is None else [(positions, stream)]
        rest = [reading for reading in readings if reading[0] != positions]
        readings = [(positions, None), *of_stream, *rest]
    return readings


def _stream(ref: Ref, ctx: Context) -> Labels | None:
    """Return the labels of what a tensor was computed from by a linear layer."""
    index = ref.index
    for _ in range(6):
        maker = ctx.maker(index)
        if maker is None:
            return None
        if maker.op == "aten.linear.default":
            return ctx.dims(maker.args["input"])[-1]
        source = maker.args.get("self", maker.args.get("input"))
        if not isinstance(source, Ref) or maker.op.split(".")[1] not in _PASSING:
            return None
        index = source.index
    return None


def _taken_apart(node: Node, dim: int, ctx: Context) -> bool:
    """Return whether entries of a new dimension are soon taken by number, as the 3 of a joint q, k and v."""
    front = [(node.outputs[0], dim)]
    for _ in range(6):
        following: list[tuple[int, int]] = []
        for index, place in front:
            rank = len(ctx.graph.values[index].shape)
            for user in ctx.consumers(index):
                name = user.op.split(".")[1]
                if name in _BY_NUMBER and user.args.get("dim", 0) % rank == place and user.args.get("end") != _END:
                    return True
                moved = _moved(user, name, place, rank, ctx)
                if moved is not None:
                    following.append((user.outputs[0], moved))
        front = following
    return False


def _moved(user: Node, name: str, place: int, rank: int, ctx: Context) -> int | None:
    """Return where a dimension is after an operator that only moves dimensions."""
    if name in ("contiguous", "clone"):
        return place
    if name == "transpose":
        swap: dict[int, int] = {user.args["dim0"] % rank: user.args["dim1"] % rank}
        swap |= {second: first for first, second in swap.items()}
        return swap.get(place, place)
    if name == "permute":
        return int([d % rank for d in user.args["dims"]].index(place))
    if name == "unsqueeze":
        return place + int(user.args["dim"] % (rank + 1) <= place)
    if name == "squeeze" and isinstance(user.args.get("dim"), int):
        return place - int(user.args["dim"] % rank < place)
    return None


def _reaches_contraction(node: Node, ctx: Context) -> bool:
    seen: set[int] = set()
    front = list(node.outputs)
    for _ in range(8):
        following: list[int] = []
        for index in front:
            for user in ctx.consumers(index):
                name = user.op.split(".")[1]
                if name.startswith(_CONTRACTIONS):
                    return True
                if user.index not in seen and name.rstrip("_") in _PASSING:
                    seen.add(user.index)
                    following += user.outputs
        front = following
    return False


def permute(node: Node, ctx: Context) -> None:
    x: Ref = node.args["self"]
    rank = len(ctx.shape(x))
    name = node.op.split(".")[1].rstrip("_")
    if name == "permute":
        order = [d % rank for d in node.args["dims"]]
    else:
        order = list(range(rank))
        if name in ("t", "numpy_T", "mT", "matrix_H", "adjoint"):
            first, second = (0, 1) if name == "t" else (-2, -1)
            if name == "numpy_T":
                order.reverse()
            elif rank > 1:
                order[first], order[second] = order[second], order[first]
        elif rank:
            first, second = (node.args.get(a, node.args.get(b, 0)) for a, b in (("dim0", "axis0"), ("dim1", "axis1")))
            order[first], order[second] = order[second], order[first]
    ctx.set([ctx.dims(x)[d] for d in order], [ctx.zero(x)[d] for d in order])


def squeeze(node: Node, ctx: Context) -> None:
    x: Ref = node.args["self"]
    shape = ctx.shape(x)
    dim = node.args.get("dim")
    chosen = (
        range(len(shape))
        if dim is None
        else [d % len(shape) for d in (dim if isinstance(dim, tuple) else (dim,))]
        if shape
        else []
    )
    left = [d for d in range(len(shape)) if not (d in chosen and shape[d] == 1)]
    ctx.set([ctx.dims(x)[d] for d in left], [ctx.zero(x)[d] for d in left])


def unsqueeze(node: Node, ctx: Context) -> None:
    x: Ref = node.args["self"]
    dims, zero = list(ctx.dims(x)), list(ctx.zero(x))
    position = node.args["dim"] % (len(dims) + 1)
    ctx.set([*dims[:position], None, *dims[position:]], [*zero[:position], False, *zero[position:]])


def expand(node: Node, ctx: Context) -> None:
    """A stretched dimension has equal entries: its labels are new and free to join any channels."""
    x: Ref = node.args["self"]
    shape = ctx.graph.values[node.outputs[0]].shape
    added = len(shape) - len(ctx.shape(x))
    dims: list[Labels | None] = [ctx.fresh(size) if size > 1 else None for size in shape[:added]]
    zero = [False] * added
    for labels, flag, old, size in zip(ctx.dims(x), ctx.zero(x), ctx.shape(x), shape[added:], strict=True):
        dims.append(labels if old == size else ctx.fresh(size))
        zero.append(flag and old == size)
    ctx.set(dims, zero)


def repeat(node: Node, ctx: Context) -> None:
    x: Ref = node.args["self"]
    shape = ctx.graph.values[node.outputs[0]].shape
    added = len(shape) - len(ctx.shape(x))
    dims: list[Labels | None] = [ctx.fresh(size) if size > 1 else None for size in shape[:added]]
    zero = [False] * added
    for labels, flag, old, size in zip(ctx.dims(x), ctx.zero(x), ctx.shape(x), shape[added:], strict=True):
        if labels is not None:
            dims.append(np.tile(labels, size // old))
        else:
            dims.append(ctx.fresh(size) if old == 1 and size > 1 else None)
        zero.append(flag)
    ctx.set(dims, zero)


def repeat_interleave(node: Node, ctx: Context) -> None:
    repeats, dim = node.args.get("repeats"), node.args.get("dim")
    if not isinstance(repeats, int) or dim is None:
        raise UnsupportedError("repeat_interleave by a tensor")
    dims, zero = list(ctx.dims(node.args["self"])), ctx.zero(node.args["self"])
    labels = dims[dim]
    dims[dim] = None if labels is None else np.repeat(labels, repeats)
    ctx.set(dims, zero)


def pixel_shuffle(node: Node, ctx: Context) -> None:
    """(…, C·r², H, W) -> (…, C, H·r, W·r) and back: the r² entries of a channel go together."""
    x: Ref = node.args["self"]
    dims: list[Labels | None] = list(ctx.dims(x))
    for labels in dims[-2:]:
        ctx.freeze(labels, "pixel shuffle mixes this dimension")
    labels = dims[-3]
    if "unshuffle" in node.op:
        labels = None if labels is None else np.repeat(labels, node.args["downscale_factor"] ** 2)
    else:
        labels = ctx.tie_rows(labels, ctx.shape(x)[-3] // node.args["upscale_factor"] ** 2)
    zero = list(ctx.zero(x))
    if ctx.graph.values[node.outputs[0]].shape[-3] == 1:
        labels = None
    ctx.set((*dims[:-3], labels, None, None), (*zero[:-2], False, False))


def channel_shuffle(node: Node, ctx: Context) -> None:
    x: Ref = node.args["self"]
    dims = list(ctx.dims(x))
    groups = node.args["groups"]
    if dims[1] is not None:
        part = ctx.tie_columns(dims[1], groups)
        dims[1] = None if part is None else np.repeat(part, groups)
    ctx.set(dims, ctx.zero(x))


def flip(node: Node, ctx: Context) -> None:
    x: Ref = node.args["self"]
    dims = list(ctx.dims(x))
    for dim in node.args["dims"]:
        labels = dims[dim]
        dims[dim] = None if labels is None else np.ascontiguousarray(labels[::-1])
    ctx.set(dims, ctx.zero(x))


def roll(node: Node, ctx: Context) -> None:
    x: Ref = node.args["self"]
    for dim in node.args["dims"] or range(len(ctx.shape(x))):
        ctx.freeze(ctx.dims(x)[dim], "is rolled by a fixed distance")
    ctx.set(ctx.dims(x), ctx.zero(x))


def same_layout(node: Node, ctx: Context) -> None:
    """``as_strided`` that only changes the memory layout."""
    x: Ref = node.args["self"]
    value = ctx.graph.values[node.outputs[0]]
    if value.shape != ctx.shape(x) or not node.op.split(".")[1].endswith("_"):
        raise UnsupportedError("as_strided")
    ctx.set(ctx.dims(x), ctx.zero(x))


def unfold(node: Node, ctx: Context) -> None:
    """``im2col``: (N, C, H, W) -> (N, C·k, L), and ``col2im`` back."""
    x: Ref = node.args["self"]
    dims, zero = list(ctx.dims(x)), list(ctx.zero(x))
    shape = ctx.graph.values[node.outputs[0]].shape
    channel = len(shape) - 2 if "im2col" in node.op else len(dims) - 2
    labels = dims[-3] if "im2col" in node.op else dims[channel]
    for other in dims[-2:] if "im2col" in node.op else dims[-1:]:
        ctx.freeze(other, "a sliding window takes blocks of this dimension")
    if "im2col" in node.op:
        made: Dims = (None if labels is None else np.repeat(labels, shape[-2] // ctx.shape(x)[-3]), None)
        ctx.set((*dims[:-3], *made), (*zero[:-3], zero[-3], False))
    else:
        ctx.set((*dims[:-2], ctx.tie_rows(labels, shape[-3]), None, None), (*zero[:-2], zero[-2], False, False))


VIEWS = (
    "view", "reshape", "_unsafe_view", "_reshape_alias", "flatten", "unflatten", "view_as", "reshape_as", "ravel",
)  # fmt: skip
PERMUTATIONS = ("permute", "transpose", "t", "swapaxes", "swapdims", "numpy_T", "mT")

RULES: Mapping[str, Rule] = {
    **{f"aten.{name}": view for name in VIEWS},
    **{f"aten.{name}": permute for name in PERMUTATIONS},
    "aten.view.dtype": lambda node, ctx: ctx.freeze_all("reinterpreted bytes"),
    "aten.squeeze": squeeze,
    "aten.unsqueeze": unsqueeze,
    "aten.expand": expand,
    "aten.expand_as": expand,
    "aten.broadcast_to": expand,
    "aten.repeat": repeat,
    "aten.tile": repeat,
    "aten.repeat_interleave": repeat_interleave,
    "aten.pixel_shuffle": pixel_shuffle,
    "aten.pixel_unshuffle": pixel_shuffle,
    "aten.channel_shuffle": channel_shuffle,
    "aten.native_channel_shuffle": channel_shuffle,
    "aten.flip": flip,
    "aten.roll": roll,
    "aten.as_strided": same_layout,
    "aten.im2col": unfold,
    "aten.col2im": unfold,
}
