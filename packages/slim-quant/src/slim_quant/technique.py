"""The technique ``quant.ptq``: static post-training quantization as a step of a recipe."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from slim_core.errors import DataError
from slim_core.technique import Run, StepResult, StrictConfig
from slim_core.workload import Workload
from slim_quant.ptq.static import quantize
from slim_quant.schemes import Scheme


class PTQConfig(StrictConfig):
    """Settings of ``quant.ptq``.

    Attributes:
        target: runtime that the quantizers are placed for.
        samples: training samples to calibrate on.
        observer: how the ranges of activations are found.
        weight_observer: how the ranges of weights are found.
        weight_bits: bits of the weights, 2 to 8.
        activation_bits: bits of the activations, 2 to 8.
        per_channel: one scale per output channel of a weight; otherwise one per weight.
        skip: globs over layer names; these layers stay in float.
    """

    target: Literal["onnxruntime", "generic"] = "onnxruntime"
    samples: int = Field(default=256, ge=1)
    observer: Literal["abs_max", "min_max", "moving_average", "percentile", "mse"] = "mse"
    weight_observer: Literal["abs_max", "mse"] = "abs_max"
    weight_bits: int = Field(default=8, ge=2, le=8)
    activation_bits: int = Field(default=8, ge=2, le=8)
    per_channel: bool = True
    skip: list[str] = Field(default_factory=list)


class PTQTechnique:
    """Quantizes the workload's model with scales from its training data."""

    name: ClassVar[str] = "quant.ptq"
    Config: ClassVar[type[PTQConfig]] = PTQConfig

    def run(self, workload: Workload, config: PTQConfig, run: Run) -> StepResult:
        """Quantize; the given model stays as it is.

        Raises:
            DataError: the workload has no training data.
            ModelError: the model cannot be exported, or is quantized already.
            PatternError: a pattern of ``skip`` matches nothing.
        """
        if workload.train is None:
            raise DataError(
                "quant.ptq calibrates on training data, and the workload has none",
                hint="give the workload a `train` source; unlabelled inputs are enough for calibration",
            )
        state = torch.get_rng_state()
        try:
            torch.manual_seed(run.seed)  # the order and augmentation of the calibration samples
            result = quantize(
                workload.model, _inputs(workload), example_inputs=workload.example_inputs, target=config.target,
                weight=Scheme(config.weight_bits, True, "per_channel" if config.per_channel else "per_tensor"),
                activation=Scheme(config.activation_bits, False, "per_tensor"),
                observer=config.observer, weight_observer=config.weight_observer, skip=config.skip,
                samples=config.samples, progress=run.progress,
            )  # fmt: skip
        finally:
            torch.set_rng_state(state)
        report = result.report
        details = {
            "layers": [dict(row) for row in report.layers],
            "samples": report.samples,
            "sqnr_db": report.sqnr_db,
            "target": config.target,
            "notes": list(report.notes),
        }
        return StepResult(workload.with_model(result.model, result.transform), details, report.notes)


def _inputs(workload: Workload) -> Iterator[Any]:
    source = workload.train
    set_epoch = getattr(source, "set_epoch", None)
    if set_epoch is not None:
        set_epoch(0)
    for batch in source or ():
        if workload.task is not None:
            yield workload.task.inputs(batch)
        else:
            yield batch[0] if isinstance(batch, tuple | list) else batch
