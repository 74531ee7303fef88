"""The technique ``quant.qat``: training-aware quantization as a step of a recipe."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from slim_core.data import generators_of
from slim_core.errors import DataError
from slim_core.registry import Registry
from slim_core.technique import Run, StepResult, StrictConfig
from slim_core.training.callbacks import Callback
from slim_core.training.config import FitConfig
from slim_core.training.rng import kept_generators
from slim_core.workload import Workload
from slim_quant.calibration import CalibrationData
from slim_quant.config import QuantConfig
from slim_quant.figures import sqnr_plots
from slim_quant.observers import check_observer
from slim_quant.qat.activations import DECAY
from slim_quant.qat.schedule import PENALTY
from slim_quant.targets import get_target
from slim_quant.technique import calibration_inputs


class TeacherConfig(StrictConfig):
    """Distillation from the float model that the step begins with; see :class:`slim_quant.qat.teacher.FloatTeacher`.

    Attributes:
        weight: share of the distillation loss; the rest is the task's.
        temperature: of the softmax.
        loss: ``soft_labels`` or ``mse``.
    """

    weight: float = Field(default=0.5, gt=0, le=1)
    temperature: float = Field(default=2.0, gt=0)
    loss: Literal["soft_labels", "mse"] = "soft_labels"


class QATConfig(QuantConfig):
    """Settings of ``quant.qat``, beside those of :class:`slim_quant.config.QuantConfig`.

    Attributes:
        quantizer: how scales are found in training: ``moving_average``, or learned: ``lsq``, ``lsq+``, ``pact``.
        strategy: ``static``, or ``dynamic``: activations have the scale of the batch at hand while training; the result
            has scales that are found on training samples at the end.
        batch_norm: ``live`` until frozen, ``batch`` (folded with the batch's statistics, by a second convolution), or
            ``folded`` before training.
        start: share of the training before quantization begins.
        freeze_batch_norm: share of the training after which batch norms are folded for good; ``null``: never.
        freeze_observers: share after which the ranges of moving averages stay; ``null``: never.
        decay: of moving averages.
        clipping_penalty: PACT's.
        samples: training samples, without augmentation, to find the first ranges on.
        observer: how; ``null``: ``min_max`` for moving averages, ``mse`` for learned scales.
        teacher: distil from the float model; ``null``: do not.
        fit: the training.
    """

    quantizer: Literal["moving_average", "lsq", "lsq+", "pact"] = "moving_average"
    strategy: Literal["static", "dynamic"] = "static"
    batch_norm: Literal["live", "batch", "folded"] = "live"
    start: float = Field(default=0.0, ge=0, lt=1)
    freeze_batch_norm: float | None = Field(default=0.5, ge=0, le=1)
    freeze_observers: float | None = Field(default=0.75, ge=0, le=1)
    decay: float = Field(default=DECAY, ge=0, lt=1)
    clipping_penalty: float = Field(default=PENALTY, ge=0)
    samples: int = Field(default=256, ge=1)
    observer: str | dict[str, Any] | None = None
    teacher: TeacherConfig | None = None
    fit: FitConfig = Field(default_factory=lambda: FitConfig.model_validate({"epochs": 2, "lr": 0.001}))

    @model_validator(mode="after")
    def _learns_what_there_is(self) -> QATConfig:
        if self.strategy == "dynamic" and self.quantizer in ("lsq+", "pact"):
            raise ValueError(
                f"the quantizer '{self.quantizer}' learns ranges of activations; dynamic ones are not learned"
            )
        return self


class QATTechnique:
    """Trains the workload's model with quantization, and converts it."""

    name: ClassVar[str] = "quant.qat"
    Config: ClassVar[type[QATConfig]] = QATConfig

    @staticmethod
    def check(config: QATConfig, registry: Registry) -> None:
        """Look names and options up.

        Raises:
            UnknownNameError: no such target or observer.
            SlimError: an option does not fit, or schemes that there are not.
        """
        get_target(config.target, registry)
        if config.observer is not None:
            check_observer(config.observer)
        config.weight_scheme()
        config.all_overrides()

    def rehearse(self, workload: Workload, config: QATConfig, run: Run) -> None:
        """Prepare the untrained model, and look for training data; what comes after cannot be told.

        Raises:
            DataError: there is no training data or task.
            ModelError: the model cannot be exported.
            PatternError: a pattern matches nothing.
        """
        _need_data(workload)
        _prepared(workload, config, run, calibrate=False)

    def run(self, workload: Workload, config: QATConfig, run: Run) -> StepResult:
        """Prepare, train, convert; the given model stays as it is. A run that was stopped resumes after its last epoch.

        Raises:
            DataError: there is no training data or task.
            ModelError: the model cannot be exported, or is quantized already.
            PatternError: a pattern matches nothing.
        """
        from slim_core.training import fit
        from slim_quant.qat.conversion import convert
        from slim_quant.qat.record import transform_of
        from slim_quant.qat.schedule import QATSchedule
        from slim_quant.qat.teacher import FloatTeacher

        _need_data(workload)
        run.folder.mkdir(parents=True, exist_ok=True)
        model = _prepared(workload, config, run, calibrate=True)
        schedule = QATSchedule(
            start=config.start, freeze_batch_norm=config.freeze_batch_norm, freeze_observers=config.freeze_observers,
            clipping_penalty=config.clipping_penalty,
        )  # fmt: skip
        callbacks: list[Callback] = [schedule]
        if config.teacher is not None:
            callbacks.append(FloatTeacher(workload.model, **config.teacher.model_dump()))
        start = workload.with_model(model, transform_of(model))
        fitted = fit(start, config.fit, run=run, callbacks=callbacks, inplace=True)
        with kept_generators(*generators_of(workload.train)):
            result = convert(fitted.workload.model, _samples(workload, config, run))
        report = result.report
        details = {
            "history": [dict(row) for row in fitted.history],
            "layers": [dict(row) for row in report.layers],
            "plots": sqnr_plots(report.layers),
            "sqnr_db": report.sqnr_db,
            "target": config.target,
            "quantizer": config.quantizer,
            "notes": list(report.notes),
        }
        return StepResult(workload.with_model(result.model, result.transform), details, report.notes)


def _prepared(workload: Workload, config: QATConfig, run: Run, *, calibrate: bool) -> Any:
    from slim_quant.qat.preparation import prepare_qat

    with kept_generators(*generators_of(workload.train)):
        return prepare_qat(
            workload.model, workload.example_inputs, target=get_target(config.target, run.registry),
            weight=config.weight_scheme(), activation=config.activation_scheme(), strategy=config.strategy,
            quantizer=config.quantizer, batch_norm=config.batch_norm, overrides=config.all_overrides(),
            skip=config.skip, decay=config.decay, observer=config.observer, samples=config.samples,
            calibration=_samples(workload, config, run) if calibrate else None, progress=run.progress,
        )  # fmt: skip


def _samples(workload: Workload, config: QATConfig, run: Run) -> CalibrationData:
    return CalibrationData(calibration_inputs(workload, run.seed), config.samples)


def _need_data(workload: Workload) -> None:
    if workload.train is None or workload.task is None:
        missing = "training data" if workload.train is None else "a task"
        raise DataError(
            f"quant.qat trains the model, and the workload lacks {missing}",
            hint="give the Workload train=… and task=…; without labels, use quant.ptq",
        )
