"""``diff()``: runs float model and quantized model side by side and adds up what differs, layer by layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from slim_core.errors import DataError, ModelError
from slim_core.graph.export import ExportedModel, export_graph
from slim_core.progress import Progress, SilentProgress
from slim_core.workload import Inputs, tensors_of
from slim_quant.calibration import CalibrationData, batch_size
from slim_quant.diff.found import Diff, LayerDiff, OutputDiff, TensorDiff
from slim_quant.diff.lockstep import Layer, Lockstep, Values, Watcher
from slim_quant.diff.quantizers import Quantizer, compare_weight, watch_rounding
from slim_quant.diff.sums import Sums
from slim_quant.fold import fold_batch_norms
from slim_quant.graph import layer_name
from slim_quant.insert import is_quantized
from slim_quant.result import QuantResult
from slim_quant.units import word_of

#: samples that are run at once
TOGETHER = 8
#: operators whose channels are the last axis
_LAST = ("linear", "matmul", "embedding")


def diff(
    model: nn.Module,
    quantized: QuantResult | nn.Module,
    batches: Iterable[Any],
    *,
    example_inputs: Inputs | None = None,
    samples: int = 64,
    progress: Progress | None = None,
) -> Diff:
    """Compare a float model with its quantized form, layer by layer.

    Every layer is judged twice: in the quantized model, where it inherits the errors of what comes before, and alone,
    where it reads the float model's values through its own quantizers. Memory does not grow with the samples.

    Args:
        model: the float model that was quantized; it is not changed.
        quantized: the result of a quantization, or its model.
        batches: batches of what the forward takes.
        example_inputs: inputs to export ``model`` with; ``None``: the first sample.
        samples: how many samples to run.
        progress: where to report to.

    Raises:
        DataError: ``batches`` gives no batch.
        ModelError: ``quantized`` has no quantizers, ``model`` has, or they are not of the same model.
    """
    progress = progress or SilentProgress()
    graph = quantized.model if isinstance(quantized, QuantResult) else quantized
    if not isinstance(graph, ExportedModel) or not is_quantized(graph):
        raise ModelError("the second model is not quantized", hint="diff(float model, quantized model, batches)")
    if is_quantized(model):
        raise ModelError("the first model is quantized too", hint="diff(float model, quantized model, batches)")
    try:
        data = CalibrationData(batches, samples)
    except DataError as error:
        raise DataError("there is nothing to compare on: the data gives no batch") from error
    reference = export_graph(model, example_inputs if example_inputs is not None else _example(data))
    fold_batch_norms(reference)
    work = _Work(Lockstep(reference, graph))
    with progress.track("comparing layers", len(data)) as track:
        for batch in data.batches(TOGETHER):
            work.add(batch)
            track.advance(batch_size(batch))
    return work.found(len(data))


@dataclass(slots=True)
class _LayerSums:
    whole: Sums
    alone: Sums


@dataclass(slots=True)
class _Output:
    sums: Sums
    same: int = 0
    rows: int = 0


class _Work:
    def __init__(self, lockstep: Lockstep) -> None:
        self.lockstep = lockstep
        self.layers = {
            layer.node: _LayerSums(Sums(_axis(lockstep.nodes[layer.node])), Sums(_axis(lockstep.nodes[layer.node])))
            for layer in lockstep.layers
        }
        self.quantizers = {
            name: made for name in lockstep.rounding if (made := watch_rounding(lockstep, name)) is not None
        }
        self.weights = {
            layer.node: made for layer in lockstep.layers if (made := compare_weight(lockstep, layer)) is not None
        }
        self.outputs: list[_Output] = []
        self._watchers = self._watch()

    def add(self, batch: Any) -> None:
        first, second = (tensors_of(item) for item in self.lockstep.run(batch, self._watchers))
        pairs = [(one, two) for one, two in zip(first, second, strict=True) if one.is_floating_point()]
        if not self.outputs:
            self.outputs = [_Output(Sums(-1)) for _ in pairs]
        for output, (one, two) in zip(self.outputs, pairs, strict=True):
            output.sums.update(one, two)
            if one.dim() > 1:
                output.same += int((one.argmax(-1) == two.argmax(-1)).sum())
                output.rows += one[..., 0].numel()

    def found(self, samples: int) -> Diff:
        layers = tuple(self._layer(layer) for layer in self.lockstep.layers)
        readers: dict[str, list[str]] = {}
        for layer in self.lockstep.layers:
            for name in layer.activations:
                readers.setdefault(name, []).append(self._name(layer))
        tensors = [
            _tensor(item.name, "activation", readers.get(name, []), item) for name, item in self.quantizers.items()
        ]
        for layer in self.lockstep.layers:
            if (weight := self.weights.get(layer.node)) is not None:
                tensors.append(_tensor(weight.name, "weight", [self._name(layer)], weight))
        outputs = tuple(
            OutputDiff(f"output {number}", item.sums.sqnr_db(), item.sums.max_diff,
                       100.0 * item.same / item.rows if item.rows else 100.0)
            for number, item in enumerate(self.outputs)
        )  # fmt: skip
        notes = []
        if any(layer.rescaled for layer in layers):
            notes.append(
                "channels of some layers are scaled on purpose (equalization): these layers are compared with the "
                "float model's values, scaled alike"
            )
        return Diff(layers, tuple(tensors), outputs, samples, tuple(notes))

    def _watch(self) -> dict[str, Watcher]:
        by_node: dict[str, list[Watcher]] = {}
        for layer in self.lockstep.layers:
            by_node.setdefault(layer.result, []).append(self._layer_watcher(self.layers[layer.node]))
        for name, item in self.quantizers.items():
            by_node.setdefault(name, []).append(self._quantizer_watcher(item))
        return {name: _all(watchers) for name, watchers in by_node.items()}

    @staticmethod
    def _layer_watcher(sums: _LayerSums) -> Watcher:
        def watch(values: Values) -> None:
            sums.whole.update(values.reference, values.quantized)
            if values.alone is not None:
                sums.alone.update(values.reference, values.alone)

        return watch

    @staticmethod
    def _quantizer_watcher(item: Quantizer) -> Watcher:
        def watch(values: Values) -> None:
            item.counts.update(values.reference)
            if values.rounded is not None:
                item.sums.update(values.reference, values.rounded)

        return watch

    def _name(self, layer: Layer) -> str:
        node = self.lockstep.known[layer.node]
        return layer_name(node) if layer.weight is not None else layer.node

    def _layer(self, layer: Layer) -> LayerDiff:
        sums, node = self.layers[layer.node], self.lockstep.known[layer.node]
        rescaled = sums.whole.rescaled()
        worst = None if rescaled else sums.whole.worst()
        weight = self.weights.get(layer.node)
        bits = [self.quantizers[name].bits for name in layer.activations if name in self.quantizers]
        return LayerDiff(
            name=self._name(layer), node=layer.node, op=word_of(node),
            weight_bits=None if weight is None else weight.bits,
            activation_bits=min(bits, default=None),
            sqnr_db=sums.whole.sqnr_of_shape() if rescaled else sums.whole.sqnr_db(),
            alone_db=None if rescaled else sums.alone.sqnr_db(),
            weight_db=None if rescaled or weight is None else weight.sums.sqnr_db(),
            worst_channel=worst[0] if worst else None, worst_channel_db=worst[1] if worst else None,
            max_diff=sums.whole.max_diff, rescaled=rescaled,
        )  # fmt: skip


def _tensor(name: str, kind: str, readers: Sequence[str], item: Quantizer) -> TensorDiff:
    found = item.counts.to_json()
    low, high = found["threshold_low"], found["threshold_high"]
    reach = min(found["high"], high) - max(found["low"], low)
    return TensorDiff(
        name=name, kind=kind, readers=tuple(dict.fromkeys(readers)), bits=item.bits, low=found["low"],
        high=found["high"], threshold_low=low, threshold_high=high, clipped=found["clipped"],
        used=max(reach, 0.0) / (high - low) if high > low else 0.0, sqnr_db=item.sums.sqnr_db(),
        edges=tuple(found["edges"]), counts=tuple(found["counts"]),
    )  # fmt: skip


def _all(watchers: Sequence[Watcher]) -> Watcher:
    def watch(values: Values) -> None:
        for watcher in watchers:
            watcher(values)

    return watch


def _axis(node: fx.Node) -> int:
    """Return the axis of a layer's channels."""
    return -1 if word_of(node) in _LAST else 1


def _example(data: CalibrationData) -> Inputs:
    first = next(iter(data.subset(1)))
    return first if isinstance(first, Mapping | tuple) else (first,)
