"""The technique ``quant.ptq``: static post-training quantization as a step of a recipe."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from pydantic import Field

from slim_core.data import begin_epoch, generators_of
from slim_core.errors import DataError
from slim_core.graph.export import export_graph
from slim_core.technique import Run, StepResult, StrictConfig
from slim_core.training.rng import kept_generators, seed_epoch
from slim_core.workload import Workload
from slim_quant.fold import fold_batch_norms
from slim_quant.placement import place
from slim_quant.ptq.static import quantize
from slim_quant.schemes import Scheme
from slim_quant.targets import get_target


class PTQConfig(StrictConfig):
    """Settings of ``quant.ptq``.

    Attributes:
        target: runtime that the quantizers are placed for.
        samples: training samples to calibrate on, without augmentation; where there are fewer, all, and a note says so.
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

    def rehearse(self, workload: Workload, config: PTQConfig, run: Run) -> None:
        """Look for training data, and for the layers that ``skip`` names; what comes after cannot be told.

        Raises:
            DataError: the workload has no training data.
            ModelError: the model cannot be exported.
            PatternError: a pattern of ``skip`` matches nothing.
        """
        _need_data(workload)
        if config.skip:
            graph = export_graph(workload.model, workload.example_inputs)
            fold_batch_norms(graph)
            place(graph, get_target(config.target), skip=config.skip)

    def run(self, workload: Workload, config: PTQConfig, run: Run) -> StepResult:
        """Quantize; the given model stays as it is.

        Raises:
            DataError: the workload has no training data.
            ModelError: the model cannot be exported, or is quantized already.
            PatternError: a pattern of ``skip`` matches nothing.
        """
        _need_data(workload)
        with kept_generators(*generators_of(workload.train)):
            result = quantize(
                workload.model, _inputs(workload, run.seed), example_inputs=workload.example_inputs,
                target=config.target,
                weight=Scheme(config.weight_bits, True, "per_channel" if config.per_channel else "per_tensor"),
                activation=Scheme(config.activation_bits, False, "per_tensor"),
                observer=config.observer, weight_observer=config.weight_observer, skip=config.skip,
                samples=config.samples, progress=run.progress,
            )  # fmt: skip
        report = result.report
        details = {
            "layers": [dict(row) for row in report.layers],
            "samples": report.samples,
            "sqnr_db": report.sqnr_db,
            "target": config.target,
            "notes": list(report.notes),
        }
        return StepResult(workload.with_model(result.model, result.transform), details, report.notes)


def _need_data(workload: Workload) -> None:
    if workload.train is None:
        raise DataError(
            "quant.ptq calibrates on training data, and the workload has none",
            hint="give the workload a `train` source; unlabelled inputs are enough for calibration",
        )


def _inputs(workload: Workload, seed: int) -> Iterator[Any]:
    """Yield inputs without augmentation where the source knows how, in an order that only ``seed`` decides."""
    source: Any = workload.train
    if hasattr(source, "plain"):
        source = source.plain()
    begin_epoch(source, 0, seed)
    seed_epoch(seed, 0)  # users' data sets draw from the global generators
    for batch in source:
        if workload.task is not None:
            yield workload.task.inputs(batch)
        else:
            yield batch[0] if isinstance(batch, tuple | list) else batch
