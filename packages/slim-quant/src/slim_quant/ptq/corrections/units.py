"""Parts of a graph that are corrected together: single layers with their activation function, and whole blocks.

Nothing is run here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from slim_quant.graph import is_float, op_name
from slim_quant.placement import WeightPlace
from slim_quant.preparation import Prepared

#: element-wise functions of one tensor that count as part of the layer before
ACTIVATIONS = frozenset({
    "aten.relu.default", "aten.relu6.default", "aten.hardtanh.default", "aten.clamp.default", "aten.clamp_min.default",
    "aten.leaky_relu.default", "aten.elu.default", "aten.gelu.default", "aten.silu.default", "aten.mish.default",
    "aten.softplus.default", "aten.sigmoid.default", "aten.hardsigmoid.default", "aten.hardswish.default",
    "aten.tanh.default",
})  # fmt: skip
_SUMS = frozenset({"aten.add.Tensor", "aten.add_.Tensor"})


@dataclass(frozen=True, slots=True, eq=False)
class Unit:
    """Nodes that are run together.

    Args:
        name: for messages.
        nodes: in execution order; without those that read tensors.
        weights: the quantized weights that only these nodes use.
        inputs: nodes before whose values are read.
        outputs: nodes whose values are used after.
    """

    name: str
    nodes: tuple[fx.Node, ...]
    weights: tuple[WeightPlace, ...]
    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers' nodes."""
        return tuple(layer for weight in self.weights for layer in weight.layers)


def layer_units(prepared: Prepared, *, activations: bool = True) -> list[Unit]:
    """Return one unit for each quantized layer whose weight nothing else uses, in execution order.

    Args:
        prepared: the graph.
        activations: take in the activation function that follows, where it follows directly.
    """
    found = []
    users = {layer: weight for weight in prepared.placement.weights for layer in weight.layers}
    quantized = {place.node for place in prepared.placement.activations}
    for node in prepared.graph.graph.nodes:
        weight = users.get(node.name)
        if weight is None or len(weight.layers) != 1:
            continue
        nodes = [node]
        after = next(iter(node.users)) if len(node.users) == 1 else None
        if activations and after is not None and op_name(after) in ACTIVATIONS and node.name not in quantized:
            nodes.append(after)
        found.append(_unit(weight.name.removesuffix(".weight"), nodes, prepared))
    return [unit for unit in found if not _writes(unit)]


def block_units(prepared: Prepared, *, most_layers: int = 8) -> list[Unit]:
    """Return the blocks of a network, and single layers for what belongs to none, in execution order.

    A block is the outermost module that adds two activations in its own forward (a residual block, an encoder layer),
    or is of the class of such a module, or is an innermost module of several layers (a depthwise separable
    convolution), if its nodes are consecutive and have ``most_layers`` quantized layers at most. Everything else falls
    back to single layers with their activation function.
    """
    nodes = [node for node in prepared.graph.graph.nodes if node.op == "call_function"]
    layers = {layer for weight in prepared.placement.weights for layer in weight.layers}
    inside: dict[str, list[int]] = {}
    classes: dict[str, str] = {}
    for position, node in enumerate(nodes):
        for path, kind in _stack(node):
            inside.setdefault(path, []).append(position)
            classes[path] = kind
    residual = {_stack(node)[-1] for node in nodes if _stack(node) and _is_residual(node)}
    kinds = {kind for path, kind in residual if path}
    blocks: list[list[fx.Node]] = []

    def split(path: str) -> None:
        members = [nodes[position] for position in inside[path]]
        count = sum(node.name in layers for node in members)
        children = [other for other in inside if other != path and _parent(other, inside) == path]
        several = sum(any(nodes[at].name in layers for at in inside[child]) for child in children) > 1
        nested = any(_has_block(child) for child in children)
        wanted = classes[path] in kinds or (several and not nested)
        if path and wanted and 1 < count <= most_layers and _consecutive(inside[path], nodes):
            blocks.append(members)
            return
        for child in children:
            split(child)

    def _has_block(path: str) -> bool:
        """Tell whether something inside has several layers, so that ``path`` is not innermost."""
        below = [other for other in inside if other == path or other.startswith(f"{path}.")]
        return any(classes[other] in kinds or sum(nodes[at].name in layers for at in inside[other]) > 1
                   for other in below)  # fmt: skip

    for path in [other for other in inside if _parent(other, inside) is None]:
        split(path)
    units = [_unit(_name(block), block, prepared) for block in blocks]
    units = [unit for unit in units if unit.weights and not _writes(unit) and _ready(unit, nodes)]
    taken = {layer for unit in units for layer in unit.layers}
    rest = [unit for unit in layer_units(prepared) if not taken.intersection(unit.layers)]
    free = {node for unit in units for node in unit.nodes}
    rest = [unit for unit in rest if not free.intersection(unit.nodes)]
    order = {node: position for position, node in enumerate(nodes)}
    return sorted([*units, *rest], key=lambda unit: order[unit.nodes[0]])


def left_out(prepared: Prepared, units: Iterable[Unit]) -> list[WeightPlace]:
    """Return the quantized weights that no unit holds."""
    held = {weight.name for unit in units for weight in unit.weights}
    return [weight for weight in prepared.placement.weights if weight.name not in held]


def _unit(name: str, nodes: Sequence[fx.Node], prepared: Prepared) -> Unit:
    members = set(nodes)
    names = {node.name for node in nodes}
    inputs = dict.fromkeys(
        source for node in nodes for source in node.all_input_nodes if source not in members and source.op != "get_attr"
    )
    outputs = tuple(node for node in nodes if any(user not in members for user in node.users) or (node is nodes[-1]))
    weights = tuple(place for place in prepared.placement.weights if names.issuperset(place.layers))
    return Unit(name, tuple(nodes), weights, tuple(inputs), outputs)


def _stack(node: fx.Node) -> list[tuple[str, str]]:
    """Return the modules that ran ``node``, outermost first: path and class."""
    stack = node.meta.get("nn_module_stack") or {}
    return [(str(path), str(kind)) for path, kind in stack.values()]


def _parent(path: str, known: Collection[str]) -> str | None:
    """Return the innermost known module around ``path``; ``None`` for the outermost."""
    if not path:
        return None
    while "." in path:
        path = path.rpartition(".")[0]
        if path in known:
            return path
    return "" if "" in known else None


def _is_residual(node: fx.Node) -> bool:
    return (
        op_name(node) in _SUMS
        and is_float(node)
        and all(isinstance(item, fx.Node) and item.op == "call_function" and is_float(item) for item in node.args[:2])
    ) or (
        op_name(node) in _SUMS
        and is_float(node)
        and any(isinstance(item, fx.Node) and item.op == "placeholder" for item in node.args[:2])
        and all(isinstance(item, fx.Node) and item.op != "get_attr" for item in node.args[:2])
    )


def _consecutive(positions: Sequence[int], nodes: Sequence[fx.Node]) -> bool:
    return positions[-1] - positions[0] + 1 == len(positions)


def _ready(unit: Unit, nodes: Sequence[fx.Node]) -> bool:
    """Tell whether everything that the unit reads is there before its first node runs."""
    order = {node: position for position, node in enumerate(nodes)}
    return all(order.get(source, -1) < order[unit.nodes[0]] for source in unit.inputs)


def _writes(unit: Unit) -> bool:
    """Tell whether a node changes a tensor in place: then it cannot be run again and again on kept inputs."""
    return any(isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable for node in unit.nodes)


def _name(nodes: Sequence[fx.Node]) -> str:
    """Return the innermost module that ran all nodes."""
    common = _stack(nodes[0])
    for node in nodes:
        stack = _stack(node)
        common = [item for item, other in zip(common, stack, strict=False) if item == other]
    return common[-1][0] if common else nodes[0].name
