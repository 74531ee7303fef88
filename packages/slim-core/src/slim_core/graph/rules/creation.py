"""Tensors made in forward. Entries that are all alike may join any channels; entries that differ belong to nobody."""

from __future__ import annotations

from collections.abc import Mapping

from slim_core.graph.rules.base import Context, Rule
from slim_core.graph.types import Node, Ref

ZEROS = ("zeros", "zeros_like", "new_zeros", "_efficientzerotensor")
ALIKE = (
    "ones", "ones_like", "new_ones", "full", "full_like", "new_full", "empty", "empty_like", "new_empty",
    "new_empty_strided", "empty_strided", "empty_permuted", "scalar_tensor",
)  # fmt: skip
DIFFERENT = (
    "arange", "linspace", "logspace", "rand", "randn", "randint", "randperm", "eye", "tril_indices", "triu_indices",
    "hann_window", "hamming_window", "normal", "bernoulli", "multinomial",
)  # fmt: skip
RANDOM_LIKE = ("rand_like", "randn_like", "randint_like")


def alike(node: Node, ctx: Context) -> None:
    zero = node.op.split(".")[1] in ZEROS or ("full" in node.op and node.args.get("fill_value") == 0)
    like = node.args.get("self")
    shape = ctx.graph.values[node.outputs[0]].shape
    if isinstance(like, Ref) and "_like" in node.op:
        ctx.set(ctx.dims(like), [zero] * len(shape))
        return
    ctx.set([ctx.fresh(size) if size > 1 else None for size in shape], [zero] * len(shape))


def different(node: Node, ctx: Context) -> None:
    for position, index in enumerate(node.outputs):
        ctx.set((None,) * len(ctx.graph.values[index].shape), output=position)


def random_like(node: Node, ctx: Context) -> None:
    like: Ref = node.args["self"]
    ctx.set(ctx.dims(like))


def triangle(node: Node, ctx: Context) -> None:
    """``tril`` and ``triu``: the last two dimensions are compared with each other."""
    x: Ref = node.args["self"]
    dims, zero = ctx.dims(x), ctx.zero(x)
    for labels in dims[-2:]:
        ctx.freeze(labels, "is cut to a triangle")
    ctx.set((*dims[:-2], None, None), (*zero[:-2], False, False))


RULES: Mapping[str, Rule] = {
    **{f"aten.{name}": alike for name in (*ZEROS, *ALIKE)},
    **{f"aten.{name}": different for name in DIFFERENT},
    **{f"aten.{name}": random_like for name in RANDOM_LIKE},
    "aten.tril": triangle,
    "aten.triu": triangle,
}
