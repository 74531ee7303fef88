"""The technique ``quant.ptq``: static post-training quantization as a step of a recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Field

from slim_core.data import begin_epoch, generators_of
from slim_core.errors import DataError
from slim_core.registry import Registry
from slim_core.technique import Run, StepResult
from slim_core.training.rng import kept_generators, seed_epoch
from slim_core.workload import Workload
from slim_quant.calibration import CalibrationData
from slim_quant.config import QuantConfig
from slim_quant.figures import sqnr_plots
from slim_quant.observers import WEIGHT_OBSERVERS, check_observer
from slim_quant.preparation import prepare
from slim_quant.ptq.corrections.base import make_corrections
from slim_quant.ptq.static import quantize
from slim_quant.result import QuantResult
from slim_quant.runtimes import require_runtime
from slim_quant.targets import get_target


class PTQConfig(QuantConfig):
    """Settings of ``quant.ptq``, beside those of :class:`slim_quant.config.QuantConfig`.

    Attributes:
        samples: training samples to calibrate on, without augmentation; where there are fewer, all, and a note says so.
        observer: how the ranges of activations are found: a name, or ``{name: percentile, share: 0.999}``.
        weight_observer: how the ranges of weights are found.
        corrections: what changes weights so that integers lose less: names, or ``{name: adaround, …}``.
        never_slower: time the file against float on the target's runtime, leave in float what loses, and keep the
            float model where nothing wins (:mod:`slim_quant.faster`).
        batch_sizes: where the file must win.
    """

    samples: int = Field(default=256, ge=1)
    observer: str | dict[str, Any] = "mse"
    weight_observer: str = Field(default="abs_max", pattern=f"^({'|'.join(WEIGHT_OBSERVERS)})$")
    corrections: list[str | dict[str, Any]] = Field(default_factory=list)
    never_slower: bool = False
    batch_sizes: list[Annotated[int, Field(ge=1)]] = Field(default_factory=lambda: [1, 32], min_length=1)


class PTQTechnique:
    """Quantizes the workload's model with scales from its training data."""

    name: ClassVar[str] = "quant.ptq"
    Config: ClassVar[type[PTQConfig]] = PTQConfig

    @staticmethod
    def check(config: PTQConfig, registry: Registry) -> None:
        """Look names and options up.

        Raises:
            UnknownNameError: no such target, observer or correction.
            SlimError: an option does not fit, schemes that there are not, or no runtime to be never slower on.
            MissingExtraError: that runtime is not installed.
        """
        target = get_target(config.target, registry)
        if config.never_slower:
            require_runtime(target.name)
        check_observer(config.observer)
        make_corrections(config.corrections, registry)
        config.weight_scheme()
        config.all_overrides()

    def rehearse(self, workload: Workload, config: PTQConfig, run: Run) -> None:
        """Look for training data, and for the layers that patterns name; what comes after cannot be told.

        Raises:
            DataError: the workload has no training data.
            ModelError: the model cannot be exported.
            PatternError: a pattern matches nothing.
        """
        _need_data(workload)
        overrides = config.all_overrides()
        if config.skip or overrides:
            prepare(
                workload.model, workload.example_inputs, target=get_target(config.target, run.registry),
                weight=config.weight_scheme(), activation=config.activation_scheme(), overrides=overrides,
                skip=config.skip,
            )  # fmt: skip

    def run(self, workload: Workload, config: PTQConfig, run: Run) -> StepResult:
        """Quantize; the given model stays as it is.

        Raises:
            DataError: the workload has no training data.
            ModelError: the model cannot be exported, or is quantized already.
            PatternError: a pattern matches nothing.
        """
        _need_data(workload)
        with kept_generators(*generators_of(workload.train)):
            data = CalibrationData(calibration_inputs(workload, run.seed), config.samples)

        def build(skip: Sequence[str]) -> QuantResult:
            return quantize(
                workload.model, data, example_inputs=workload.example_inputs, target=config.target,
                weight=config.weight_scheme(), activation=config.activation_scheme(), observer=config.observer,
                weight_observer=config.weight_observer, overrides=config.all_overrides(),
                skip=[*config.skip, *skip], samples=config.samples, corrections=config.corrections, seed=run.seed,
                progress=run.progress, registry=run.registry,
            )  # fmt: skip

        if not config.never_slower:
            return _step(workload, build([]), config.target)
        from slim_quant.faster.technique import details_of, faster_of

        found = faster_of(workload, run, config.target, build, config.batch_sizes)
        if found.result is None:
            return StepResult(workload, details_of(found), found.notes)
        return _step(workload, found.result, config.target, details_of(found), found.notes)


def _step(
    workload: Workload, result: QuantResult, target: str, details: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> StepResult:  # fmt: skip
    report = result.report
    told = {
        "layers": [dict(row) for row in report.layers],
        "samples": report.samples,
        "sqnr_db": report.sqnr_db,
        "target": target,
        "notes": list(report.notes),
    }
    more = dict(details or {})
    told["plots"] = [*sqnr_plots(report.layers), *more.pop("plots", ())]
    return StepResult(workload.with_model(result.model, result.transform), told | more, (*report.notes, *notes))


def _need_data(workload: Workload) -> None:
    if workload.train is None:
        raise DataError(
            "quant.ptq calibrates on training data, and the workload has none",
            hint="give the workload a `train` source; unlabelled inputs are enough for calibration",
        )


def calibration_inputs(workload: Workload, seed: int) -> Iterator[Any]:
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
