"""Puts fake-quantizers into a graph: ``torch.fake_quantize_*`` nodes that read scale and zero point from buffers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn

from slim_core.errors import ModelError
from slim_core.graph.export import ExportedModel
from slim_quant.graph import get_tensor, is_float, owner_of, read_tensor, set_tensor
from slim_quant.placement import Placement
from slim_quant.schemes import Scheme, on_grid

PER_TENSOR = torch.ops.aten.fake_quantize_per_tensor_affine.tensor_qparams
PER_CHANNEL = torch.ops.aten.fake_quantize_per_channel_affine.default
#: where the scales of activations live in the state dict
ACTIVATIONS = "activation_quant"

#: the zero point of all symmetric weights
ZERO = "weight_quant.zero_point"

QParams = Mapping[str, tuple[Tensor, Tensor]]


def scale_name(weight: str) -> str:
    """Return the state-dict name of a weight's scale."""
    return f"{weight}_scale"


def zero_point_name(weight: str) -> str:
    """Return the state-dict name of an affine weight's zero point."""
    return f"{weight}_zero_point"


def insert(
    model: ExportedModel, placement: Placement, activations: QParams, weights: QParams,
    activation_scheme: Scheme, weight_schemes: Mapping[str, Scheme],
) -> None:  # fmt: skip
    """Insert all quantizers of ``placement``; weights are moved onto their grid.

    Args:
        model: the exported model, batch norms folded; edited in place.
        placement: where.
        activations: scale and zero point by name of the scale's node.
        weights: scale and zero point by weight name.
        activation_scheme: bits of the activations.
        weight_schemes: bits, symmetry and granularity by weight name.

    Raises:
        ModelError: the graph lacks a recorded node, or one is something else: it is not the graph that was quantized.
    """
    nodes = _check(model, placement)
    for scale, (value, zero_point) in activations.items():
        set_tensor(model, f"{ACTIVATIONS}.{scale}.scale", value)
        set_tensor(model, f"{ACTIVATIONS}.{scale}.zero_point", zero_point)
    for place in placement.activations:
        _insert_activation(model, nodes[place.node], place.scale, activation_scheme)
    for weight in placement.weights:
        _insert_weight(model, [nodes[name] for name in weight.layers], weight.name, weight.axis,
                       weights[weight.name], weight_schemes[weight.name])  # fmt: skip
    model.graph.lint()
    model.recompile()


def _check(model: ExportedModel, placement: Placement) -> dict[str, fx.Node]:
    """Return the graph's nodes by name, if the places of ``placement`` are there and can be quantized."""
    nodes = {node.name: node for node in model.graph.nodes}
    quantized = {place.node for place in placement.activations}
    missing = [name for place in placement.activations for name in (place.node, place.scale) if name not in nodes]
    missing += [layer for place in placement.weights for layer in place.layers if layer not in nodes]
    if missing:
        raise _other(f"the exported graph has no node '{missing[0]}', which the quantization recorded")
    for place in placement.activations:
        if place.scale not in quantized:
            raise _other(f"the scale of '{place.node}' is that of '{place.scale}', which is not quantized")
        if not is_float(nodes[place.node]) or owner_of(nodes[place.node]) is not None:
            raise _other(f"'{place.node}' of the exported graph is no activation in float32")
    for weight in placement.weights:
        for layer in weight.layers:
            args = nodes[layer].args
            if nodes[layer].op != "call_function" or len(args) < 2 or owner_of(args[1]) != weight.name:
                raise _other(f"'{layer}' of the exported graph does not use the weight '{weight.name}'")
        if not 0 <= weight.axis < get_tensor(model, weight.name).dim():
            raise _other(f"'{weight.name}' has no axis {weight.axis}")
    return nodes


def _other(what: str) -> ModelError:
    return ModelError(
        what, hint="the model, its example inputs or the torch version differ from those of the quantization"
    )


def _insert_activation(model: ExportedModel, node: fx.Node, scale: str, scheme: Scheme) -> None:
    users = [user for user in node.users if user.target is not PER_TENSOR]
    with model.graph.inserting_after(_after(node)):
        fake = model.graph.call_function(PER_TENSOR, (node,))
    fake.meta["val"] = node.meta.get("val")
    for user in users:
        user.replace_input_with(node, fake)
    names = [f"{ACTIVATIONS}.{scale}.{leaf}" for leaf in ("scale", "zero_point")]
    fake.args = (node, *(read_tensor(model, name, fake) for name in names), scheme.qmin, scheme.qmax)


def _insert_weight(
    model: ExportedModel, layers: list[fx.Node], name: str, axis: int, values: tuple[Tensor, Tensor], scheme: Scheme
) -> None:
    scale, zero_point = values
    set_tensor(model, scale_name(name), scale)
    if scheme.symmetric:
        set_tensor(model, ZERO, torch.zeros((), dtype=torch.int32, device=scale.device), persistent=False)
    else:
        set_tensor(model, zero_point_name(name), zero_point)
    parameter = get_tensor(model, name)
    if not parameter.is_meta:
        with torch.no_grad():
            parameter.copy_(on_grid(parameter, scale, zero_point, scheme, axis))
    first = min(layers, key=list(model.graph.nodes).index)
    with model.graph.inserting_before(first):
        if scheme.granularity == "per_channel":
            fake = model.graph.call_function(PER_CHANNEL, (layers[0].args[1],))
        else:
            fake = model.graph.call_function(PER_TENSOR, (layers[0].args[1],))
    parts = [read_tensor(model, scale_name(name), fake), _zero_point(model, name, scheme, scale, fake)]
    extra = (axis,) if scheme.granularity == "per_channel" else ()
    fake.meta["val"] = parameter.detach()
    for layer in layers:
        layer.args = (layer.args[0], fake, *layer.args[2:])
    fake.args = (fake.args[0], *parts, *extra, scheme.qmin, scheme.qmax)


def _zero_point(model: ExportedModel, name: str, scheme: Scheme, scale: Tensor, before: fx.Node) -> fx.Node:
    if not scheme.symmetric:
        return read_tensor(model, zero_point_name(name), before)
    zero = read_tensor(model, ZERO, before)
    if not scale.dim():
        return zero
    with model.graph.inserting_before(before):
        return model.graph.call_function(torch.ops.aten.expand.default, (zero, [len(scale)]))


def _after(node: fx.Node) -> fx.Node:
    """Return the node after which to insert: the last placeholder for inputs, so that they stay together."""
    if node.op != "placeholder":
        return node
    last = node
    while last.next.op == "placeholder":
        last = last.next
    return last


def is_quantized(model: nn.Module) -> bool:
    """Tell whether ``model`` holds fake-quantizers."""
    if not isinstance(model, fx.GraphModule):
        return False
    return any(node.target in (PER_TENSOR, PER_CHANNEL) for node in model.graph.nodes)
