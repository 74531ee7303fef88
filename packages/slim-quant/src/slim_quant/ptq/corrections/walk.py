"""Runs the float network and its quantized simulation side by side through a graph, unit by unit.

Only values that are still needed are kept: those of a few samples at the place that was reached. So a correction sees
the inputs of each unit in both networks and the outputs of the float one, at the cost of one pass, with the units
before it corrected already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from slim_quant.graph import flat_inputs, get_tensor, owner_of, tied_names
from slim_quant.placement import WeightPlace
from slim_quant.preparation import Calibrated, CalibrationData, Prepared
from slim_quant.ptq.corrections.base import CorrectionContext
from slim_quant.ptq.corrections.units import Unit
from slim_quant.schemes import on_grid

Values = dict[fx.Node, Any]
#: state-dict names -> tensors in place of the graph's
Tensors = Mapping[str, Tensor]
#: what is done with a node's value before others see it
Change = Callable[[fx.Node, Any], Any]

#: samples of a batch that is kept and run at once
BATCH = 32
#: samples that a correction keeps unless told otherwise
SAMPLES = 512
#: bytes that the kept values may take, in MiB, unless told otherwise
MEMORY_MIB = 2048


@dataclass(slots=True)
class Chunk:
    """One batch at a unit: what it reads in either network, and what it gives in the float one.

    Args:
        floats: inputs of the unit in the float network.
        quantized: its inputs in the quantized network, everything before the unit corrected already.
        targets: its outputs in the float network.
    """

    floats: Values
    quantized: Values
    targets: Values


class Walk:
    """Walks through a calibrated graph.

    Args:
        prepared: the graph; what a correction changes in it counts for the units after.
        calibrated: scales and zero points of activations and weights.
        context: gets a note where fewer samples are kept than asked.
        data: the calibration samples.
        samples: at most so many are kept.
        memory_mib: at most so much memory is used for values; where it is too little, fewer samples are kept.
        batch: samples of a batch.
        seed: order of the samples.
    """

    def __init__(
        self, prepared: Prepared, calibrated: Calibrated, data: CalibrationData, context: CorrectionContext, *,
        samples: int = SAMPLES, memory_mib: int = MEMORY_MIB, batch: int = BATCH,
    ) -> None:  # fmt: skip
        self.prepared = prepared
        self.calibrated = calibrated
        #: bytes that the kept values may take
        self.memory = memory_mib * 2**20
        graph = prepared.graph
        self.nodes = [node for node in graph.graph.nodes if node.op not in ("get_attr", "output")]
        self.scales = {place.node: place.scale for place in prepared.placement.activations}
        self.places = {place.name: place for place in prepared.placement.weights}
        read = {str(node.target) for node in graph.graph.nodes if node.op == "get_attr"}
        #: parameters of the float network
        self.floats = {name: float_tensor(calibrated, name) for name in read}
        self._last = _last_uses(graph.graph)
        chunks = [flat_inputs(graph, batch_) for batch_ in data.subset(samples).batches(batch)]
        kept = self._fitting(chunks, self.memory)
        if kept < len(chunks):
            context.notes.append(
                f"corrected on {kept * batch} samples: more would take over {memory_mib} MiB of memory"
            )
        self._floats: list[Values] = [self._inputs(chunk) for chunk in chunks[:kept]]
        self._quantized: list[Values] = [dict(values) for values in self._floats]
        self.count = kept

    def run(self, units: Sequence[Unit]) -> Iterator[tuple[Unit, list[Chunk]]]:
        """Yield each unit with its batches; what the caller did to its weights counts when the next one is asked for.

        Args:
            units: in execution order, without common nodes.
        """
        starts = {unit.nodes[0]: unit for unit in units}
        done: set[fx.Node] = set()
        for node in self.nodes:
            if node in done:
                continue
            unit = starts.get(node)
            nodes = unit.nodes if unit is not None else (node,)
            with torch.no_grad():
                for values in self._floats:
                    self.advance(values, nodes, self.floats)
            if unit is not None:
                yield unit, self._chunks(unit)
            with torch.no_grad():
                tensors = self.rounded(nodes)
                for values in self._quantized:
                    self.advance(values, nodes, tensors, self.fake)
            done.update(nodes)
            self._free(done, nodes)

    def _chunks(self, unit: Unit) -> list[Chunk]:
        """Return the unit's batches. Its inputs are still kept in both networks, its outputs in the float one only."""
        return [
            Chunk(
                {item: floats[item] for item in unit.inputs},
                {item: quantized[item] for item in unit.inputs},
                {item: floats[item] for item in unit.outputs},
            )
            for floats, quantized in zip(self._floats, self._quantized, strict=True)
        ]

    def rounded(self, nodes: Sequence[fx.Node]) -> dict[str, Tensor]:
        """Return the weights of the layers among ``nodes``, on their grids."""
        names = {str(owner_of(source)) for node in nodes for source in node.all_input_nodes if owner_of(source)}
        return {name: self.nearest(self.places[name]) for name in names & self.places.keys()}

    def nearest(self, place: WeightPlace) -> Tensor:
        """Return the weight at ``place`` as it is in the graph, rounded to nearest."""
        scale, zero_point = self.calibrated.weights[place.name]
        weight = get_tensor(self.prepared.graph, place.name).detach()
        scheme = self.prepared.weights[place.name]
        return on_grid(weight, scale, zero_point, scheme, place.along(scheme))

    def fake(self, node: fx.Node, value: Any) -> Any:
        """Return ``value`` as the users of ``node`` see it in the quantized network."""
        name = self.scales.get(node.name)
        if name is None:
            return value
        scheme = self.prepared.activations[name]
        scale, zero_point = self.calibrated.activations[name]
        fake: Tensor = torch.fake_quantize_per_tensor_affine(value, scale, zero_point, scheme.qmin, scheme.qmax)
        return fake

    def advance(
        self, values: Values, nodes: Sequence[fx.Node], tensors: Tensors, change: Change | None = None
    ) -> Values:
        """Run ``nodes`` on ``values``, which gets the results; return it.

        Args:
            values: values of the nodes before.
            nodes: in execution order.
            tensors: tensors by name in place of the graph's.
            change: what is done with each result.
        """
        for node in nodes:
            if node.op == "placeholder":
                value = values[node]
            else:
                args, kwargs = fx.map_arg((node.args, node.kwargs), lambda item: self._value(item, values, tensors))
                value = node.target(*args, **kwargs)  # type: ignore[operator]
            values[node] = value if change is None else change(node, value)
        return values

    def _value(self, node: fx.Node, values: Values, tensors: Tensors) -> Any:
        if node.op != "get_attr":
            return values[node]
        name = str(node.target)
        return tensors[name] if name in tensors else get_tensor(self.prepared.graph, name)

    def _inputs(self, given: Sequence[Any]) -> Values:
        places = [node for node in self.nodes if node.op == "placeholder"]
        return dict(zip(places, given, strict=True))

    def _free(self, done: set[fx.Node], nodes: Sequence[fx.Node]) -> None:
        sources = {source for node in nodes for source in node.all_input_nodes} | set(nodes)
        dead = [node for node in sources if node.op != "get_attr" and self._last.get(node, set()) <= done]
        for values in (*self._floats, *self._quantized):
            for node in dead:
                values.pop(node, None)

    def _fitting(self, chunks: Sequence[Sequence[Any]], limit: int) -> int:
        """Return how many chunks fit into ``limit`` bytes, at least one, from the largest live set of the first."""
        values = self._inputs(chunks[0])
        done: set[fx.Node] = set()
        largest = 0
        with torch.no_grad():
            for node in self.nodes:
                self.advance(values, (node,), self.floats)
                done.add(node)
                largest = max(largest, _bytes(values))
                for source in [*node.all_input_nodes, node]:
                    if self._last.get(source, set()) <= done:
                        values.pop(source, None)
        return max(1, min(len(chunks), limit // max(1, 2 * largest)))


def float_tensor(calibrated: Calibrated, name: str) -> Tensor:
    """Return the parameter, buffer or constant at ``name`` as it was calibrated, before anything was rounded."""
    graph = calibrated.prepared.graph
    found = next((calibrated.reference[tied] for tied in tied_names(graph, name) if tied in calibrated.reference), None)
    return get_tensor(graph, name).detach().clone() if found is None else found


def put(prepared: Prepared, name: str, values: Tensor) -> None:
    """Change a parameter of the graph in place."""
    with torch.no_grad():
        get_tensor(prepared.graph, name).copy_(values)


def _last_uses(graph: fx.Graph) -> dict[fx.Node, set[fx.Node]]:
    """Return the users of each node, without the output: values of the outputs are not needed."""
    return {node: {user for user in node.users if user.op != "output"} for node in graph.nodes}


def _bytes(values: Values) -> int:
    storages = {}
    for value in values.values():
        for tensor in value if isinstance(value, list | tuple) else (value,):
            if isinstance(tensor, Tensor):
                storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(storages.values())
