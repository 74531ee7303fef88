"""Runs the float graph and the quantized one side by side, node for node, and frees each value after its last reader.

Beside the two there are two more lines of values. ``rounded``: what the fake-quantizers make of the *float* model's
values. ``alone``: what each layer makes of those, with its quantized weight, and its own result rounded; it tells a
layer's own error from what it inherits. Memory is that of one batch, whatever the number of batches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, fx

from slim_core.errors import ModelError
from slim_core.graph.export import ExportedModel
from slim_quant.graph import flat_inputs, get_tensor, op_name, owner_of
from slim_quant.targets import CLIPPING, PASSING

Line = Literal["float", "quantized", "rounded", "alone"]
Key = tuple[Line, str]


@dataclass(frozen=True, slots=True)
class Values:
    """The values of one node for one batch.

    Args:
        reference: in the float model.
        quantized: in the quantized model.
        rounded: of a fake-quantizer: the float model's value, rounded.
        alone: of a layer's result: computed from the float model's values.
    """

    reference: Tensor
    quantized: Tensor
    rounded: Tensor | None
    alone: Tensor | None


@dataclass(frozen=True, slots=True)
class Layer:
    """A node of the float graph that reads a fake-quantizer in the quantized one.

    Args:
        node: its name.
        end: the node that saturates its result, or ``node``.
        result: the fake-quantizer of the result, or ``end`` where there is none.
        activations: the fake-quantizers of activations that it reads.
        weight: the last node of its weight's fake-quantizer, or ``None``.
    """

    node: str
    end: str
    result: str
    activations: tuple[str, ...]
    weight: str | None


Watcher = Callable[[Values], None]


class Lockstep:
    """Two graphs that share the names of their nodes, one of which has fake-quantizers.

    Args:
        reference: the float graph, batch norms folded.
        quantized: the quantized graph.

    Raises:
        ModelError: the graphs are not of the same model.
    """

    def __init__(self, reference: ExportedModel, quantized: ExportedModel) -> None:
        self.reference, self.quantized = reference, quantized
        self.known = {node.name: node for node in reference.graph.nodes}
        self.nodes = {node.name: node for node in quantized.graph.nodes}
        _require_same(reference, quantized)
        self.fixed = _fixed(quantized)
        self.layers = tuple(self._layers())
        self.rounding = tuple(
            name for name, node in self.nodes.items() if self._inserted(node) and name not in self.fixed
        )
        self._steps = self._schedule()
        self._made = self._extra()
        self._last = self._last_reads()

    def run(self, batch: Any, watchers: Mapping[str, Watcher]) -> tuple[Any, Any]:
        """Run one batch, call the watchers of nodes of the quantized graph, and return both models' outputs."""
        values: dict[Key, Any] = {}
        outputs: dict[Line, Any] = {}
        for line in ("float", "quantized"):
            inputs = [node.name for node in self._model(line).graph.nodes if node.op == "placeholder"]
            for name, value in zip(inputs, flat_inputs(self._model(line), batch), strict=True):
                values[line, name] = value
        with torch.no_grad():
            for number, (line, node) in enumerate(self._steps):
                if node.op == "output":
                    found = fx.node.map_arg(node.args[0], lambda item, line=line: self._value(values, line, item))  # type: ignore[misc]
                    outputs[line] = self._model(line).graph.process_outputs(found)
                elif node.op == "call_function":
                    self._compute(values, line, node)
                    for extra in self._made.get(node.name, ()) if line == "quantized" else ():
                        self._compute(values, extra, node)
                if line == "quantized" and node.name in watchers:
                    watchers[node.name](self._watched(values, node))
                for key in self._last[number]:
                    values.pop(key, None)
        return outputs["float"], outputs["quantized"]

    def source(self, node: fx.Node) -> fx.Node:
        """Return the node of the float graph whose value ``node`` of the quantized one rounds, or its namesake."""
        while node.name not in self.known:
            node = node.all_input_nodes[0]
        found: fx.Node = self.known[node.name]
        return found

    def _model(self, line: Line) -> ExportedModel:
        return self.reference if line == "float" else self.quantized

    def _inserted(self, node: fx.Node) -> bool:
        return node.op == "call_function" and node.name not in self.known

    def _watched(self, values: dict[Key, Any], node: fx.Node) -> Values:
        source = self.source(node)
        return Values(self._value(values, "float", source), values["quantized", node.name],
                      values.get(("rounded", node.name)), values.get(("alone", node.name)))  # fmt: skip

    def _compute(self, values: dict[Key, Any], line: Line, node: fx.Node) -> None:
        def find(item: fx.Node) -> Any:
            if item.op == "get_attr":
                return get_tensor(self._model(line), str(item.target))
            return values[self._key(line, node, item)]

        args, kwargs = fx.node.map_arg((node.args, node.kwargs), find)
        values[line, node.name] = cast(Callable[..., Any], node.target)(*args, **cast(dict[str, Any], kwargs))

    def _value(self, values: dict[Key, Any], line: Line, node: fx.Node) -> Any:
        if node.op == "get_attr":
            return get_tensor(self._model(line), str(node.target))
        return values[line, node.name]

    def _key(self, line: Line, reader: fx.Node, node: fx.Node) -> Key:
        """Return where the value of ``node`` is that ``reader`` reads when it is computed in ``line``."""
        if line in ("float", "quantized"):
            return line, node.name
        if node.name in self.fixed:
            return "quantized", node.name
        if line == "alone" and self._chain.get(reader.name) == node.name:
            return "alone", node.name
        return ("rounded" if self._inserted(node) else "float"), node.name

    def _layers(self) -> list[Layer]:
        found = []
        for node in self.nodes.values():
            read = [item for item in node.all_input_nodes if self._inserted(item)]
            if node.name not in self.known or not read or node.op != "call_function":
                continue
            if op_name(node) in PASSING | CLIPPING:
                continue
            users = list(node.users)
            end = users[0] if len(users) == 1 and op_name(users[0]) in CLIPPING else node
            results = [user for user in end.users if self._inserted(user) and user.all_input_nodes[0] is end]
            found.append(Layer(
                node.name, end.name, (results[0] if len(results) == 1 else end).name,
                tuple(item.name for item in read if item.name not in self.fixed),
                next((item.name for item in read if item.name in self.fixed), None),
            ))  # fmt: skip
        return found

    def _schedule(self) -> list[tuple[Line, fx.Node]]:
        """Return all steps: each node of the quantized graph after its namesake of the float one."""
        ours = list(self.reference.graph.nodes)
        position = {node.name: number for number, node in enumerate(ours)}
        steps: list[tuple[Line, fx.Node]] = []
        done = 0
        for node in self.quantized.graph.nodes:
            if node.op == "get_attr":
                continue
            upto = position.get(node.name, -1) + 1
            steps += [("float", item) for item in ours[done:upto] if item.op != "get_attr"]
            done = max(done, upto)
            steps.append(("quantized", node))
        steps += [("float", item) for item in ours[done:] if item.op != "get_attr"]
        for layer in self.layers:
            theirs, own = self.nodes[layer.node], self.known[layer.node]
            if op_name(theirs) != op_name(own):
                raise _other(
                    f"'{layer.node}' is {op_name(own)} in the float model and {op_name(theirs)} in the quantized one"
                )
        return steps

    def _extra(self) -> dict[str, tuple[Line, ...]]:
        """Return the further lines that a node of the quantized graph is computed in."""
        self._chain: dict[str, str] = {}  # what is computed from the layer's own result, and not from the float model's
        made: dict[str, tuple[Line, ...]] = dict.fromkeys(self.rounding, ("rounded",))
        for layer in self.layers:
            chain = tuple(dict.fromkeys((layer.node, layer.end, layer.result)))
            self._chain.update(zip(chain[1:], chain[:-1], strict=True))
            for name in chain:
                made[name] = tuple(dict.fromkeys((*made.get(name, ()), "alone")))
        return made

    def _last_reads(self) -> list[list[Key]]:
        """Return what may be freed after each step."""
        last: dict[Key, int] = {}
        for number, (line, node) in enumerate(self._steps):
            lines = (line, *self._made.get(node.name, ())) if line == "quantized" else (line,)
            for each in lines:
                last[each, node.name] = number
                for item in node.all_input_nodes:
                    if item.op != "get_attr":
                        last[self._key(each, node, item)] = number
            if line == "quantized" and node.name not in self.fixed:
                last["float", self.source(node).name] = max(number, last.get(("float", self.source(node).name), 0))
        freed: list[list[Key]] = [[] for _ in self._steps]
        for key, number in last.items():
            freed[number].append(key)
        return freed


def _require_same(reference: ExportedModel, quantized: ExportedModel) -> None:
    """Compare what the graphs read of their state: a quantized graph may read more, but nothing else of that name.

    Raises:
        ModelError: something is missing, or has another shape.
    """
    ours, theirs = ({owner for node in graph.graph.nodes if (owner := owner_of(node)) is not None}
                    for graph in (reference, quantized))  # fmt: skip
    for name in sorted(ours):
        if name not in theirs:
            raise _other(f"the quantized one has no '{name}'")
        own, other = (tuple(get_tensor(graph, name).shape) for graph in (reference, quantized))
        if own != other:
            raise _other(f"'{name}' is {own} in the float model and {other} in the quantized one")


def _other(what: str) -> ModelError:
    return ModelError(
        f"the models are not the same: {what}",
        hint="compare a quantized model with the float model that it was made of",
    )


def _fixed(graph: ExportedModel) -> frozenset[str]:
    """Return the nodes whose value depends on no input: quantized weights."""
    found: set[str] = set()
    for node in graph.graph.nodes:
        inputs = node.all_input_nodes
        if node.op == "call_function" and inputs and all(
            item.op == "get_attr" or item.name in found for item in inputs
        ):  # fmt: skip
            found.add(node.name)
    return frozenset(found)
