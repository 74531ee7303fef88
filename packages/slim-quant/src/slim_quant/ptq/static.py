"""Static post-training quantization: calibrate on a few samples, then fix scales. The model given stays as it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from slim_core.named import Named
from slim_core.progress import Progress, SilentProgress
from slim_core.registry import Registry
from slim_core.workload import Inputs
from slim_quant.calibration import CalibrationData
from slim_quant.layerwise import Outputs
from slim_quant.observers import check_observer
from slim_quant.overrides import Override
from slim_quant.preparation import COMPARED, calibrate, finish, prepare
from slim_quant.ptq.corrections.base import Correction, CorrectionContext, make_corrections
from slim_quant.result import QuantReport, QuantResult
from slim_quant.schemes import ACTIVATION, WEIGHT, Scheme
from slim_quant.targets import Target, get_target

__all__ = ["ACTIVATION", "WEIGHT", "QuantReport", "QuantResult", "quantize"]


def quantize(
    model: torch.nn.Module,
    calibration: Iterable[Any],
    *,
    example_inputs: Inputs,
    target: str | Target = "onnxruntime",
    weight: Scheme = WEIGHT,
    activation: Scheme = ACTIVATION,
    observer: Named = "mse",
    weight_observer: str = "abs_max",
    overrides: Sequence[Override] = (),
    skip: Sequence[str] = (),
    samples: int = 256,
    corrections: Sequence[Named | Correction] = (),
    seed: int = 0,
    progress: Progress | None = None,
    registry: Registry | None = None,
) -> QuantResult:
    """Quantize ``model`` after training, with scales from ``samples`` calibration samples.

    Args:
        model: any model that ``torch.export`` accepts; it is not changed.
        calibration: batches of what the model's forward takes: a tensor, a tuple of positional inputs or a mapping.
        example_inputs: inputs to export the model with.
        target: runtime that the placement is for: ``"onnxruntime"``, ``"openvino"``, ``"generic"``, a plugin's, or a
            :class:`slim_quant.targets.Target`.
        weight: scheme of the weights.
        activation: scheme of the activations; one scale per tensor.
        observer: how activation ranges are found: ``"mse"``, ``"min_max"``, ``"abs_max"``, ``"moving_average"``,
            ``"percentile"`` and others of :data:`slim_quant.observers.OBSERVERS`; or with options,
            ``{"name": "percentile", "share": 0.999}``.
        weight_observer: how weight ranges are found: ``"abs_max"`` or ``"mse"``.
        overrides: other settings for single layers.
        skip: globs over layer names, or ``"op:add"``, that stay in float.
        samples: how many samples to calibrate on; calibration stops there. Where there are fewer, a note says so.
        corrections: what changes weights so that integers lose less: ``"bias_correction"``,
            ``{"name": "adaround", …}``; see :mod:`slim_quant.ptq.corrections`.
        seed: for corrections that are random.
        progress: where to report to.
        registry: where names of targets and corrections are looked up.

    Raises:
        ModelError: the model cannot be exported, or is quantized already.
        PatternError: a pattern matches nothing.
        DataError: ``calibration`` gives no batch, or values that are not finite.
        UnknownNameError: an unknown target, observer or correction.
        SlimError: activations are asked for per channel.
    """
    progress = progress or SilentProgress()
    check_observer(observer)
    by_stage = make_corrections(corrections, registry)
    prepared = prepare(
        model, example_inputs, target=get_target(target, registry), weight=weight, activation=activation,
        overrides=overrides, skip=skip,
    )  # fmt: skip
    data = CalibrationData(calibration, samples)
    if len(data) < samples:
        prepared.notes.append(f"calibrated on all {len(data)} samples that the data has: {samples} were asked for")
    context = CorrectionContext(seed=seed, progress=progress, notes=prepared.notes)
    before = Outputs.of(prepared.graph, data.subset(COMPARED)) if corrections else None
    for correction in by_stage["float"]:
        correction(prepared, None, data, context)
    calibrated = calibrate(prepared, data, observer=observer, weight_observer=weight_observer, progress=progress)
    for correction in [*by_stage["rounding"], *by_stage["bias"]]:
        correction(prepared, calibrated, data, context)
    return finish(calibrated, before=before)
