"""``sensitivity()``: which points to measure, in which order, and what is kept meanwhile.

Not here: running a graph with some quantizers on (``engine.py``), judging outputs (``judge.py``).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import nn

from slim_core.errors import PatternError, SlimError, close_match
from slim_core.graph.export import ExportedModel, export_graph
from slim_core.named import Named
from slim_core.progress import Progress, SilentProgress
from slim_core.training.state import digest as state_digest
from slim_core.workload import DataSource, Inputs, Task, tensors_of
from slim_quant.bits import Bits, parse_bits
from slim_quant.calibration import CalibrationData
from slim_quant.overrides import Override
from slim_quant.preparation import Calibrated, calibrate, prepare
from slim_quant.schemes import ACTIVATION, WEIGHT, Scheme
from slim_quant.sensitivity.engine import Program, Sweep
from slim_quant.sensitivity.found import Point, Sensitivity, UnitFacts
from slim_quant.sensitivity.judge import Evaluation, References, digest
from slim_quant.sensitivity.store import Key, Store
from slim_quant.sensitivity.switches import OFF, Scales, Switches, everything, switches
from slim_quant.targets import Target, get_target
from slim_quant.units import Unit, units_of

#: bytes of float activations that are kept between the points
MEMORY = 1 << 30
#: the point of the wholly quantized model
WHOLE = ("", "whole")
_MODES = {"quantized": ("quantized",), "float": ("float",), "both": ("quantized", "float")}
_FEW = 20


@dataclass(frozen=True, slots=True, eq=False)
class Ground:
    """What sensitivities are measured on: a float graph with scales for each choice of bits.

    Args:
        graph: the float graph, batch norms folded.
        units: its units.
        scales: scales by the name of the bits.
        bits: the choices.
        data: the calibration samples.
        target: the runtime.
    """

    graph: ExportedModel
    units: tuple[Unit, ...]
    scales: Mapping[str, Scales]
    bits: tuple[Bits, ...]
    data: CalibrationData
    target: Target
    notes: tuple[str, ...] = ()

    def all_on(self, bits: str) -> Switches:
        """Return the switches of the wholly quantized model."""
        return everything(self.units, self.scales[bits])

    def alone(self, unit: Unit, bits: str) -> Switches:
        """Return those with which one unit is quantized."""
        return switches([(unit, self.scales[bits])])

    def without(self, unit: Unit, bits: str) -> Switches:
        """Return those with which all other units are quantized."""
        whole = self.all_on(bits)
        rest = switches((other, self.scales[bits]) for other in self.units if other is not unit)
        kept = {name for name in whole.activations if name not in unit.activations or name in rest.activations}
        return Switches({name: whole.activations[name] for name in kept}, rest.weights, rest.biases)


def sensitivity(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    example_inputs: Inputs,
    task: Task | None = None,
    val: DataSource | None = None,
    metric: str | None = None,
    bits: str | Bits | Sequence[str | Bits] = "w8a8",
    mode: str = "quantized",
    by: str = "layer",
    groups: Mapping[str, Sequence[str]] | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    target: str | Target = "onnxruntime",
    weight: Scheme = WEIGHT,
    activation: Scheme = ACTIVATION,
    observer: Named = "mse",
    weight_observer: str = "abs_max",
    overrides: Sequence[Override] = (),
    skip: Sequence[str] = (),
    samples: int = 256,
    evaluated: int | None = None,
    folder: str | os.PathLike[str] | None = None,
    memory: int = MEMORY,
    progress: Progress | None = None,
) -> Sensitivity:
    """Measure what each unit loses when it alone is quantized, or what it saves when it alone stays in float.

    The model is calibrated once for each choice of bits, and its quantizers are then switched. A unit is run from where
    it begins; what comes before is kept from one run of the float model. Figures are those of the same quantizers
    inserted into the graph and run from the start, to the bit.

    Args:
        model: the float model; it is not changed.
        batches: batches of what the forward takes, to calibrate on.
        example_inputs: inputs to export the model with.
        task: measures a metric; needs ``val``. Without a task the SQNR of the outputs is measured alone.
        val: batches to measure on; ``None``: the calibration samples.
        metric: what is measured; ``None``: the task's primary metric.
        bits: one or several choices: ``"w8a8"``, ``"w4a8"``.
        mode: ``"quantized"``: one unit is quantized, the rest float; ``"float"``: the other way round; ``"both"``.
        by: ``"layer"``: layers and operators one by one; ``"operator"``: all of one kind together.
        groups: units of your own: name -> globs over the names of layers.
        include: globs over the names of units: measure these only.
        exclude: globs over the names of units: leave these out.
        target: runtime that the quantizers are placed for.
        weight: gives the weights' symmetry and granularity.
        activation: gives the activations' symmetry.
        observer: how activation ranges are found.
        weight_observer: how weight ranges are found.
        overrides: other settings for single layers.
        skip: layers that stay in float throughout.
        samples: how many samples to calibrate on.
        evaluated: measure on the first so many samples; ``None``: all.
        folder: where points are kept as they are measured; another call with the same arguments goes on from them.
        memory: bytes of float activations that may be kept.
        progress: where to report to.

    Raises:
        SlimError: an argument is unknown, or the folder holds points of something else.
        PatternError: a glob matches nothing.
        DataError: there is no data.
        ModelError: the model cannot be exported.
    """
    if mode not in _MODES:
        raise SlimError(f"unknown mode {mode!r}", hint=f"known: {', '.join(_MODES)}")
    if task is not None and val is None:
        raise SlimError("a metric is measured on data with targets", hint="pass val=, or leave out task=")
    progress = progress or SilentProgress()
    settings: dict[str, Any] = {
        "observer": observer,
        "weight_observer": weight_observer,
        "overrides": overrides,
        "skip": skip,
    }
    choices = _choices(bits, weight, activation)
    ground = survey(
        model, CalibrationData(batches, samples), choices, example_inputs=example_inputs, target=target, by=by,
        groups=groups, progress=progress, **settings,
    )  # fmt: skip
    chosen = select(ground.units, include, exclude)
    evaluation = Evaluation(ground.data if val is None else val, task, metric, evaluated)
    identity = {
        **identity_of(model, ground, settings),
        "by": by, "groups": {name: list(item) for name, item in (groups or {}).items()},
        "evaluated": evaluation.identity, "task": None if task is None else task.name, "metric": evaluation.metric,
    }  # fmt: skip
    store = Store(None if folder is None else Path(folder), identity)
    jobs = [(unit, item.name, each) for each in _MODES[mode] for item in choices for unit in chosen]
    missing = sum((unit.name, item, each) not in store.points for unit, item, each in jobs)
    if missing < len(jobs):
        progress.note(f"sensitivity: {len(jobs) - missing} of {len(jobs)} points are there already")
    measure(ground, evaluation, jobs, store, memory=memory, progress=progress)
    base = store.points["", "", "whole"].metric
    return Sensitivity(
        tuple(UnitFacts(unit.name, unit.op, unit.nodes, unit.params, unit.macs) for unit in chosen),
        tuple(store.points[unit.name, item, each] for unit, item, each in jobs),
        evaluation.metric, evaluation.higher_is_better, base,
        {item.name: {"sqnr_db": (point := store.points["", item.name, "whole"]).sqnr_db, "metric": point.metric}
         for item in choices},
        evaluation.samples, identity, ground.notes,
    )  # fmt: skip


def survey(
    model: nn.Module, data: CalibrationData, bits: Sequence[Bits], *, example_inputs: Inputs,
    target: str | Target, by: str = "layer", groups: Mapping[str, Sequence[str]] | None = None,
    observer: Named = "mse", weight_observer: str = "abs_max", overrides: Sequence[Override] = (),
    skip: Sequence[str] = (), progress: Progress | None = None,
) -> Ground:  # fmt: skip
    """Export and calibrate a model, once for each choice of bits.

    Raises:
        ModelError: the model cannot be exported.
        PatternError: a glob matches nothing.
    """
    chosen, graph = get_target(target), export_graph(model, example_inputs)
    found: dict[str, Calibrated] = {}
    for item in bits:
        prepared = prepare(
            graph, example_inputs, target=chosen, weight=item.weight, activation=item.activation, overrides=overrides,
            skip=skip,
        )  # fmt: skip
        found[item.name] = calibrate(
            prepared, data, observer=observer, weight_observer=weight_observer, progress=progress
        )
    first = next(iter(found.values())).prepared
    units = units_of(first.graph, first.placement, chosen, by=by, groups=groups)
    scales = {name: Scales(item) for name, item in found.items()}
    return Ground(first.graph, units, scales, tuple(bits), data, chosen, tuple(first.notes))


def measure(
    ground: Ground, evaluation: Evaluation, jobs: Sequence[tuple[Unit, str, str]], store: Store, *,
    memory: int = MEMORY, progress: Progress | None = None,
) -> None:  # fmt: skip
    """Measure what the store lacks: the float model, the wholly quantized ones, and the jobs.

    Args:
        ground: the graph and its scales.
        evaluation: the samples.
        jobs: unit, name of the bits and mode.
        store: where points are kept.
        memory: bytes that may be kept between points.
        progress: where to report to.
    """
    inputs = evaluation.inputs()
    plain = Program(ground.graph, OFF)
    references = References(plain, inputs, memory // 4)
    rows: list[tuple[Program, list[tuple[Key, Switches]]]] = []
    whole: list[tuple[Key, Switches]] = [(("", "", "whole"), OFF)]
    whole += [(("", item.name, "whole"), ground.all_on(item.name)) for item in ground.bits]
    rows.append((plain, whole + [
        ((unit.name, bits, mode), ground.alone(unit, bits)) for unit, bits, mode in jobs if mode == "quantized"
    ]))  # fmt: skip
    for bits in dict.fromkeys(bits for _, bits, mode in jobs if mode == "float"):
        base = Program(ground.graph, ground.all_on(bits))
        rows.append((base, [
            ((unit.name, bits, "float"), ground.without(unit, bits))
            for unit, other, mode in jobs if mode == "float" and other == bits
        ]))  # fmt: skip
    missing = [(program, [item for item in found if item[0] not in store.points]) for program, found in rows]
    with (progress or SilentProgress()).track("sensitivity", sum(len(found) for _, found in missing)) as track:
        for program, found in missing:
            changes = [(key, program.change(chosen)) for key, chosen in found]
            changes.sort(key=lambda item: item[1].first)
            sweep = Sweep(
                program, inputs, {number: change for number, (_, change) in enumerate(changes)}, memory=memory
            )
            for number, (key, _) in enumerate(changes):
                figures = evaluation.judge(sweep.outputs(number), references)
                store.add(Point(*key, figures.sqnr_db, figures.metric))
                track.advance(1)


def select(units: Sequence[Unit], include: Sequence[str], exclude: Sequence[str]) -> tuple[Unit, ...]:
    """Return the units that globs leave.

    Raises:
        PatternError: a glob matches nothing, or nothing is left.
    """
    names = [unit.name for unit in units]

    def hits(pattern: str) -> set[str]:
        found = {name for name in names if fnmatchcase(name, pattern)}
        if not found:
            hint = f"{close_match(pattern, names)} units: {', '.join(names[:_FEW])}".strip()
            raise PatternError(f"pattern '{pattern}' matches no unit", hint=hint)
        return found

    kept = set().union(*map(hits, include)) if include else set(names)
    kept = kept.difference(*map(hits, exclude))
    if not kept:
        raise PatternError("no unit is left to measure", hint="loosen include and exclude")
    return tuple(unit for unit in units if unit.name in kept)


def _choices(bits: str | Bits | Sequence[str | Bits], weight: Scheme, activation: Scheme) -> tuple[Bits, ...]:
    given = [bits] if isinstance(bits, str | Bits) else list(bits)
    if not given:
        raise SlimError("there are no bits to measure with", hint="write for example bits='w8a8'")
    return tuple(parse_bits(item, weight, activation) for item in dict.fromkeys(given))


def identity_of(model: nn.Module, ground: Ground, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what tells points of this model, these samples and settings from others, as JSON values."""
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        "model": f"{type(model).__name__} {state_digest(state)}",
        "calibration": digest(tensor for batch in ground.data for tensor in tensors_of(batch)),
        "bits": [[item.name, item.weight.to_json(), item.activation.to_json()] for item in ground.bits],
        "target": ground.target.name,
        "torch": torch.__version__,
        "observer": settings["observer"] if isinstance(settings["observer"], str) else dict(settings["observer"]),
        "weight_observer": settings["weight_observer"],
        "overrides": [
            {key: value for key, value in asdict(item).items() if value is not None}
            for item in settings.get("overrides", ())
        ],
        "skip": list(settings["skip"]),
    }
