"""Static post-training quantization: calibrate on a few samples, then fix scales. The model given stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from slim_core.errors import DataError, ModelError, SlimError
from slim_core.graph.export import ExportedModel, export_graph
from slim_core.progress import Progress, SilentProgress
from slim_core.workload import Inputs, Transform, tensors_of
from slim_quant.fold import fold_batch_norms
from slim_quant.graph import get_tensor, op_name, owner_of, tap
from slim_quant.insert import insert, is_quantized
from slim_quant.observers import Observer, make_observer, weight_range
from slim_quant.placement import Placement, place
from slim_quant.record import describe
from slim_quant.schemes import Scheme, qparams, sqnr_db
from slim_quant.targets import PASSING, TRANSPOSED, Target, get_target

#: What activations are unless the caller says otherwise: unsigned, one scale for the tensor.
ACTIVATION = Scheme(bits=8, symmetric=False, granularity="per_tensor")
#: What weights are unless the caller says otherwise: signed and symmetric, one scale per output channel.
WEIGHT = Scheme(bits=8, symmetric=True, granularity="per_channel")
#: An int32 bias counts in steps of input scale times weight scale; it must stay below 2^31, with some room.
BIAS_LIMIT = 2.0**30
#: Samples on which float and quantized activations are compared layer by layer.
COMPARED = 16


@dataclass(frozen=True, slots=True)
class QuantReport:
    """What the quantization did.

    Args:
        layers: one row per quantized layer: name, operator, bits, SQNR of its output against the float model in dB.
        notes: what stayed in float or was changed, with the reason.
        samples: samples that were calibrated on.
        sqnr_db: SQNR of the model's outputs, in dB; ``None`` where none is in floating point.
    """

    layers: tuple[Mapping[str, Any], ...]
    notes: tuple[str, ...]
    samples: int
    sqnr_db: float | None


@dataclass(frozen=True, slots=True)
class QuantResult:
    """A quantized model.

    Args:
        model: computes in float what the integers will give; trainable; exports as an int8 file.
        transform: everything that is needed to build ``model``'s graph again.
        report: what was done.
    """

    model: ExportedModel
    transform: Transform
    report: QuantReport = field(repr=False)


def quantize(
    model: torch.nn.Module,
    calibration: Iterable[Any],
    *,
    example_inputs: Inputs,
    target: str = "onnxruntime",
    weight: Scheme = WEIGHT,
    activation: Scheme = ACTIVATION,
    observer: str = "mse",
    weight_observer: str = "abs_max",
    skip: Sequence[str] = (),
    samples: int = 256,
    progress: Progress | None = None,
) -> QuantResult:
    """Quantize ``model`` after training, with scales from ``samples`` calibration samples.

    Args:
        model: any model that ``torch.export`` accepts; it is not changed.
        calibration: batches of what the model's forward takes: a tensor, a tuple of positional inputs or a mapping.
        example_inputs: inputs to export the model with.
        target: runtime that the placement is for: ``"onnxruntime"`` or ``"generic"``.
        weight: scheme of the weights.
        activation: scheme of the activations; one scale per tensor.
        observer: how activation ranges are found: ``"mse"``, ``"min_max"``, ``"abs_max"``, ``"moving_average"``,
            ``"percentile"``.
        weight_observer: how weight ranges are found: ``"abs_max"`` or ``"mse"``.
        skip: globs over layer names that stay in float.
        samples: how many samples to calibrate on; calibration stops there. Where there are fewer, a note says so.
        progress: where to report to.

    Raises:
        ModelError: the model cannot be exported, or is quantized already.
        PatternError: a pattern of ``skip`` matches nothing.
        DataError: ``calibration`` gives no batch, or values that are not finite.
        UnknownNameError: an unknown target or observer.
        SlimError: activations are asked for per channel.
    """
    progress = progress or SilentProgress()
    if activation.granularity != "per_tensor":
        raise SlimError(
            "activations cannot be quantized per channel", hint='use Scheme(granularity="per_tensor") for activations'
        )
    chosen = get_target(target)
    graph = _prepare(model, example_inputs)
    notes = list(fold_batch_norms(graph))
    placement = place(graph, chosen, skip=skip)
    notes.extend(placement.notes)
    observers = {item.scale: make_observer(observer) for item in placement.activations}
    taps = _watched(graph, placement, observers, chosen)
    sample, seen = _calibrate(graph, calibration, taps, samples, progress)
    if seen < samples:
        notes.append(f"calibrated on all {seen} samples that the data has: {samples} were asked for")
    ranges = {name: _range(name, watched, activation) for name, watched in observers.items()}
    activations = {name: qparams(low, high, activation) for name, (low, high) in ranges.items()}
    schemes = {item.name: weight for item in placement.weights}
    weights = {}
    for item in placement.weights:
        low, high = weight_range(get_tensor(graph, item.name), weight, item.axis, weight_observer)
        scale, zero_point = qparams(low, high, weight)
        weights[item.name] = (_hold_bias(graph, item.layers, placement, activations, scale), zero_point)
    before = _outputs(graph, placement, sample)
    insert(graph, placement, activations, weights, activation, schemes)
    after = _outputs(graph, placement, sample)
    record = describe(graph, placement, activation, schemes, target=target)
    rows = _rows(graph, placement, schemes, before, after)
    return QuantResult(graph, record, QuantReport(rows, tuple(notes), seen, _sqnr(before[""], after[""])))


def _prepare(model: torch.nn.Module, example_inputs: Inputs) -> ExportedModel:
    if is_quantized(model):
        raise ModelError("the model is quantized already", hint="quantize the float model")
    return export_graph(model, example_inputs)


def _watched(
    graph: ExportedModel, placement: Placement, observers: Mapping[str, Observer], target: Target
) -> dict[str, Callable[[Tensor], None]]:
    """Return what to call with the values of which node.

    A scale that several nodes share is watched at the concatenations, which show all values at once, or where the
    values are made; operators that pass values on would only show some of them twice.
    """
    nodes = {node.name: node for node in graph.graph.nodes}
    taps: dict[str, Callable[[Tensor], None]] = {}
    for scale, watched in observers.items():
        members = [item.node for item in placement.activations if item.scale == scale]
        joined = [name for name in members if op_name(nodes[name]) in target.concat]
        made = [name for name in members if op_name(nodes[name]) not in PASSING]
        taps.update(dict.fromkeys(joined or made or members, watched.update))
    return taps


def _calibrate(
    graph: ExportedModel,
    calibration: Iterable[Any],
    taps: Mapping[str, Callable[[Tensor], None]],
    samples: int,
    progress: Progress,
) -> tuple[Any, int]:
    """Feed the observers through ``taps``; return a small sample for comparing, and how many samples were seen."""
    seen, first = 0, None
    with progress.track("calibrating", samples) as track:
        for batch in calibration:
            size = _size(batch)
            batch = _cut(batch, samples - seen) if size > samples - seen else batch
            try:
                tap(graph, batch, taps)
            except ValueError as error:
                raise DataError(f"calibration failed: {error}", where=f"batch after {seen} samples") from error
            first = _cut(batch, COMPARED) if first is None else first
            seen += _size(batch)
            track.advance(_size(batch))
            if seen >= samples:
                break
    if first is None:
        raise DataError("there is nothing to calibrate on: the calibration data gives no batch")
    return first, seen


def _range(name: str, watched: Observer, scheme: Scheme) -> tuple[Tensor, Tensor]:
    try:
        low, high = watched.range(scheme)
    except ValueError as error:
        raise DataError(f"calibration of {name} failed: {error}") from error
    if not (torch.isfinite(low) and torch.isfinite(high)):
        raise DataError(f"calibration of {name} failed: an activation is not finite")
    return low, high


def _hold_bias(
    graph: ExportedModel, layers: tuple[str, ...], placement: Placement,
    activations: Mapping[str, tuple[Tensor, Tensor]], scale: Tensor,
) -> Tensor:  # fmt: skip
    """Widen weight scales where the bias, counted in steps of input scale times weight scale, would leave int32."""
    scales = {item.node: item.scale for item in placement.activations}
    nodes = {node.name: node for node in graph.graph.nodes}
    for layer in layers:
        node = nodes[layer]
        bias = owner_of(node.args[2]) if len(node.args) > 2 else None
        source = scales.get(getattr(node.args[0], "name", ""))
        if bias is None or source is None or (scale.dim() and op_name(node) in TRANSPOSED):
            continue
        wanted = get_tensor(graph, bias).detach().abs() / (activations[source][0] * BIAS_LIMIT)
        scale = torch.maximum(scale, wanted if scale.dim() else wanted.max())
    return scale


def _outputs(graph: ExportedModel, placement: Placement, sample: Any) -> dict[str, list[Tensor]]:
    """Return the outputs of all quantized layers, and under ``""`` the model's, on a few samples."""
    found: dict[str, list[Tensor]] = {}
    taps = {layer: (lambda value, layer=layer: found.__setitem__(layer, [value.detach()]))
            for item in placement.weights for layer in item.layers}  # fmt: skip
    tap(graph, sample, taps)
    with torch.no_grad():
        result = graph(**sample) if isinstance(sample, Mapping) else graph(*_positional(sample))
    found[""] = [tensor for tensor in tensors_of(result) if tensor.is_floating_point()]
    return found


def _rows(
    graph: ExportedModel, placement: Placement, schemes: Mapping[str, Scheme],
    before: Mapping[str, list[Tensor]], after: Mapping[str, list[Tensor]],
) -> tuple[Mapping[str, Any], ...]:  # fmt: skip
    nodes = {node.name: node for node in graph.graph.nodes}
    rows = []
    for item in placement.weights:
        for layer in item.layers:
            name = item.name.removesuffix(".weight")
            rows.append({
                "name": name if len(item.layers) == 1 else f"{name} ({layer})",
                "op": op_name(nodes[layer]),
                "bits": schemes[item.name].bits,
                "sqnr_db": _sqnr(before[layer], after[layer]),
            })  # fmt: skip
    return tuple(rows)


def _sqnr(before: list[Tensor], after: list[Tensor]) -> float | None:
    """SQNR over all tensors together, at most 200 dB, so that it is a JSON number; ``None`` without tensors."""
    if not before:
        return None
    flat = [torch.cat([tensor.reshape(-1) for tensor in tensors]) for tensors in (before, after)]
    return round(min(sqnr_db(*flat), 200.0), 2)


def _size(batch: Any) -> int:
    return next((tensor.shape[0] for tensor in tensors_of(batch) if tensor.dim()), 1)


def _positional(batch: Any) -> tuple[Any, ...]:
    return tuple(batch) if isinstance(batch, tuple | list) else (batch,)


def _cut(batch: Any, most: int) -> Any:
    """Return the first ``most`` samples."""
    size = _size(batch)

    def change(value: Any) -> Any:
        return value[:most] if isinstance(value, Tensor) and value.dim() and value.shape[0] == size else value

    if isinstance(batch, Mapping):
        return {name: change(value) for name, value in batch.items()}
    if isinstance(batch, tuple | list):
        return tuple(change(value) for value in batch)
    return change(batch)
