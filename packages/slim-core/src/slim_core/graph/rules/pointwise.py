"""Operators that work element by element, with one operand or several: activations, sums, products, gates.

What matters besides tying operands is whether zero goes to zero: a later sum over masked channels is only right then.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slim_core.graph.rules.base import Context, Rule
from slim_core.graph.rules.products import Operand, broadcast
from slim_core.graph.types import Node, Ref

#: f(0) = 0
KEEPS_ZERO = (
    "relu", "relu6", "silu", "gelu", "tanh", "abs", "neg", "negative", "leaky_relu", "elu", "selu", "celu", "mish",
    "hardswish", "sin", "tan", "asin", "atan", "sinh", "asinh", "erf", "sign", "sgn", "floor", "ceil", "round",
    "trunc", "fix", "frac", "sqrt", "square", "softshrink", "hardshrink", "dropout",
    "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "native_dropout", "expm1", "log1p", "clone",
    "contiguous", "to", "detach", "_to_copy", "alias", "lift_fresh", "lift", "positive", "nan_to_num", "type_as",
    "fake_quantize_per_tensor_affine", "view_as_real_copy", "resolve_conj", "resolve_neg", "pin_memory",
    "requires_grad", "cuda", "cpu", "arctan", "arcsin", "arctanh", "atanh",
    "deg2rad", "rad2deg", "hardtanh", "clamp", "clip", "clamp_min", "clamp_max", "threshold", "rrelu", "_conj",
    "copy",
)  # fmt: skip
#: f(0) != 0, and finite
LOSES_ZERO = (
    "sigmoid", "exp", "exp2", "cos", "cosh", "acos", "softplus", "hardsigmoid", "log_sigmoid", "erfc",
    "logical_not", "isnan", "isinf", "isfinite", "bitwise_not", "logit", "sinc", "i0",
)  # fmt: skip
#: infinite at 0: the masked original would not be finite
SINGULAR = ("log", "log2", "log10", "rsqrt", "reciprocal", "digamma", "lgamma", "erfinv_")
#: zero where all operands are
SUMS = (
    "add", "sub", "subtract", "rsub", "maximum", "minimum", "fmax", "fmin", "bitwise_or", "bitwise_xor",
    "logical_or", "logical_xor", "lerp", "where", "hypot", "__or__", "__xor__",
)  # fmt: skip
#: zero where one operand is
PRODUCTS = ("mul", "multiply", "logical_and", "bitwise_and", "__and__")
QUOTIENTS = ("div", "divide", "true_divide", "floor_divide", "remainder", "fmod")
COMPARISONS = (
    "eq", "ne", "lt", "le", "gt", "ge", "not_equal", "less", "greater", "less_equal", "greater_equal", "isclose",
)  # fmt: skip


def keeps_zero(node: Node, ctx: Context) -> None:
    low, high = _bound(node, ("min", "min_val"), -1), _bound(node, ("max", "max_val"), 1)
    if "hardtanh" in node.op:
        kept = low <= 0 <= high
    elif "threshold" in node.op:
        kept = node.args["value"] == 0 or node.args["threshold"] < 0
    else:
        kept = low <= 0 <= high
    _unary(node, ctx, kept)


def loses_zero(node: Node, ctx: Context) -> None:
    _unary(node, ctx, False)


def singular(node: Node, ctx: Context) -> None:
    x = _first(node)
    for labels, zero in zip(ctx.dims(x), ctx.zero(x), strict=True):
        if zero:
            ctx.protect(labels, f"{_short(node)} is not finite where a channel is masked")
    _unary(node, ctx, False)


def power(node: Node, ctx: Context) -> None:
    exponent = node.args["exponent"]
    if isinstance(exponent, Ref) or isinstance(node.args["self"], Ref) is False:
        _combine(node, ctx, any_zero=False, keep=False)
    elif exponent > 0:
        _unary(node, ctx, True)
    else:
        singular(node, ctx)


def added(node: Node, ctx: Context) -> None:
    numbers = [v for k, v in node.args.items() if isinstance(v, int | float) and k in ("other", "self")]
    _combine(node, ctx, any_zero=False, keep=all(number == 0 for number in numbers))


def multiplied(node: Node, ctx: Context) -> None:
    _combine(node, ctx, any_zero=True)


def divided(node: Node, ctx: Context) -> None:
    divisor = node.args["other"]
    if isinstance(divisor, Ref):
        for labels, masked in zip(ctx.dims(divisor), ctx.zero(divisor), strict=True):
            if masked:
                ctx.protect(labels, "divides by a channel that is zero when masked")
    dividend: Any = node.args["self"]
    refs = _operands(node, ctx)
    dims, _ = broadcast(ctx, refs, any_zero=True)
    zero: list[bool] = [False] * len(dims)
    if isinstance(dividend, Ref):
        own = ctx.zero(dividend)
        shape = ctx.shape(dividend)
        out = ctx.graph.values[node.outputs[0]].shape
        for position in range(-len(own), 0):
            zero[position] = own[position] and shape[position] == out[position]
    _finish(node, ctx, dims, zero)


def compared(node: Node, ctx: Context) -> None:
    _combine(node, ctx, any_zero=False, keep=False)


def masked_fill(node: Node, ctx: Context) -> None:
    filled = node.args["value"]
    refs = _operands(node, ctx)
    dims, _ = broadcast(ctx, refs, any_zero=True)
    own = ctx.zero(node.args["self"])
    keep = isinstance(filled, int | float) and filled == 0 and len(own) == len(dims)
    _finish(node, ctx, dims, own if keep else [False] * len(dims))


def where(node: Node, ctx: Context) -> None:
    """Zero where both branches are, whatever the condition is."""
    operands = _operands(node, ctx)
    dims, _ = broadcast(ctx, operands, any_zero=True)
    branches = [node.args.get(name) for name in ("self", "input", "other")]
    zero = [False] * len(dims)
    tensors = [branch for branch in branches if isinstance(branch, Ref)]
    if len(tensors) == 2:
        _, zero = broadcast(ctx, [_operand(ref, ctx) for ref in tensors], any_zero=False)
        zero = [False] * (len(dims) - len(zero)) + zero
    ctx.set(dims, zero)


def addcmul(node: Node, ctx: Context) -> None:
    first = [_operand(node.args[name], ctx) for name in ("tensor1", "tensor2")]
    if "addcdiv" in node.op:
        divisor = node.args["tensor2"]
        for labels, zero in zip(ctx.dims(divisor), ctx.zero(divisor), strict=True):
            if zero:
                ctx.protect(labels, "divides by a channel that is zero when masked")
    dims, zeros = broadcast(ctx, first, any_zero=True)
    shape = ctx.graph.values[node.outputs[0]].shape
    if len(dims) == len(shape) and all(d is None or len(d) == n for d, n in zip(dims, shape, strict=True)):
        dims, zeros = broadcast(ctx, [(dims, zeros, shape), _operand(node.args["self"], ctx)], any_zero=False)
        _finish(node, ctx, dims, zeros)
    else:
        dims, _ = broadcast(ctx, [*first, _operand(node.args["self"], ctx)], any_zero=False)
        _finish(node, ctx, dims, [False] * len(dims))


def prelu(node: Node, ctx: Context) -> None:
    x, weight = node.args["self"], node.args["weight"]
    dims = ctx.dims(x)
    if ctx.shape(weight)[0] > 1:
        ctx.tie(dims[1], ctx.dims(weight)[0])
    _finish(node, ctx, dims, ctx.zero(x))


def copied(node: Node, ctx: Context) -> None:
    """``copy_``: what is written into a view belongs to the same indices as the view."""
    target = node.args["self"]
    source = node.args["src"] if "src" in node.args else node.args.get("value")
    dims = ctx.dims(target)
    zero = [True] * len(dims)
    if isinstance(source, Ref):
        shape = ctx.shape(target)
        operands: list[Operand] = [(dims, zero, shape), _operand(source, ctx)]
        made, flags = broadcast(ctx, operands, any_zero=False)
        ctx.wrote(target, all(z or d is None for z, d in zip(flags, made, strict=True)))
        ctx.set([d if d is not None else m for d, m in zip(dims, made, strict=True)], flags)
    else:
        ctx.wrote(target, source == 0)
        ctx.set(dims, [source == 0] * len(dims))


def filled(node: Node, ctx: Context) -> None:
    target = node.args["self"]
    value = node.args.get("value", 0)
    dims = ctx.dims(target)
    zero = isinstance(value, int | float) and value == 0
    if "fill_" in node.op or "zero_" in node.op:
        ctx.wrote(target, zero)
    ctx.set(dims, [zero] * len(dims))


def fake_quantized(node: Node, ctx: Context) -> None:
    """Scale and zero point per channel go along; a zero stays a zero."""
    x, axis = node.args["self"], node.args["axis"]
    dims = list(ctx.dims(x))
    for name in ("scale", "zero_point"):
        if ctx.shape(node.args[name])[0] > 1:
            dims[axis] = ctx.tie(dims[axis], ctx.dims(node.args[name])[0])
    ctx.set(dims, ctx.zero(x))


def glu(node: Node, ctx: Context) -> None:
    x, dim = node.args["self"], node.args["dim"]
    dims, zero = list(ctx.dims(x)), ctx.zero(x)
    dims[dim] = ctx.tie_columns(dims[dim], 2)
    ctx.set(dims, zero)


def _bound(node: Node, names: tuple[str, ...], default: float) -> float:
    for name in names:
        value = node.args.get(name)
        if isinstance(value, int | float):
            return value
        if isinstance(value, Ref):
            return 2.0 * -default  # unknown: as if zero lay outside
    return default


def _unary(node: Node, ctx: Context, keep: bool) -> None:
    refs = [value for value in node.args.values() if isinstance(value, Ref)]
    if len(refs) > 1 and not node.op.startswith(("aten.to", "aten.type_as")):
        _combine(node, ctx, any_zero=False, keep=False)
        return
    x = _first(node)
    zero = ctx.zero(x)
    _finish(node, ctx, ctx.dims(x), zero if keep else [False] * len(zero))


def _first(node: Node) -> Ref:
    return next(value for value in node.args.values() if isinstance(value, Ref))


def _operand(ref: Ref, ctx: Context) -> Operand:
    return ctx.dims(ref), ctx.zero(ref), ctx.shape(ref)


def _operands(node: Node, ctx: Context) -> list[Operand]:
    return [_operand(value, ctx) for value in node.args.values() if isinstance(value, Ref)]


def _combine(node: Node, ctx: Context, *, any_zero: bool, keep: bool = True) -> None:
    dims, zero = broadcast(ctx, _operands(node, ctx), any_zero=any_zero)
    _finish(node, ctx, dims, zero if keep else [False] * len(zero))


def _finish(node: Node, ctx: Context, dims: Any, zero: Any) -> None:
    if node.op.rsplit(".", 1)[0].endswith("_"):
        ctx.wrote(_first(node), all(z or d is None for z, d in zip(zero, dims, strict=True)))
    for position in range(len(node.outputs)):
        ctx.set(dims, zero, output=position)


def _short(node: Node) -> str:
    return node.op.split(".")[1]


def _table() -> dict[str, Rule]:
    table: dict[str, Rule] = {}
    for names, rule in (
        (KEEPS_ZERO, keeps_zero), (LOSES_ZERO, loses_zero), (SINGULAR, singular), (SUMS, added), (PRODUCTS, multiplied),
        (QUOTIENTS, divided), (COMPARISONS, compared), (("pow",), power), (("masked_fill",), masked_fill),
        (("where",), where), (("addcmul", "addcdiv"), addcmul), (("prelu",), prelu), (("_prelu_kernel",), added),
        (("copy_",), copied), (("fill_", "zero_", "fill"), filled), (("glu",), glu),
        (("fake_quantize_per_channel_affine",), fake_quantized),
    ):  # fmt: skip
        table |= {f"aten.{name}": rule for name in names}
    return table


RULES: Mapping[str, Rule] = _table()
