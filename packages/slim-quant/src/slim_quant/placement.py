"""Where quantizers go: which activations, with which shared scales, and which weights. Changes no graph.

A value that an integer operator reads or writes is quantized. An activation that the runtime does by saturation (ReLU)
counts as part of the operator before it. Operators that only move values, and concatenations, share one scale between
input and output, so that nothing is quantized twice on different grids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, fx

from slim_core.graph.export import ExportedModel
from slim_quant.graph import is_float, layer_name, op_name, owner_of, rank
from slim_quant.overrides import Override, matched, skipping
from slim_quant.schemes import Scheme
from slim_quant.targets import CLIPPING, HARD_SIGMOID, PASSING, TRANSPOSED, Target


@dataclass(frozen=True, slots=True)
class ActivationPlace:
    """A quantized activation: the node, and the node whose scale it uses (itself, or another of its group)."""

    node: str
    scale: str


@dataclass(frozen=True, slots=True)
class WeightPlace:
    """A quantized weight.

    Args:
        name: the state-dict name that the graph reads.
        axis: the axis of the output channels.
        layers: names of the nodes that use it.
    """

    name: str
    axis: int
    layers: tuple[str, ...]

    def along(self, scheme: Scheme) -> int:
        """Return the axis that scales lie along: that of the output channels, or, per group, that of the inputs."""
        return 1 if scheme.granularity == "per_group" else self.axis


@dataclass(frozen=True, slots=True)
class Placement:
    """All quantizers of a model, and what stays in float and why."""

    activations: tuple[ActivationPlace, ...]
    weights: tuple[WeightPlace, ...]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON; an activation with a scale of its own is its name alone."""
        return {
            "activations": [
                place.node if place.node == place.scale else [place.node, place.scale] for place in self.activations
            ],
            "weights": [[place.name, place.axis, list(place.layers)] for place in self.weights],
        }


def place(
    model: ExportedModel, target: Target, *, skip: Sequence[str] = (), overrides: Sequence[Override] = ()
) -> Placement:
    """Decide where ``target`` needs quantizers.

    Args:
        model: the exported model, batch norms folded.
        target: the runtime.
        skip: globs over layer names (module paths of weights), or ``op:`` and an operator (``"op:add"``); these layers
            stay in float.
        overrides: of these only ``skip`` counts here.

    Raises:
        PatternError: a pattern matches no layer.
    """
    nodes = quantizable(model, target)
    skipped = {node for _, hits in matched([skipping(item) for item in skip], nodes) for node in hits}
    skipped |= {node for item, hits in matched(overrides, nodes) if item.skip for node in hits}
    return _Placer(model, target, skipped).place()


def quantizable(model: ExportedModel, target: Target) -> list[fx.Node]:
    """Return the nodes that ``target`` may quantize: those that patterns can mean."""
    words = target.weighted | TRANSPOSED | target.concat | target.binary | target.matmul | target.pools
    words |= target.hard | target.unary
    return [node for node in model.graph.nodes if op_name(node) in words]


class _Placer:
    def __init__(self, model: ExportedModel, target: Target, skipped: set[fx.Node]) -> None:
        self.nodes: list[fx.Node] = list(model.graph.nodes)
        self.target = target
        self.wanted: set[fx.Node] = set()
        self.parents: dict[fx.Node, fx.Node] = {}
        self.weights: dict[str, list[fx.Node]] = {}
        self.notes: list[str] = []
        self.skipped = skipped
        #: on the grid of what they read, so that a quantizer of their own would do nothing
        self.exact: set[fx.Node] = set()

    def place(self) -> Placement:
        for node in self.nodes:
            name = op_name(node)
            if node in self.skipped:
                self.notes.append(f"{layer_name(node)} stays in float: it is skipped")
            elif name in self.target.weighted:
                self._weighted(node, name)
            elif name in self.target.concat:
                self._concat(node)
            elif name in self.target.binary and self.target.fuses_sums:
                self._fused_sum(node)
            elif name in self.target.binary | self.target.matmul:
                self._product_or_sum(node)
            elif (name in self.target.unary and self._from_integers(node.args[0])) or (
                name in self.target.pools and rank(node.args[0]) >= 3 and _reduces_space(node)
            ):
                self._read(node.args[0])
                self._write(node)
            elif name in self.target.hard and self._from_integers(node.args[0]):
                self._read(node.args[0])
                (self.exact if name == HARD_SIGMOID else self.wanted).add(node)
            elif name in self._all_weighted():
                self.notes.append(f"{layer_name(node)} stays in float: {self.target.name} has no integer {name}")
        self._through_passing()
        order = {node: position for position, node in enumerate(self.nodes)}
        found = sorted(self.wanted, key=order.__getitem__)
        roots: dict[fx.Node, str] = {}
        for node in found:
            roots.setdefault(self._root(node), node.name)  # the first of a group in execution order
        activations = tuple(ActivationPlace(node.name, roots[self._root(node)]) for node in found)
        weights = tuple(
            WeightPlace(name, 0 if op_name(users[0]) not in TRANSPOSED else 1, tuple(user.name for user in users))
            for name, users in self.weights.items()
        )
        return Placement(activations, weights, tuple(self.notes))

    def _weighted(self, node: fx.Node, name: str) -> None:
        layer = layer_name(node)
        weight = owner_of(node.args[1])
        if weight is None or not is_float(node.args[0]) or not is_float(node):
            self.notes.append(f"{layer} stays in float: its weight is computed, or it does not work on float32")
        else:
            self.weights.setdefault(weight, []).append(node)
            self._read(node.args[0])
            last = _fused_end(node)
            if self.target.outputs and not (name in self.target.float_results and _is_output(last)):
                self.wanted.add(last)

    def _product_or_sum(self, node: fx.Node) -> None:
        if not all(is_float(item) and owner_of(item) is None and rank(item) for item in node.args[:2]):
            return  # a scalar or a constant: left to float
        if not any(self._from_integers(item) or self._is_weighted(item) for item in node.args[:2]):
            return  # both sides are computed in float: integers would only cost
        for item in node.args[:2]:
            self._read(item)
        self._write(node)

    def _fused_sum(self, node: fx.Node) -> None:
        """Quantize what the last weighted operator of a sum adds to its result, which stays float until the sum."""
        sides = [item for item in node.args[:2] if is_float(item) and owner_of(item) is None and rank(item)]
        layers = [item for item in sides if self._is_weighted(item)]
        if len(sides) < 2 or not (layers or any(self._from_integers(item) for item in sides)):
            return
        order = {item: position for position, item in enumerate(self.nodes)}
        free = [item for item in layers if len(cast(fx.Node, item).users) == 1]
        fused = max(free, key=lambda item: order[cast(fx.Node, item)]) if free else None
        for item in sides:
            if item is not fused:
                self._read(item)

    def _is_weighted(self, node: Any) -> bool:
        weight = owner_of(node.args[1]) if isinstance(node, fx.Node) and op_name(node) in self.target.weighted else None
        return weight is not None and node in self.weights.get(weight, [])

    def _concat(self, node: fx.Node) -> None:
        parts = node.args[0]
        if not isinstance(parts, list | tuple) or not all(is_float(part) and owner_of(part) is None for part in parts):
            return
        if not all(self._from_integers(part) or self._is_weighted(_before_clipping(part)) for part in parts):
            return
        clipped = [_ends_clipped(part) for part in parts]
        for part, ends in zip(parts, clipped, strict=True):
            self._read(part)
            if all(clipped) or not ends:  # a ReLU next to signed values needs a zero point of its own to be fused
                self._join(cast(fx.Node, part), node)
        self.wanted.add(node)

    def _from_integers(self, node: Any) -> bool:
        """Tell whether the value is quantized already, looking through what only moves values."""
        seen = node
        while isinstance(seen, fx.Node) and seen not in self.wanted and (op_name(seen) in PASSING | CLIPPING):
            seen = seen.args[0]
        return isinstance(seen, fx.Node) and (seen in self.wanted | self.exact or _fused_end(seen) in self.wanted)

    def _read(self, node: Any) -> None:
        if isinstance(node, fx.Node) and is_float(node) and owner_of(node) is None and node not in self.exact:
            self.wanted.add(node)

    def _write(self, node: fx.Node) -> None:
        if self.target.outputs:
            self.wanted.add(_fused_end(node))

    def _through_passing(self) -> None:
        """Let operators that only move values use one scale for input and output, where both sides are quantized."""
        for node in reversed(self.nodes):  # a wanted result wants its source
            if node in self.wanted and op_name(node) in PASSING:
                source = _source(node)
                if source is not None and source not in self.exact:
                    self.wanted.add(source)
                    self._join(source, node)

    def _join(self, first: fx.Node, second: fx.Node) -> None:
        self.parents[self._root(second)] = self._root(first)

    def _root(self, node: fx.Node) -> fx.Node:
        while self.parents.get(node, node) is not node:
            node = self.parents[node]
        return node

    def _all_weighted(self) -> frozenset[str]:
        return self.target.weighted | TRANSPOSED


def _fused_end(node: fx.Node) -> fx.Node:
    """Return the activation that is done by saturation after ``node``, or ``node``."""
    users = list(node.users)
    return users[0] if len(users) == 1 and op_name(users[0]) in CLIPPING else node


def _before_clipping(node: Any) -> Any:
    """Return what a saturating activation reads, or ``node``."""
    return node.args[0] if isinstance(node, fx.Node) and op_name(node) in CLIPPING else node


def _source(node: fx.Node) -> fx.Node | None:
    """Return the tensor whose values ``node`` moves; through the tuple of a split."""
    source = node.args[0]
    if isinstance(source, fx.Node) and not isinstance(source.meta.get("val"), Tensor):
        source = source.args[0] if op_name(source) in PASSING else None
    return source if isinstance(source, fx.Node) and is_float(source) and owner_of(source) is None else None


def _ends_clipped(node: Any) -> bool:
    """Tell whether the value comes from a saturating activation, looking through what only moves values."""
    while isinstance(node, fx.Node) and op_name(node) in PASSING:
        node = node.args[0]
    return isinstance(node, fx.Node) and op_name(node) in CLIPPING


def _is_output(node: fx.Node) -> bool:
    return all(user.op == "output" for user in node.users)


def _reduces_space(node: fx.Node) -> bool:
    """Average pooling, or a mean over the trailing dimensions."""
    if op_name(node) != "aten.mean.dim":
        return True
    source, axes = node.args[0], node.args[1]
    size = rank(source)
    return isinstance(axes, list | tuple) and {int(axis) % size for axis in axes} == set(range(2, size))  # type: ignore[arg-type]
