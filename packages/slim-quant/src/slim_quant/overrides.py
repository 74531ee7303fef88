"""Settings for single layers: which nodes of a graph an override or a skip pattern means, and what it asks for.

An override names layers by a glob over their names, by operator, or by both. Later overrides win.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from typing import Any

from torch import fx

from slim_core.errors import PatternError, SlimError, close_match
from slim_quant.graph import layer_name, op_name
from slim_quant.schemes import Scheme

#: operators by the word that configurations use; an ATen name (``aten.add.Tensor``) is understood too
OPERATORS: Mapping[str, tuple[str, ...]] = {
    "conv": ("aten.conv1d.", "aten.conv2d.", "aten.conv3d."),
    "conv_transpose": ("aten.conv_transpose",),
    "linear": ("aten.linear.",),
    "embedding": ("aten.embedding.",),
    "add": ("aten.add.",),
    "mul": ("aten.mul.",),
    "matmul": ("aten.matmul.", "aten.bmm.", "aten.scaled_dot_product_attention."),
    "concat": ("aten.cat.", "aten.concat."),
    "pool": ("aten.adaptive_avg_pool", "aten.avg_pool", "aten.mean.dim"),
    "resize": ("aten.upsample_",),
    "softmax": ("aten.softmax.", "aten._softmax."),
    "sigmoid": ("aten.sigmoid.",),
    "hardsigmoid": ("aten.hardsigmoid.",),
    "hardswish": ("aten.hardswish.",),
    "silu": ("aten.silu.",),
    "gelu": ("aten.gelu.",),
    "leaky_relu": ("aten.leaky_relu.",),
}
#: a convolution with a group for each input channel is a ``depthwise`` one as well as a ``conv``
DEPTHWISE = "depthwise"
_WEIGHTED = ("conv", "conv_transpose", "linear", "embedding")
_FEW = 20


def no_layer(what: str, pattern: str | None, layers: Sequence[str]) -> PatternError:
    """Return the error of ``what`` (``"skip pattern 'x'"``) that matches no layer; it names layers that there are."""
    near = close_match(pattern, layers) if pattern is not None else ""
    more = f" and {len(layers) - _FEW} more" if len(layers) > _FEW else ""
    hint = f"{near} layers: {', '.join(layers[:_FEW])}{more}".strip()
    return PatternError(f"{what} matches no layer", hint=hint)


@dataclass(frozen=True, slots=True)
class Override:
    """Settings for the layers that match.

    Args:
        match: glob over layer names (``"features.0"``, ``"blocks.*.attn.*"``); ``None`` means all layers of ``op``.
            A layer is called by the module that owns its weight; what has no weight by the module that ran it, or by
            its node's name where several ran there.
        op: operator: a word of :data:`OPERATORS`, ``"depthwise"``, or an ATen name.
        weight: scheme of the layer's weight.
        activation: scheme of what the layer reads. Activations that share a scale (through a concatenation, say) have
            one scheme; the later override wins.
        skip: leave the layer in float.
        observer: how the ranges of what the layer reads are found.
        weight_observer: how the range of its weight is found.

    Raises:
        SlimError: neither a pattern nor an operator, an unknown operator, or nothing to set.
    """

    match: str | None = None
    op: str | None = None
    weight: Scheme | None = None
    activation: Scheme | None = None
    skip: bool = False
    observer: str | Mapping[str, Any] | None = None
    weight_observer: str | None = None

    def __post_init__(self) -> None:
        if self.match is None and self.op is None:
            raise SlimError("an override needs a pattern (match) or an operator (op)")
        if self.op is not None and not self.op.startswith("aten.") and self.op not in {*OPERATORS, DEPTHWISE}:
            hint = f"{close_match(self.op, OPERATORS)} known: {', '.join([*OPERATORS, DEPTHWISE])}".strip()
            raise SlimError(f"unknown operator '{self.op}' in an override", hint=hint)
        if self.activation is not None and self.activation.granularity != "per_tensor":
            raise SlimError(
                "activations are quantized per tensor only", hint='use Scheme(granularity="per_tensor") for activations'
            )
        if not self.skip and all(getattr(self, item.name) is None for item in fields(self)[2:] if item.name != "skip"):
            raise SlimError(f"the override of {self} sets nothing")

    def __str__(self) -> str:
        parts = [f"'{self.match}'" if self.match is not None else "", f"op {self.op}" if self.op is not None else ""]
        return " and ".join(part for part in parts if part)

    def hits(self, node: fx.Node) -> bool:
        """Tell whether it means ``node``."""
        if self.op is not None and not is_operator(node, self.op):
            return False
        return self.match is None or any(fnmatchcase(name, self.match) for name in {layer_name(node), node.name})


def skipping(pattern: str) -> Override:
    """Return the override of an entry of a skip list: a glob over layer names, or ``op:`` and an operator."""
    if pattern.startswith("op:"):
        return Override(op=pattern.removeprefix("op:"), skip=True)
    return Override(match=pattern, skip=True)


def is_operator(node: fx.Node, word: str) -> bool:
    """Tell whether ``node`` is an operator that is called ``word``."""
    name = op_name(node)
    if word == DEPTHWISE:
        source = node.args[0] if node.args else None
        value = source.meta.get("val") if isinstance(source, fx.Node) else None
        groups = node.args[6] if len(node.args) > 6 else 1
        if value is None or groups == 1 or groups != value.shape[1]:
            return False
        return is_operator(node, "conv")
    return name == word or any(name.startswith(prefix) for prefix in OPERATORS.get(word, ()))


def matched(overrides: Iterable[Override], nodes: Sequence[fx.Node]) -> list[tuple[Override, list[fx.Node]]]:
    """Return each override with the nodes that it means.

    Args:
        overrides: in order.
        nodes: the layers and operators that can be quantized.

    Raises:
        PatternError: an override means none of them.
    """
    found = []
    for item in overrides:
        hits = [node for node in nodes if item.hits(node)]
        if not hits:
            named = [node for node in nodes if item.op is None or is_operator(node, item.op)] or nodes
            layers = list(dict.fromkeys(layer_name(node) for node in sorted(named, key=_has_no_weight)))
            what = f"skip pattern {item}" if item.skip else f"override {item}"
            raise no_layer(what, item.match, layers)
        found.append((item, hits))
    return found


def _has_no_weight(node: fx.Node) -> bool:
    return not any(is_operator(node, word) for word in _WEIGHTED)
