"""Post-training quantization in its steps: prepare a graph, calibrate its scales, finish by inserting the quantizers.

Passes that correct weights work between the steps, on ``Prepared.graph``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from slim_core.errors import DataError, ModelError, SlimError
from slim_core.graph.export import ExportedModel, export_graph
from slim_core.named import Named
from slim_core.progress import Progress, SilentProgress
from slim_core.workload import Inputs
from slim_quant.biases import hold_bias, round_biases
from slim_quant.calibration import CalibrationData, batch_size
from slim_quant.fold import fold_batch_norms
from slim_quant.graph import get_tensor, op_name, tap
from slim_quant.insert import insert, is_quantized
from slim_quant.layerwise import Comparison, Outputs, compare_layers
from slim_quant.observers import Observer, make_observer, weight_range
from slim_quant.observers.reducing import reduce_sum
from slim_quant.overrides import Override, matched, skipping
from slim_quant.placement import Placement, place, quantizable
from slim_quant.record import describe
from slim_quant.result import QuantReport, QuantResult
from slim_quant.schemes import ACTIVATION, WEIGHT, Scheme, qparams, through
from slim_quant.targets import HARD_END, PASSING, Target, get_target

__all__ = [
    "COMPARED",
    "Calibrated",
    "CalibrationData",
    "Prepared",
    "calibrate",
    "finish",
    "prepare",
    "weight_qparams",
]

#: Samples on which float and quantized activations are compared layer by layer.
COMPARED = 16

Taps = Mapping[str, Callable[[Tensor], None]]


@dataclass(eq=False)
class Prepared:
    """A model on its way to integers.

    Args:
        graph: a private copy, batch norms folded; passes edit its weights in place.
        placement: where quantizers go.
        weights: schemes by state-dict name of the weight, overrides included.
        activations: schemes by name of the scale's node, overrides included.
        target: the runtime.
        notes: what stayed in float or was changed, with the reason.
        edits: structural edits that a checkpoint must do again; see :mod:`slim_quant.edits`.
        activation: the scheme that activations have without overrides.
        observers: by name of the scale's node, where an override asks for another observer.
        weight_observers: by name of the weight, where an override asks for another observer.
    """

    graph: ExportedModel
    placement: Placement
    weights: dict[str, Scheme]
    activations: dict[str, Scheme]
    target: Target
    notes: list[str] = field(default_factory=list)
    edits: list[dict[str, Any]] = field(default_factory=list)
    activation: Scheme = ACTIVATION
    observers: dict[str, Named] = field(default_factory=dict)
    weight_observers: dict[str, str] = field(default_factory=dict)

    @property
    def nodes(self) -> dict[str, fx.Node]:
        """The graph's nodes by name."""
        return {node.name: node for node in self.graph.graph.nodes}

    def scale_of(self, node: str) -> str | None:
        """Return the name of the node whose scale ``node`` has, or ``None`` where it is not quantized."""
        return next((item.scale for item in self.placement.activations if item.node == node), None)


@dataclass(eq=False)
class Calibrated:
    """A prepared model with scales.

    Args:
        prepared: the model.
        activations: scale and zero point by name of the scale's node.
        weights: scale and zero point by name of the weight.
        samples: how many samples were seen.
        data: the samples.
        reference: the parameters as they were calibrated, before rounding: what layers are compared with.
    """

    prepared: Prepared
    activations: dict[str, tuple[Tensor, Tensor]]
    weights: dict[str, tuple[Tensor, Tensor]]
    samples: int
    data: CalibrationData
    reference: dict[str, Tensor] = field(repr=False, default_factory=dict)


def prepare(
    model: torch.nn.Module,
    example_inputs: Inputs,
    *,
    target: str | Target = "onnxruntime",
    weight: Scheme = WEIGHT,
    activation: Scheme = ACTIVATION,
    overrides: Sequence[Override] = (),
    skip: Sequence[str] = (),
) -> Prepared:
    """Export ``model``, fold batch norms, and decide what is quantized, and how.

    Args:
        model: any model that ``torch.export`` accepts; it is not changed.
        example_inputs: inputs to export the model with.
        target: runtime that the placement is for.
        weight: scheme of the weights.
        activation: scheme of the activations; one scale per tensor.
        overrides: other settings for single layers.
        skip: globs over layer names, or ``"op:add"``, that stay in float.

    Raises:
        ModelError: the model cannot be exported, or is quantized already.
        PatternError: a pattern matches nothing.
        UnknownNameError: an unknown target.
        SlimError: activations are asked for per channel, or a weight that is no matrix per group.
    """
    if activation.granularity != "per_tensor":
        raise SlimError(
            f"activations cannot be quantized {activation.granularity.replace('_', ' ')}",
            hint='use Scheme(granularity="per_tensor") for activations',
        )
    chosen = get_target(target)
    if is_quantized(model):
        raise ModelError("the model is quantized already", hint="quantize the float model")
    graph = export_graph(model, example_inputs)
    notes = list(fold_batch_norms(graph))
    placement = place(graph, chosen, skip=skip, overrides=overrides)
    notes.extend(placement.notes)
    prepared = Prepared(
        graph, placement, {item.name: weight for item in placement.weights},
        {item.scale: activation for item in placement.activations}, chosen, notes, activation=activation,
    )  # fmt: skip
    _override(prepared, [*map(skipping, skip), *overrides])
    for name, scheme in prepared.weights.items():
        if scheme.granularity == "per_group" and get_tensor(graph, name).dim() != 2:
            raise SlimError(
                f"the weight {name} cannot be quantized per group: it is no matrix",
                hint="give linear layers a scheme per group by an override: Override(op='linear', weight=…)",
            )
    return prepared


def calibrate(
    prepared: Prepared,
    batches: Iterable[Any],
    *,
    observer: Named = "mse",
    weight_observer: str = "abs_max",
    samples: int = 256,
    distributed: bool = False,
    progress: Progress | None = None,
) -> Calibrated:
    """Find scales and zero points: of activations on samples, of weights from their values.

    Args:
        prepared: the model; it is not changed.
        batches: batches of what the model's forward takes, or :class:`CalibrationData`.
        observer: how activation ranges are found; a name, or ``{"name": "percentile", "share": 0.999}``.
        weight_observer: how weight ranges are found.
        samples: how many samples to calibrate on.
        distributed: each process of the default ``torch.distributed`` group has other batches; all get the same scales.
        progress: where to report to.

    Raises:
        DataError: there is no batch, or values are not finite.
        UnknownNameError: an unknown observer.
    """
    progress = progress or SilentProgress()
    observers = {
        item.scale: make_observer(prepared.observers.get(item.scale, observer))
        for item in prepared.placement.activations
    }
    data = batches if isinstance(batches, CalibrationData) else CalibrationData(batches, samples)
    _observe(prepared.graph, data, _watched(prepared, observers), progress)
    seen = len(data)
    if distributed:
        for watched in observers.values():
            watched.all_reduce()
        seen = int(reduce_sum(torch.tensor(seen, dtype=torch.float64)))
    ranges = {name: _range(name, watched, prepared.activations[name]) for name, watched in observers.items()}
    activations = activation_qparams(prepared, ranges)
    weights = {
        name: weight_qparams(prepared, name, activations, prepared.weight_observers.get(name, weight_observer))
        for name in prepared.weights
    }
    reference = {name: tensor.detach().clone() for name, tensor in prepared.graph.named_parameters()}
    return Calibrated(prepared, activations, weights, seen, data, reference)


def finish(calibrated: Calibrated, *, before: Outputs | None = None) -> QuantResult:
    """Insert the quantizers, record what was done, and compare with the float model layer by layer.

    Args:
        calibrated: the model with scales; its graph becomes the result's.
        before: outputs of the model before anything was corrected, which the result's outputs are compared with;
            without it they are compared with those at calibration.
    """
    prepared = calibrated.prepared
    graph, placement = prepared.graph, prepared.placement
    activations = _with_ends(prepared, calibrated.activations)
    reference = copy.deepcopy(graph)
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            if name in calibrated.reference:
                parameter.copy_(calibrated.reference[name])
            else:  # a bias that a correction added
                parameter.zero_()
    if prepared.target.integer_bias:
        round_biases(graph, placement, activations, calibrated.weights)
    insert(graph, placement, activations, calibrated.weights, prepared.activations, prepared.weights)
    record = describe(
        graph, placement, prepared.activations, prepared.weights,
        target=prepared.target.name, activation=prepared.activation, edits=prepared.edits,
    )  # fmt: skip
    layers = [layer for item in placement.weights for layer in item.layers]
    found = compare_layers(reference, graph, calibrated.data.subset(COMPARED), layers)
    whole = found.sqnr_db("") if before is None else before.sqnr_db(graph)
    rows = _rows(prepared, found)
    return QuantResult(graph, record, QuantReport(rows, tuple(prepared.notes), calibrated.samples, whole))


def activation_qparams(
    prepared: Prepared, ranges: Mapping[str, tuple[Tensor, Tensor]]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return scales and zero points for ranges, as the target's integer kernels need them.

    Args:
        prepared: the model.
        ranges: lowest and highest value by name of the scale's node.
    """
    ended = _ended(prepared)
    found = {}
    for name, (low, high) in ranges.items():
        scheme = prepared.activations[name]
        found[name] = through(HARD_END, low, high, scheme) if name in ended else qparams(low, high, scheme)
    return found


def _ended(prepared: Prepared) -> set[str]:
    """Return the scales of what the target's hard activations read: :data:`HARD_END` must be a multiple of them."""
    hard = {
        getattr(node.args[0], "name", "") for node in prepared.nodes.values() if op_name(node) in prepared.target.hard
    }
    return {item.scale for item in prepared.placement.activations if item.node in hard}


def _with_ends(prepared: Prepared, activations: dict[str, tuple[Tensor, Tensor]]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return scales as hard activations need them; those that were learned may lie elsewhere."""
    found = dict(activations)
    for name in _ended(prepared):
        (scale, zero_point), scheme = activations[name], prepared.activations[name]
        low, high = ((end - zero_point).double() * scale.double() for end in (scheme.qmin, scheme.qmax))
        found[name] = through(HARD_END, low, high, scheme)
    return found


def weight_qparams(
    prepared: Prepared, name: str, activations: Mapping[str, tuple[Tensor, Tensor]], observer: str = "abs_max"
) -> tuple[Tensor, Tensor]:
    """Return scale and zero point of a weight, wide enough for the biases that count in its steps.

    Args:
        prepared: the model.
        name: of the weight.
        activations: scale and zero point by name of the scale's node.
        observer: how the range is found.
    """
    item = next(item for item in prepared.placement.weights if item.name == name)
    scheme = prepared.weights[name]
    low, high = weight_range(get_tensor(prepared.graph, name), scheme, item.along(scheme), observer)
    scale, zero_point = qparams(low, high, scheme)
    return hold_bias(prepared.graph, prepared.placement, name, activations, scale), zero_point


def _override(prepared: Prepared, overrides: Sequence[Override]) -> None:
    placed = {layer: item.name for item in prepared.placement.weights for layer in item.layers}
    scales = {item.node: item.scale for item in prepared.placement.activations}
    for item, hits in matched(overrides, quantizable(prepared.graph, prepared.target)):
        for node in hits:
            weight = placed.get(node.name)
            if weight is not None and item.weight is not None:
                prepared.weights[weight] = item.weight
            if weight is not None and item.weight_observer is not None:
                prepared.weight_observers[weight] = item.weight_observer
            for scale in {scales[source.name] for source in node.all_input_nodes if source.name in scales}:
                if item.activation is not None:
                    prepared.activations[scale] = item.activation
                if item.observer is not None:
                    prepared.observers[scale] = item.observer


def _watched(prepared: Prepared, observers: Mapping[str, Observer]) -> Taps:
    """Return what to call with the values of which node.

    A scale that several nodes share is watched at the concatenations, which show all values at once, or where the
    values are made; operators that pass values on would only show some of them twice.
    """
    nodes = prepared.nodes
    taps: dict[str, Callable[[Tensor], None]] = {}
    for scale, watched in observers.items():
        members = [item.node for item in prepared.placement.activations if item.scale == scale]
        joined = [name for name in members if op_name(nodes[name]) in prepared.target.concat]
        made = [name for name in members if op_name(nodes[name]) not in PASSING]
        taps.update(dict.fromkeys(joined or made or members, watched.update))
    return taps


def _observe(graph: ExportedModel, data: CalibrationData, taps: Taps, progress: Progress) -> None:
    seen = 0
    with progress.track("calibrating", len(data)) as track:
        for batch in data:
            try:
                tap(graph, batch, taps)
            except ValueError as error:
                raise DataError(f"calibration failed: {error}", where=f"batch after {seen} samples") from error
            seen += batch_size(batch)
            track.advance(batch_size(batch))


def _range(name: str, watched: Observer, scheme: Scheme) -> tuple[Tensor, Tensor]:
    try:
        low, high = watched.range(scheme)
    except ValueError as error:
        raise DataError(f"calibration of {name} failed: {error}") from error
    if not (torch.isfinite(low) and torch.isfinite(high)):
        raise DataError(f"calibration of {name} failed: an activation is not finite")
    return low, high


def _rows(prepared: Prepared, found: Comparison) -> tuple[Mapping[str, Any], ...]:
    nodes = prepared.nodes
    rows = []
    for item in prepared.placement.weights:
        for layer in item.layers:
            name = item.name.removesuffix(".weight")
            rows.append({
                "name": name if len(item.layers) == 1 else f"{name} ({layer})",
                "op": op_name(nodes[layer]),
                "bits": prepared.weights[item.name].bits,
                "sqnr_db": found.sqnr_db(layer),
            })  # fmt: skip
    return tuple(rows)
