"""The fake-quantizers of a quantized graph: their ends and steps, and what they do to the float model's values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from slim_core.graph.export import ExportedModel
from slim_quant.diff.counts import Counts, counter
from slim_quant.diff.lockstep import Layer, Lockstep
from slim_quant.diff.sums import Sums
from slim_quant.graph import get_tensor, owner_of
from slim_quant.insert import PER_CHANNEL, PER_TENSOR


@dataclass(slots=True)
class Quantizer:
    """A fake-quantizer.

    Args:
        name: the node or weight of the float model that it rounds.
        bits: bits of its integers.
        counts: where the float values lie.
        sums: float values against rounded ones.
    """

    name: str
    bits: int
    counts: Counts
    sums: Sums


def watch_rounding(lockstep: Lockstep, name: str) -> Quantizer | None:
    """Return the fake-quantizer of an activation; ``None``: its scale depends on the data, or it is something else."""
    node = lockstep.nodes[name]
    if node.target != PER_TENSOR or not all(_is_fixed(lockstep, item) for item in node.args[1:3]):
        return None
    scale, zero_point = (_value(lockstep.quantized, item, {}) for item in node.args[1:3])
    ends = [int(end) for end in node.args[3:5]]
    return Quantizer(lockstep.source(node).name, _bits(ends), counter(scale, zero_point, ends), Sums(1))


def compare_weight(lockstep: Lockstep, layer: Layer) -> Quantizer | None:
    """Return the fake-quantizer of a layer's weight, with the float model's weight counted in it.

    ``None``: the layer has no quantized weight, or the float model has none of that name.
    """
    last = lockstep.nodes[layer.weight] if layer.weight is not None else None
    node = last
    while node is not None and node.target not in (PER_TENSOR, PER_CHANNEL):
        node = next((item for item in node.all_input_nodes if item.op == "call_function"), None)
    if node is None or last is None:
        return None
    source = node
    while source.op == "call_function":
        source = source.all_input_nodes[0]
    name = owner_of(source)
    if name is None or name not in {owner_of(item) for item in lockstep.known[layer.node].all_input_nodes}:
        return None
    weight = get_tensor(lockstep.reference, name).detach()
    sums = Sums(0)
    sums.update(weight, _value(lockstep.quantized, last, {}))
    instead = {source: weight}
    rows, scale, zero_point = (_value(lockstep.quantized, item, dict(instead)) for item in node.args[:3])
    ends = [int(end) for end in node.args[-2:]]
    shape = []
    if node.target == PER_CHANNEL:
        shape = [-1 if axis == int(node.args[3]) else 1 for axis in range(rows.dim())]
    counts = counter(scale, zero_point, ends, shape)
    counts.update(rows.cpu())
    return Quantizer(name, _bits(ends), counts, sums)


def _bits(ends: list[int]) -> int:
    """Return the bits of integers between two ends; symmetric ones leave the most negative out."""
    return (ends[1] - ends[0]).bit_length()


def _is_fixed(lockstep: Lockstep, item: Any) -> bool:
    return isinstance(item, fx.Node) and (item.op == "get_attr" or item.name in lockstep.fixed)


def _value(model: ExportedModel, item: Any, values: dict[fx.Node, Tensor]) -> Any:
    """Return the value of a node that depends on no input; ``values`` holds what is known, and stands in for it."""
    if item not in values:
        if item.op == "get_attr":
            return get_tensor(model, str(item.target)).detach()
        args, kwargs = fx.node.map_arg((item.args, item.kwargs), lambda inner: _value(model, inner, values))
        with torch.no_grad():
            values[item] = item.target(*args, **kwargs)
    return values[item]
