"""Multiply-accumulates of one operator, from its shapes alone. One small function per operator family.

Counted are convolutions, matrix products in all their forms (linear layers, attention, einsum, recurrent layers
recorded whole) and nothing else: element-wise work, normalization, pooling and interpolation are bound by memory and
are not multiply-accumulates by the convention of the published tables. Biases are not counted either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from types import MappingProxyType

from slim_core.graph.types import Node, Ref, Value

Counter = Callable[[Node, Sequence[Value]], int]

_ELLIPSIS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"  # stand for the dimensions of "..." where the equation leaves them free


def macs_of(node: Node, values: Sequence[Value]) -> int | None:
    """Return the multiply-accumulates of ``node``, or ``None`` for an operator that is not counted."""
    counter = COUNTERS.get(packet(node.op))
    return None if counter is None else counter(node, values)


def packet(op: str) -> str:
    """Return an operator's name without its overload: ``"aten.add"`` of ``"aten.add.Tensor"``."""
    return op.rsplit(".", 1)[0]


def _shape(node: Node, name: str, values: Sequence[Value]) -> tuple[int, ...]:
    ref = node.args[name]
    return values[ref.index].shape if isinstance(ref, Ref) else ()


def _out(node: Node, values: Sequence[Value]) -> int:
    return prod(values[node.outputs[0]].shape)


def _convolution(node: Node, values: Sequence[Value]) -> int:
    # weight (Cout, Cin / groups, *kernel); each output element takes one dot product of that size
    weight = _shape(node, "weight", values)
    if node.args.get("transposed"):
        return _transposed(node, values)
    return _out(node, values) * prod(weight[1:])


def _transposed(node: Node, values: Sequence[Value]) -> int:
    # weight (Cin, Cout / groups, *kernel); each input element is spread over that many outputs
    data = _shape(node, "input" if "input" in node.args else "self", values)
    return prod(data) * prod(_shape(node, "weight", values)[1:])


def _inner(first: str) -> Counter:
    """Count products whose inner size is the last dimension of argument ``first``."""

    def count(node: Node, values: Sequence[Value]) -> int:
        return _out(node, values) * prod(_shape(node, first, values)[-1:])

    return count


def _addbmm(node: Node, values: Sequence[Value]) -> int:
    batch, _, inner = _shape(node, "batch1", values)
    return _out(node, values) * batch * inner


def _bilinear(node: Node, values: Sequence[Value]) -> int:
    left, right = (_shape(node, name, values)[-1] for name in ("input1", "input2"))
    return _out(node, values) * left * right


def _trilinear(node: Node, values: Sequence[Value]) -> int:
    # what bilinear becomes: three tensors, spread over common dimensions, multiplied and summed
    spread = []
    for position in (1, 2, 3):
        sizes = list(_shape(node, f"i{position}", values))
        for dim in sorted(node.args[f"expand{position}"]):
            sizes.insert(dim, 1)
        spread.append(sizes)
    return prod(max(sizes) for sizes in zip(*spread, strict=True))


def _attention(node: Node, values: Sequence[Value]) -> int:
    # (..., L, E) x (..., S, E) -> scores (..., L, S) x (..., S, Ev); a causal mask is not credited
    query, key, value = (_shape(node, name, values) for name in ("query", "key", "value"))
    return prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _attention_heads_last(node: Node, values: Sequence[Value]) -> int:
    # the kernels below the public one keep heads behind the sequence: (N, L, H, E), (N, S, H, E)
    query, key, value = (_shape(node, name, values) for name in ("query", "key", "value"))
    return prod(query[:-1]) * key[-3] * (query[-1] + value[-1])


def _encoder_layer(node: Node, values: Sequence[Value]) -> int:
    batch, length, width = _shape(node, "src", values)
    names = ("qkv_weight", "proj_weight", "ffn_weight_1", "ffn_weight_2")
    weights = sum(prod(_shape(node, name, values)) for name in names)
    return batch * length * (weights + 2 * length * width)


def _multi_head(node: Node, values: Sequence[Value]) -> int:
    query, key = _shape(node, "query", values), _shape(node, "key", values)
    (batch, length, width), other = query, key[1]
    projections = width * width * (2 * length + 2 * other)  # query and output, key and value
    return batch * (projections + 2 * length * other * width)


def _recurrent(node: Node, values: Sequence[Value]) -> int:
    # every step multiplies with every weight matrix once, in each layer and direction
    data = node.args.get("input") or node.args.get("data")
    weights = node.args.get("params") or node.args.get("weight") or ()
    matrices = [values[ref.index].shape for ref in weights if isinstance(ref, Ref)]
    steps = prod(values[data.index].shape[:-1]) if isinstance(data, Ref) else 0
    return steps * sum(prod(shape) for shape in matrices if len(shape) == 2)


def _recurrent_layer(node: Node, values: Sequence[Value]) -> int:
    steps = prod(_shape(node, "input", values)[:-1])
    return steps * sum(prod(_shape(node, name, values)) for name in ("weight0", "weight1"))


def _recurrent_cell(node: Node, values: Sequence[Value]) -> int:
    steps = prod(_shape(node, "input", values)[:-1])
    return steps * sum(prod(_shape(node, name, values)) for name in ("w_ih", "w_hh"))


def _einsum(node: Node, values: Sequence[Value]) -> int:
    """Count a contraction from left to right, which is how PyTorch runs it; sums of one operand cost nothing."""
    shapes = [values[ref.index].shape for ref in node.args["tensors"]]
    terms, output = einsum_terms(node.args["equation"], [len(shape) for shape in shapes])
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, shapes, strict=True):
        for letter, size in zip(term, shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    total, left = 0, set(terms[0])
    for position, term in enumerate(terms[1:], 1):
        needed = set(output).union(*terms[position + 1 :])
        right = set(term)
        left = {letter for letter in left if letter in right or letter in needed}
        right = {letter for letter in right if letter in left or letter in needed}
        total += prod(sizes[letter] for letter in left | right)
        left = (left | right) & needed
    return total


def einsum_terms(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """Return the letters of each operand and of the output; dimensions under ``...`` get capital letters of their own.

    Args:
        equation: as ``torch.einsum`` takes it, with or without ``->``.
        ranks: number of dimensions of each operand.
    """
    text = equation.replace(" ", "")
    left, arrow, output = text.partition("->")
    free = [letter for letter in _ELLIPSIS if letter not in text]
    terms: list[str] = []
    longest = ""
    for term, rank in zip(left.split(","), ranks, strict=True):
        if "..." in term:
            count = rank - (len(term) - 3)
            dots = "".join(reversed(free[:count]))  # aligned at the right, as broadcasting is
            longest = max(longest, dots, key=len)
            term = term.replace("...", dots)
        terms.append(term)
    if not arrow:
        once = sorted(letter for letter in set(left) - {",", "."} if left.count(letter) == 1)
        output = "..." + "".join(once)
    return terms, output.replace("...", longest)


#: operator without overload -> how its multiply-accumulates are counted
COUNTERS: Mapping[str, Counter] = MappingProxyType(
    {
        **{
            f"aten.{name}": _convolution
            for name in ("convolution", "_convolution", "conv1d", "conv2d", "conv3d", "convolution_overrideable",
                         "_convolution_mode", "cudnn_convolution", "cudnn_convolution_relu",
                         "cudnn_convolution_add_relu", "mkldnn_convolution", "miopen_convolution",
                         "miopen_depthwise_convolution", "thnn_conv2d", "_slow_conv2d_forward", "slow_conv3d",
                         "slow_conv3d_forward", "_conv_depthwise2d", "conv_depthwise3d", "slow_conv_dilated2d",
                         "slow_conv_dilated3d")
        },
        **{
            f"aten.{name}": _transposed
            for name in ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "slow_conv_transpose2d",
                         "slow_conv_transpose3d", "cudnn_convolution_transpose", "miopen_convolution_transpose")
        },
        **{f"aten.{name}": _inner("self") for name in ("mm", "bmm", "matmul", "mv", "dot", "vdot", "inner", "_int_mm",
                                                    "_scaled_mm", "mkldnn_linear")},
        **{f"aten.{name}": _inner("mat1") for name in ("addmm", "_addmm_activation")},
        "aten.linear": _inner("input"),
        "aten.addmm_": _inner("mat1"),
        "aten.addmv": _inner("mat"),
        "aten.baddbmm": _inner("batch1"),
        "aten.baddbmm_": _inner("batch1"),
        "aten.addbmm": _addbmm,
        "aten.bilinear": _bilinear,
        "aten._trilinear": _trilinear,
        "aten.einsum": _einsum,
        **{
            f"aten.{name}": _attention
            for name in ("scaled_dot_product_attention", "_scaled_dot_product_attention_math",
                         "_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_for_cpu",
                         "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
                         "_scaled_dot_product_fused_attention_overrideable")
        },
        **{f"aten.{name}": _attention_heads_last for name in ("_flash_attention_forward",
                                                              "_efficient_attention_forward")},
        "aten._transformer_encoder_layer_fwd": _encoder_layer,
        "aten._native_multi_head_attention": _multi_head,
        **{
            f"aten.{name}": _recurrent
            for name in ("lstm", "gru", "rnn_tanh", "rnn_relu", "_cudnn_rnn", "miopen_rnn")
        },
        "aten.mkldnn_rnn_layer": _recurrent_layer,
        **{f"aten.{name}": _recurrent_cell for name in ("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")},
    }
)  # fmt: skip
