"""Puts fake-quantizers into a graph: ``torch.fake_quantize_*`` nodes that read scale and zero point from buffers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, fx, nn

from slim_core.errors import ModelError
from slim_core.graph.export import ExportedModel
from slim_quant.graph import argument, get_tensor, is_float, owner_of, read_tensor, set_tensor, weight_position
from slim_quant.placement import Placement
from slim_quant.schemes import Scheme, on_grid, scale_shape

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
    activation_schemes: Mapping[str, Scheme], weight_schemes: Mapping[str, Scheme],
) -> None:  # fmt: skip
    """Insert all quantizers of ``placement``; weights are moved onto their grid.

    Args:
        model: the exported model, batch norms folded; edited in place.
        placement: where.
        activations: scale and zero point by name of the scale's node.
        weights: scale and zero point by weight name.
        activation_schemes: bits and symmetry by name of the scale's node.
        weight_schemes: bits, symmetry and granularity by weight name.

    Raises:
        ModelError: the graph lacks a recorded node, or one is something else: it is not the graph that was quantized.
    """
    nodes = _check(model, placement)
    for scale, (value, zero_point) in activations.items():
        set_tensor(model, f"{ACTIVATIONS}.{scale}.scale", value)
        set_tensor(model, f"{ACTIVATIONS}.{scale}.zero_point", zero_point)
    for place in placement.activations:
        _insert_activation(model, nodes[place.node], place.scale, activation_schemes[place.scale])
    for weight in placement.weights:
        scheme = weight_schemes[weight.name]
        if scheme.granularity == "per_group" and get_tensor(model, weight.name).dim() != 2:
            raise _other(f"'{weight.name}' is no matrix, which quantization per group needs")
        _insert_weight(model, [nodes[name] for name in weight.layers], weight.name, weight.along(scheme),
                       weights[weight.name], scheme)  # fmt: skip
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
            node, position = nodes[layer], weight_position(nodes[layer])
            if node.op != "call_function" or owner_of(argument(node, position)) != weight.name:
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
    source = layers[0].args[weight_position(layers[0])]
    with model.graph.inserting_before(first):
        if scheme.granularity == "per_group":
            fake = _grouped(model, cast(fx.Node, source), name, axis, scheme, parameter)
        elif scheme.granularity == "per_channel":
            fake = model.graph.call_function(PER_CHANNEL, (source,))
        else:
            fake = model.graph.call_function(PER_TENSOR, (source,))
    if scheme.granularity != "per_group":
        parts = [read_tensor(model, scale_name(name), fake), _zero_point(model, name, scheme, scale.numel(), fake)]
        extra = (axis,) if scheme.granularity == "per_channel" else ()
        fake.args = (fake.args[0], *parts, *extra, scheme.qmin, scheme.qmax)
    fake.meta["val"] = parameter.detach()
    for layer in layers:
        position = weight_position(layer)
        layer.args = (*layer.args[:position], fake, *layer.args[position + 1 :])


def _grouped(model: ExportedModel, source: fx.Node, name: str, axis: int, scheme: Scheme, parameter: Tensor) -> fx.Node:
    """Return the node of a matrix whose rows are quantized in groups: per channel, on a view with a row per group."""
    rows, width = parameter.shape
    groups, size = scale_shape((rows, width), scheme, axis)[1], int(scheme.group_size or 1)
    aten, call = torch.ops.aten, model.graph.call_function
    rest = groups * size - width
    padded = call(aten.constant_pad_nd.default, (source, [0, rest])) if rest else source
    view = call(aten.reshape.default, (padded, [rows * groups, size]))
    fake = call(PER_CHANNEL, (view,))
    scale = read_tensor(model, scale_name(name), fake)
    zero = _zero_point(model, name, scheme, rows * groups, fake)
    with model.graph.inserting_before(fake):
        flat = call(aten.reshape.default, (scale, [rows * groups]))
        zero = zero if scheme.symmetric else call(aten.reshape.default, (zero, [rows * groups]))
    fake.args = (view, flat, zero, 0, scheme.qmin, scheme.qmax)
    back = call(aten.reshape.default, (fake, [rows, groups * size]))
    return call(aten.slice.Tensor, (back, 1, 0, width)) if rest else back


def _zero_point(model: ExportedModel, name: str, scheme: Scheme, count: int, before: fx.Node) -> fx.Node:
    if not scheme.symmetric:
        return read_tensor(model, zero_point_name(name), before)
    zero = read_tensor(model, ZERO, before)
    if scheme.granularity == "per_tensor":
        return zero
    with model.graph.inserting_before(before):
        return model.graph.call_function(torch.ops.aten.expand.default, (zero, [count]))


def _after(node: fx.Node) -> fx.Node:
    """Return the node after which to insert: the last placeholder for inputs, so that they stay together."""
    if node.op != "placeholder":
        return node
    last = node
    while last.next.op == "placeholder":
        last = last.next
    return last


def is_quantized(model: nn.Module) -> bool:
    """Tell whether ``model`` holds fake-quantizers or packed weights, or is prepared for training with them."""
    if any("_packed_layouts" in vars(module) for module in model.modules()):
        return True
    if not isinstance(model, fx.GraphModule):
        return False
    return "quant.qat" in model.meta or any(node.target in (PER_TENSOR, PER_CHANNEL) for node in model.graph.nodes)
