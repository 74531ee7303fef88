"""Runs a graph with some of its quantizers on, from where they first matter: what comes before is kept from one run.

What a choice of quantizers changes is found once (:class:`Change`): the nodes behind the first difference. Only those
are computed; everything else they read is a value of the base run. A :class:`Lane` holds these values for one batch and
moves forward through the graph with the choices, so that the base run is made once, however many choices there are. The
operators are the same, on the same values and in batches of the same size: results are equal to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, fx

from slim_core.graph.export import ExportedModel
from slim_core.workload import tensors_of
from slim_quant.fold import FOLDABLE
from slim_quant.graph import argument, flat_inputs, get_tensor, op_name, owner_of, weight_position
from slim_quant.sensitivity.switches import Switches


class Program:
    """A graph with a base choice of quantizers.

    Args:
        graph: the float graph, batch norms folded; it is not changed.
        base: the quantizers that are on in the base run.
    """

    def __init__(self, graph: ExportedModel, base: Switches) -> None:
        self.graph, self.base = graph, base
        self.nodes: list[fx.Node] = [node for node in graph.graph.nodes if node.op not in ("get_attr", "placeholder")]
        self.inputs: list[fx.Node] = [node for node in graph.graph.nodes if node.op == "placeholder"]
        self.position = {node: number for number, node in enumerate(self.nodes)}
        self.position.update(dict.fromkeys(self.inputs, -1))
        #: some operator changes a tensor in place: then nothing of a base run can be kept
        self.in_place = any(_writes(node) for node in self.nodes)

    def compute(self, node: fx.Node, find: Callable[[fx.Node], Any], chosen: Switches) -> Any:
        """Return what ``node`` computes, before it is rounded."""
        weight, bias = chosen.weights.get(node.name), chosen.biases.get(node.name)
        position = FOLDABLE.get(op_name(node), (2, 0))[0]

        def value(item: fx.Node) -> Any:
            if item.op != "get_attr":
                return find(item)
            if weight is not None and item is node.args[weight_position(node)]:
                return weight
            if bias is not None and item is argument(node, position):
                return bias
            return get_tensor(self.graph, str(owner_of(item)))

        args, kwargs = fx.node.map_arg((node.args, node.kwargs), value)
        if node.op == "output":
            return self.graph.graph.process_outputs(args[0])
        return cast(Callable[..., Any], node.target)(*args, **cast(dict[str, Any], kwargs))

    def change(self, chosen: Switches) -> Change:
        """Return what ``chosen`` makes different."""
        return Change(self, chosen)


class Change:
    """The nodes that a choice of quantizers makes different from the base run.

    Args:
        program: the graph and its base.
        chosen: the quantizers that are on.
    """

    def __init__(self, program: Program, chosen: Switches) -> None:
        self.chosen = chosen
        differs = chosen.changed(program.base)
        dirty: set[fx.Node] = set()
        self.steps: list[fx.Node] = []
        #: values of the base run that are read, and whether they are wanted before rounding
        self.reads: set[fx.Node] = set()
        #: nodes that compute what they computed in the base run, and only round differently
        self.rounds: set[fx.Node] = set()
        for node in [*program.inputs, *program.nodes]:
            sources = [item for item in node.all_input_nodes if item.op != "get_attr"]
            inherits = any(item in dirty for item in sources)
            if not inherits and node.name not in differs and not program.in_place:
                continue
            dirty.add(node)
            self.steps.append(node)
            if node.op == "placeholder":
                continue
            same = not inherits and chosen.same(program.base, node.name)
            if same and node.name not in program.base.activations and not program.in_place:
                self.rounds.add(node)
                self.reads.add(node)
            else:
                self.reads.update(item for item in sources if item not in dirty)
        self.whole = bool(self.steps) and self.steps[-1].op == "output"
        self.first = min((program.position[node] for node in self.steps), default=len(program.nodes))
        self.last_read = max((program.position[node] for node in self.reads), default=-1)
        self._frees = _frees(self.steps)

    def run(self, program: Program, lane: Lane) -> Any:
        """Return the model's output; ``lane`` has the values of :attr:`reads`."""
        values: dict[fx.Node, Any] = {}

        def find(item: fx.Node) -> Any:
            return values[item] if item in values else lane.values[item]

        made: Any = None
        for number, node in enumerate(self.steps):
            if node.op == "placeholder":
                made = lane.input(node)
            else:
                made = lane.values[node] if node in self.rounds else program.compute(node, find, self.chosen)
            rounding = self.chosen.activations.get(node.name)
            values[node] = made if rounding is None else rounding(made)
            for item in self._frees[number]:
                values.pop(item, None)
        return made


class Lane:
    """The base run of one batch, as far as it has come.

    Args:
        program: the graph and its base.
        batch: what the model's forward takes.
        wanted: for each node the number of the last change that reads its value.
    """

    def __init__(self, program: Program, batch: Any, wanted: Mapping[fx.Node, int]) -> None:
        self._program, self._batch, self._wanted = program, batch, wanted
        self._last = {item: number for number, node in enumerate(program.nodes) for item in node.all_input_nodes}
        self.values: dict[fx.Node, Any] = {}
        self._done = 0
        self.rewind()

    def rewind(self) -> None:
        """Forget everything but the batch."""
        self._done = 0
        self.values = {}
        for node in self._program.inputs:
            self._put(node, self.input(node))

    def input(self, node: fx.Node) -> Any:
        """Return an input, before it is rounded."""
        value = flat_inputs(self._program.graph, self._batch)[self._program.inputs.index(node)]
        return value.clone() if self._program.in_place and isinstance(value, Tensor) else value

    def advance(self, position: int, now: int) -> None:
        """Run up to and including the node at ``position``; ``now`` is the change that is served."""
        while self._done <= position:
            node = self._program.nodes[self._done]
            made = self._program.compute(node, self.values.__getitem__, self._program.base)
            self._done += 1
            self._put(node, made)
            for item in node.all_input_nodes:
                self._release(item, now)

    def release(self, now: int) -> None:
        """Forget what only changes before ``now`` read."""
        for item in list(self.values):
            self._release(item, now)

    def output(self, now: int = 0) -> Any:
        """Run to the end and return the base run's output, as the model gives it."""
        last = len(self._program.nodes) - 1
        self.advance(last, now)
        return self.values[self._program.nodes[last]]

    @property
    def bytes(self) -> int:
        """Memory that is held, but for the batch itself."""
        held = (value for node, value in self.values.items() if node.op != "placeholder")
        return sum(tensor.nbytes for tensor in tensors_of(list(held)))

    def _put(self, node: fx.Node, value: Any) -> None:
        rounding = self._program.base.activations.get(node.name)
        self.values[node] = value if rounding is None else rounding(value)

    def _release(self, item: fx.Node, now: int) -> None:
        if self._last.get(item, -1) < self._done and self._wanted.get(item, -1) < now:
            self.values.pop(item, None)


def _frees(steps: list[fx.Node]) -> list[list[fx.Node]]:
    last: dict[fx.Node, int] = {}
    for number, node in enumerate(steps):
        for item in node.all_input_nodes:
            last[item] = number
    found: list[list[fx.Node]] = [[] for _ in steps]
    for item, number in last.items():
        found[number].append(item)
    return found


class Sweep:
    """All batches of an evaluation, for a row of changes in the order in which they begin.

    Args:
        program: the graph and its base.
        batches: what the model's forward takes.
        changes: all changes that will be asked for, by number.
        memory: bytes of values that may be kept; the batches beyond are run from the start for each change.
    """

    def __init__(self, program: Program, batches: Iterable[Any], changes: Mapping[int, Change], *, memory: int) -> None:
        self._program, self._changes, self._memory = program, changes, memory
        wanted: dict[fx.Node, int] = {}
        for number, change in changes.items():
            for item in change.reads:
                wanted[item] = max(wanted.get(item, -1), number)
        self._lanes = [Lane(program, batch, wanted) for batch in batches]
        self._cold: set[int] = set()

    def outputs(self, number: int) -> Iterable[Any]:
        """Yield the output of each batch under change ``number``. Numbers must not fall."""
        change = self._changes[number]
        held = 0
        with torch.no_grad():
            for place, lane in enumerate(self._lanes):
                lane.advance(change.last_read, number)
                yield change.run(self._program, lane) if change.whole else lane.output(number)
                lane.release(number + 1)
                if place in self._cold or held + lane.bytes > self._memory:
                    self._cold.add(place)
                    lane.rewind()
                held += lane.bytes


def _writes(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(
        item.alias_info is not None and item.alias_info.is_write for item in schema.arguments
    )


def float_outputs(outputs: Any) -> list[Tensor]:
    """Return the floating-point tensors of a model's output."""
    return [tensor.detach() for tensor in tensors_of(outputs) if tensor.is_floating_point()]
