"""Linear layers, matrix products, einsum and attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from slim_core.graph.rules.base import Context, Labels, Rule, UnsupportedError
from slim_core.graph.types import Node, Ref


def linear(node: Node, ctx: Context) -> None:
    x, weight, bias = node.args["input"], node.args["weight"], node.args["bias"]
    dims, zero = ctx.dims(x), ctx.zero(x)
    if len(ctx.shape(weight)) != 2:
        raise UnsupportedError("a linear layer with a vector as weight")
    out, inside = ctx.dims(weight)
    ctx.role(weight, 0, "out")
    ctx.role(weight, 1, "in")
    ctx.tie(dims[-1], inside)
    ctx.contract(inside, zero[-1] or ctx.zero(weight)[1], "a product sums")
    made_zero = ctx.zero(weight)[0]
    if bias is not None:
        ctx.tie(out, ctx.dims(bias)[0])
        made_zero = made_zero and ctx.zero(bias)[0]
    ctx.set((*dims[:-1], out), (*(z and bias is None for z in zero[:-1]), made_zero))


def product(node: Node, ctx: Context) -> None:
    """``matmul``, ``mm``, ``bmm``, ``mv``, ``dot``, with broadcasting, and their forms that add a third tensor."""
    args = node.args
    left = next(args[name] for name in ("batch1", "mat1", "mat", "self") if name in args)
    right = next(args[name] for name in ("mat2", "batch2", "vec", "tensor", "other") if isinstance(args.get(name), Ref))
    added = args["self"] if left is not args["self"] else None
    a, za, b, zb = list(ctx.dims(left)), list(ctx.zero(left)), list(ctx.dims(right)), list(ctx.zero(right))
    ctx.role(left, -1, "in")
    ctx.role(right, 0 if len(b) == 1 else -2, "in")
    ctx.role(right, -1, "out")
    sa, sb = ctx.shape(left), ctx.shape(right)
    inner_a, inner_za = a.pop(), za.pop()
    position = len(b) - 2 if len(b) > 1 else 0
    inner_b, inner_zb = b.pop(position), zb.pop(position)
    both = ctx.tie(inner_a, inner_b)
    ctx.contract(both, inner_za or inner_zb, "a product sums")
    rows, zrows = ([a.pop()], [za.pop()]) if a else ([], [])
    columns, zcolumns = ([b.pop()], [zb.pop()]) if b else ([], [])
    batch_a, batch_b = sa[: len(a)], sb[: len(b)]
    dims, zero = broadcast(ctx, [(a, za, batch_a), (b, zb, batch_b)], any_zero=True)
    dims, zero = [*dims, *rows, *columns], [*zero, *zrows, *zcolumns]
    if added is not None:
        shape = ctx.graph.values[node.outputs[0]].shape
        sum_of = [(dims, zero, shape), (list(ctx.dims(added)), list(ctx.zero(added)), ctx.shape(added))]
        dims, zero = broadcast(ctx, sum_of, any_zero=False)
    ctx.set(dims, zero)


Operand = tuple[Sequence[Labels | None], Sequence[bool], Sequence[int]]


def broadcast(ctx: Context, operands: Sequence[Operand], *, any_zero: bool) -> tuple[list[Labels | None], list[bool]]:
    """Tie the dimensions of operands aligned at the end; a dimension of size one stretches.

    Args:
        ctx: the context.
        operands: labels, zero flags and shape of each.
        any_zero: the result is zero where any operand is (a product), else where all are (a sum).
    """
    rank = max((len(shape) for _, _, shape in operands), default=0)
    dims: list[Labels | None] = []
    flags: list[bool] = []
    for position in range(-rank, 0):
        here = [(d[position], z[position], s[position]) for d, z, s in operands if len(s) >= -position]
        size = max(s for _, _, s in here)
        full = [(d, z) for d, z, s in here if s == size]
        label = full[0][0]
        for other, _ in full[1:]:
            tied = ctx.tie(label, other)
            label = tied if label is not None else None
        dims.append(label if size > 1 else None)
        zeros = [z for _, z in full]
        if any_zero:
            flags.append(any(zeros))
        else:
            flags.append(all(zeros) and len(full) == len(operands))
    return dims, flags


def attention(node: Node, ctx: Context) -> None:
    """``scaled_dot_product_attention`` of (…, L, E), (…, S, E), (…, S, Ev): heads may go, E scales the scores."""
    query, key, value = node.args["query"], node.args["key"], node.args["value"]
    q, k, v = ctx.dims(query), ctx.dims(key), ctx.dims(value)
    for labels in (q[-2], k[-2], v[-2]):
        ctx.freeze(labels, "attention takes a softmax over this dimension")
    if node.args.get("scale") is None:
        for labels in (q[-1], k[-1]):
            ctx.freeze(labels, "attention scales by this size")
    else:  # a given scale stays, which the proof sees to
        ctx.contract(ctx.tie(q[-1], k[-1]), ctx.zero(query)[-1] or ctx.zero(key)[-1], "attention sums")
    if node.args.get("enable_gqa"):
        for labels in (*q[:-2], *k[:-2], *v[:-2]):
            ctx.freeze(labels, "grouped-query attention repeats heads by their number")
        dims: list[Labels | None] = [None] * (len(q) - 2)
        zero = [False] * (len(q) - 2)
    else:
        batch = [(d[:-2], ctx.zero(r)[:-2], ctx.shape(r)[:-2]) for d, r in ((v, value), (q, query), (k, key))]
        dims, _ = broadcast(ctx, batch, any_zero=True)
        zero = list(ctx.zero(value)[:-2])
        zero = [False] * (len(dims) - len(zero)) + zero
    mask = next((node.args[n] for n in ("attn_mask", "attn_bias") if isinstance(node.args.get(n), Ref)), None)
    if mask is not None:
        for labels in ctx.dims(mask)[-2:]:
            ctx.freeze(labels, "an attention mask has the size of the sequence")
        head = (ctx.dims(mask)[:-2], ctx.zero(mask)[:-2], ctx.shape(mask)[:-2])
        scores = (dims, zero, ctx.graph.values[node.outputs[0]].shape[:-2])
        dims, _ = broadcast(ctx, [scores, head], any_zero=True)
    ctx.set((*dims, None, v[-1]), (*zero, False, ctx.zero(value)[-1]))
    for position, index in enumerate(node.outputs[1:], 1):
        ctx.set((None,) * len(ctx.graph.values[index].shape), output=position)


def einsum(node: Node, ctx: Context) -> None:
    """One letter, one dimension; letters that the result lacks are summed over."""
    equation: str = node.args["equation"].replace(" ", "")
    refs: tuple[Ref, ...] = node.args["tensors"]
    if "." in equation:
        raise UnsupportedError("einsum with an ellipsis")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    if not arrow:
        right = "".join(sorted(c for c in set(left) - {","} if left.count(c) == 1))
    if any(len(set(term)) != len(term) for term in terms):
        raise UnsupportedError("einsum that takes a diagonal")
    found: dict[str, list[tuple[Labels | None, bool, int]]] = {}
    for term, ref in zip(terms, refs, strict=True):
        for letter, labels, zero, size in zip(term, ctx.dims(ref), ctx.zero(ref), ctx.shape(ref), strict=True):
            found.setdefault(letter, []).append((labels, zero, size))
        for position, letter in enumerate(term):
            ctx.role(ref, position, "out" if letter in right and len(refs) > 1 else "in")
    dims: dict[str, Labels | None] = {}
    zeros: dict[str, bool] = {}
    for letter, uses in found.items():
        uses = [use for use in uses if use[2] > 1] or uses
        label = uses[0][0]
        for other, _, _ in uses[1:]:
            tied = ctx.tie(label, other)
            label = tied if label is not None else None
        dims[letter], zeros[letter] = label, any(zero for _, zero, _ in uses)
        if letter not in right:
            ctx.contract(label, zeros[letter], "einsum sums")
    ctx.set([dims[letter] for letter in right], [zeros[letter] for letter in right])


def outer(node: Node, ctx: Context) -> None:
    a, b = node.args["self"], node.args["vec2"]
    ctx.set((ctx.dims(a)[0], ctx.dims(b)[0]), (ctx.zero(a)[0], ctx.zero(b)[0]))


def concatenated(parts: Sequence[Labels | None], sizes: Sequence[int], ctx: Context, reason: str) -> Labels | None:
    """Return the labels of parts put one after the other; parts that nobody owns get frozen labels."""
    if all(part is None for part in parts):
        return None
    arrays = []
    for part, size in zip(parts, sizes, strict=True):
        if part is None:
            part = ctx.fresh(size)
            ctx.freeze(part, reason)
        arrays.append(part)
    return np.concatenate(arrays)


RULES: Mapping[str, Rule] = {
    "aten.linear": linear,
    **{f"aten.{name}": product for name in ("mm", "bmm", "matmul", "mv", "dot", "vdot", "addmm", "baddbmm", "addmv")},
    "aten.einsum": einsum,
    "aten.outer": outer,
    **{
        f"aten.{name}": attention
        for name in (
            "scaled_dot_product_attention", "_scaled_dot_product_flash_attention_for_cpu",
            "_scaled_dot_product_attention_math", "_scaled_dot_product_flash_attention",
            "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
        )
    },
}  # fmt: skip
