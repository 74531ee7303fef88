"""Units: what is quantized or left in float as one. A layer with its weight, or an operator such as an addition.

A unit owns the quantizers of what it reads, of its weight, and of its result. Two units share the quantizer between
them: it is there while one of them is quantized.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor, fx

from slim_core.errors import SlimError
from slim_core.graph.export import ExportedModel
from slim_quant.graph import get_tensor, layer_name, op_name
from slim_quant.overrides import DEPTHWISE, OPERATORS, is_operator, no_layer
from slim_quant.placement import Placement, quantizable
from slim_quant.targets import CLIPPING, Target


@dataclass(frozen=True, slots=True)
class Unit:
    """One thing to quantize.

    Args:
        name: the layer's name; of an operator without a weight its node's; of a group the group's.
        op: the operator in the words of overrides (``"conv"``, ``"depthwise"``, ``"add"``, …), or ``"group"``.
        nodes: names of the nodes in the exported graph.
        activations: nodes whose values its quantizers round: what it reads, and its result.
        reads: those of ``activations`` that it reads.
        weights: state-dict names of its weights.
        params: values in its weights.
        macs: multiply-accumulates of one sample.
    """

    name: str
    op: str
    nodes: tuple[str, ...]
    activations: tuple[str, ...]
    reads: tuple[str, ...]
    weights: tuple[str, ...] = ()
    params: int = 0
    macs: int = 0


def units_of(
    graph: ExportedModel, placement: Placement, target: Target, *,
    by: str = "layer", groups: Mapping[str, Sequence[str]] | None = None,
) -> tuple[Unit, ...]:  # fmt: skip
    """Return the units of a placement, in the order of the forward.

    Args:
        graph: the exported graph that ``placement`` belongs to, before quantizers are inserted.
        placement: where quantizers go.
        target: the runtime that it was made for.
        by: ``"layer"``: each layer and each operator by itself; ``"operator"``: all of one kind together.
        groups: units of your own: name -> globs over the names of layers. What no group names is left out.

    Raises:
        PatternError: a glob of ``groups`` matches nothing.
        SlimError: another ``by``.
    """
    if by not in ("layer", "operator"):
        raise SlimError(f"units are made by 'layer' or by 'operator', not by {by!r}")
    single = _single(graph, placement, target)
    if groups is not None:
        return _grouped(single, groups)
    if by == "layer":
        return single
    kinds: dict[str, list[Unit]] = {}
    for unit in single:
        kinds.setdefault(unit.op, []).append(unit)
    return tuple(_together(kind, kind, members) for kind, members in kinds.items())


def placement_of(placement: Placement, units: Sequence[Unit]) -> Placement:
    """Return the part of ``placement`` that the given units need; scales stay those of the whole."""
    nodes = {name for unit in units for name in unit.activations}
    weights = {name for unit in units for name in unit.weights}
    return Placement(
        tuple(item for item in placement.activations if item.node in nodes),
        tuple(item for item in placement.weights if item.name in weights),
    )


def word_of(node: fx.Node) -> str:
    """Return the word by which overrides call the operator of ``node``."""
    if is_operator(node, DEPTHWISE):
        return DEPTHWISE
    return next((word for word in OPERATORS if is_operator(node, word)), op_name(node))


def end_of(node: fx.Node) -> fx.Node:
    """Return the activation that saturation does after ``node``, or ``node``."""
    users = list(node.users)
    return users[0] if len(users) == 1 and op_name(users[0]) in CLIPPING else node


def _single(graph: ExportedModel, placement: Placement, target: Target) -> tuple[Unit, ...]:
    placed = {item.node for item in placement.activations}
    owners = {layer: item.name for item in placement.weights for layer in item.layers}
    found: dict[str, list[fx.Node]] = {}
    candidates = {node.name for node in quantizable(graph, target)}
    for node in graph.graph.nodes:
        if node.name in owners:
            found.setdefault(owners[node.name], []).append(node)
        elif node.name in candidates and end_of(node).name in placed and _reads(node, placed):
            found.setdefault(node.name, []).append(node)
    units = []
    for key, nodes in found.items():
        weighted = key in owners.values()
        reads = tuple(dict.fromkeys(name for node in nodes for name in _reads(node, placed)))
        ends = [end_of(node).name for node in nodes if end_of(node).name in placed]
        weight = get_tensor(graph, key) if weighted else None
        params = weight.numel() if weight is not None else 0
        units.append(Unit(
            layer_name(nodes[0]) if weighted else key, word_of(nodes[0]), tuple(node.name for node in nodes),
            tuple(dict.fromkeys([*reads, *ends])), reads, (key,) if weighted else (), params,
            sum(_macs(node, weight) for node in nodes),
        ))  # fmt: skip
    return tuple(units)


def _reads(node: fx.Node, placed: set[str]) -> list[str]:
    return [item.name for item in node.all_input_nodes if item.name in placed]


def _macs(node: fx.Node, weight: Tensor | None) -> int:
    """Multiply-accumulates of a layer for one sample: its weight once for each place of its result."""
    value = node.meta.get("val")
    if weight is None or not isinstance(value, Tensor) or word_of(node) == "embedding":
        return 0
    sizes = [int(size) for size in value.shape[1:] if isinstance(size, int)]
    if word_of(node) == "conv_transpose":
        source = node.args[0].meta.get("val") if isinstance(node.args[0], fx.Node) else None
        sizes = [int(size) for size in source.shape[1:] if isinstance(size, int)] if source is not None else []
    places = 1
    for size in sizes[:-1] if word_of(node) == "linear" else sizes[1:]:
        places *= size
    return weight.numel() * places


def _grouped(single: Sequence[Unit], groups: Mapping[str, Sequence[str]]) -> tuple[Unit, ...]:
    names = list(dict.fromkeys(name for unit in single for name in (unit.name, *unit.nodes)))
    made = []
    for group, patterns in groups.items():
        members: list[Unit] = []
        for pattern in patterns:
            hits = [unit for unit in single if any(fnmatchcase(name, pattern) for name in (unit.name, *unit.nodes))]
            if not hits:
                raise no_layer(f"pattern '{pattern}' of group '{group}'", pattern, names)
            members += [unit for unit in hits if unit not in members]
        made.append(_together(group, "group", members))
    return tuple(made)


def _together(name: str, op: str, members: Sequence[Unit]) -> Unit:
    def joined(field: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(item for unit in members for item in getattr(unit, field)))

    return Unit(name, op, joined("nodes"), joined("activations"), joined("reads"), joined("weights"),
                sum(unit.params for unit in members), sum(unit.macs for unit in members))  # fmt: skip
