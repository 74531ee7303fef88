"""Biases as integers: runtimes add them to the integer product, in steps of input scale times weight scale.

Rounding them in the simulation too makes it round the same way as the integer kernel does: a bias that is off by half a
step moves a few results per thousand across a rounding boundary, in every layer.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, fx

from slim_core.graph.export import ExportedModel
from slim_quant.fold import FOLDABLE
from slim_quant.graph import argument, get_tensor, op_name, owner_of
from slim_quant.placement import Placement
from slim_quant.targets import TRANSPOSED

#: An int32 bias must stay below 2^31 steps, with some room.
BIAS_LIMIT = 2.0**30

QParams = Mapping[str, tuple[Tensor, Tensor]]


def bias_step(node: fx.Node, input_scale: Tensor | None, weight_scale: Tensor) -> Tensor | None:
    """Return the step of a layer's integer bias: one, or one per output channel; ``None`` where there is none.

    Args:
        node: the layer.
        input_scale: of what it reads, or ``None`` where that is not quantized.
        weight_scale: of its weight, one or one per output channel.
    """
    position, _ = FOLDABLE.get(op_name(node), (None, 0))
    if position is None or owner_of(argument(node, position)) is None or input_scale is None or weight_scale.dim() > 1:
        return None
    if weight_scale.dim() and op_name(node) in TRANSPOSED:
        return None  # its channels are those of a group
    return input_scale.double() * weight_scale.double()


def hold_bias(model: ExportedModel, placement: Placement, name: str, activations: QParams, scale: Tensor) -> Tensor:
    """Return the scale of the weight ``name``, wider where a bias would leave the range of int32."""
    for node, bias, source in _biased(model, placement, name):
        step = bias_step(node, activations[source][0] if source is not None else None, scale)
        if step is not None:
            wanted = get_tensor(model, bias).detach().abs().double() / (step / scale.double() * BIAS_LIMIT)
            scale = torch.maximum(scale, (wanted if scale.dim() else wanted.max()).to(scale.dtype))
    return scale


def round_biases(model: ExportedModel, placement: Placement, activations: QParams, weights: QParams) -> None:
    """Move the biases of quantized layers onto the steps of their integers, in place.

    A bias that several layers use stays as it is.
    """
    for item in placement.weights:
        for node, bias, source in _biased(model, placement, item.name):
            step = bias_step(node, activations[source][0] if source is not None else None, weights[item.name][0])
            tensor = get_tensor(model, bias)
            if step is None or tensor.is_meta or single_bias(model, node) is None:
                continue
            with torch.no_grad():
                tensor.copy_(rounded_bias(tensor, step))


def rounded_bias(bias: Tensor, step: Tensor) -> Tensor:
    """Return a bias on whole steps."""
    return (torch.round(bias.detach().double() / step) * step).to(bias.dtype)


def single_bias(model: ExportedModel, node: fx.Node) -> str | None:
    """Return the name of a layer's bias, or ``None`` where it has none, or others use it too."""
    position, _ = FOLDABLE.get(op_name(node), (2, 0))
    bias = owner_of(argument(node, position))
    users = [other for other in model.graph.nodes if owner_of(other) == bias]
    return bias if bias is not None and sum(len(other.users) for other in users) == 1 else None


def _biased(model: ExportedModel, placement: Placement, name: str) -> list[tuple[fx.Node, str, str | None]]:
    """Return the layers of a weight that have a bias, with its name and that of the scale of what they read."""
    scales = {item.node: item.scale for item in placement.activations}
    nodes = {node.name: node for node in model.graph.nodes}
    found = []
    for layer in next(item.layers for item in placement.weights if item.name == name):
        node = nodes[layer]
        position, _ = FOLDABLE.get(op_name(node), (2, 0))
        bias = owner_of(argument(node, position))
        if bias is not None:
            found.append((node, bias, scales.get(getattr(node.args[0], "name", ""))))
    return found
