"""Which operators work on every channel by itself: their results for some channels are a part of those for all.

An operator that is not listed here is computed again, which is right for every operator and only takes longer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from slim_core.graph.rules.base import refs_of
from slim_core.graph.types import Graph, Node, Ref

#: value -> dimension -> indices that stay
Sliced = Mapping[int, Mapping[int, Any]]

_POINTWISE = frozenset({
    "relu", "relu6", "hardtanh", "hardswish", "hardsigmoid", "silu", "gelu", "sigmoid", "tanh", "leaky_relu", "elu",
    "celu", "selu", "mish", "softplus", "log_sigmoid", "exp", "log", "sqrt", "rsqrt", "abs", "neg", "square", "pow",
    "clamp", "clamp_min", "clamp_max", "dropout", "feature_dropout", "alpha_dropout", "contiguous", "clone", "detach",
    "alias", "to", "_to_copy", "type_as", "lift_fresh", "add", "sub", "mul", "div", "rsub", "maximum", "minimum",
    "prelu", "batch_norm", "instance_norm",
})  # fmt: skip
#: they move or join indices; a size among their arguments follows from the shapes, which are compared
_MOVING = frozenset({
    "view", "reshape", "_unsafe_view", "flatten", "unflatten", "permute", "transpose", "t", "squeeze", "unsqueeze",
    "expand", "cat", "concat", "chunk", "split", "split_with_sizes", "pixel_shuffle", "channel_shuffle",
})  # fmt: skip
_SIZES = frozenset({"size", "shape", "sizes", "split_size", "split_sizes", "groups"})
_REDUCTIONS = frozenset({"mean", "sum", "amax", "amin"})
_CONVOLUTIONS = frozenset({"conv1d", "conv2d", "conv3d"})


def same_arguments(before: Mapping[str, Any], after: Mapping[str, Any], *, sizes: bool = True) -> bool:
    """Return whether two recordings of an operator have equal arguments beside tensors; ``sizes`` may differ."""
    if before is after:
        return True
    return all(after[name] == value or (sizes and name in _SIZES) for name, value in before.items())


def channelwise(node: Node, graph: Graph, sliced: Sliced) -> bool:
    """Return whether an operator's results with fewer channels are a part of its results with all of them.

    Args:
        node: the operator; its arguments are sliced at most, none of them differs otherwise.
        graph: the recording.
        sliced: the values that lose indices.
    """
    namespace, name, _ = node.op.split(".", 2)
    name = name.removesuffix("_") if not name.startswith("_") else name
    if namespace != "aten":
        return False
    if name in _POINTWISE or name in _MOVING:
        return True
    rule = _RULES.get(name)
    if rule is not None:
        return rule(node, graph, sliced)
    if "pool" in name or name.startswith("upsample"):
        return _over_space(node, name, graph, sliced)
    return False


def _over_space(node: Node, name: str, graph: Graph, sliced: Sliced) -> bool:
    """Pools and resampling: the last dimensions are space."""
    space = next((int(digit) for digit in "123" if f"{digit}d" in name), 0)
    refs = refs_of(node.args.values())
    return bool(space) and all(
        dim < len(graph.values[ref.index].shape) - space for ref in refs for dim in sliced.get(ref.index, {})
    )


def _reduction(node: Node, graph: Graph, sliced: Sliced) -> bool:
    x = node.args["self"]
    rank = len(graph.values[x.index].shape)
    dims = node.args.get("dim")
    if dims is None or dims == ():
        return not sliced.get(x.index)
    reduced = {dim % rank for dim in (dims if isinstance(dims, tuple) else (dims,))}
    return not reduced & set(sliced.get(x.index, {}))


def _convolution(node: Node, graph: Graph, sliced: Sliced) -> bool:
    x, weight = node.args["input"], node.args["weight"]
    if 1 in sliced.get(weight.index, {}):
        return False
    channels = len(graph.values[x.index].shape) - len(graph.values[weight.index].shape) + 1
    lost = set(sliced.get(x.index, {}))
    return lost <= {channels} and (not lost or node.args["groups"] > 1)


def _linear(node: Node, graph: Graph, sliced: Sliced) -> bool:
    x, weight = node.args["input"], node.args["weight"]
    return 1 not in sliced.get(weight.index, {}) and len(graph.values[x.index].shape) - 1 not in sliced.get(x.index, {})


def _embedding(node: Node, graph: Graph, sliced: Sliced) -> bool:
    weight, indices = node.args["weight"], node.args["indices"]
    return isinstance(indices, Ref) and not sliced.get(indices.index) and 0 not in sliced.get(weight.index, {})


_RULES: Mapping[str, Callable[[Node, Graph, Sliced], bool]] = {
    **dict.fromkeys(_REDUCTIONS, _reduction),
    **dict.fromkeys(_CONVOLUTIONS, _convolution),
    "linear": _linear,
    "embedding": _embedding,
}
