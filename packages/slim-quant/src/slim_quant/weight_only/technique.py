"""The technique ``quant.weight_only``: weights as integers, as a step of a recipe."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from slim_core.data import generators_of
from slim_core.errors import DataError
from slim_core.registry import Registry
from slim_core.technique import Run, StepResult, StrictConfig
from slim_core.training.rng import kept_generators
from slim_core.workload import Workload
from slim_quant.config import OverrideConfig
from slim_quant.observers import WEIGHT_OBSERVERS
from slim_quant.overrides import Override
from slim_quant.ptq.corrections.base import make_correction
from slim_quant.schemes import Scheme
from slim_quant.technique import calibration_inputs
from slim_quant.weight_only.quantize import default_scheme, plan_of, quantize_weights, require_float
from slim_quant.weight_only.result import PackedResult


class WeightOnlyConfig(StrictConfig):
    """Settings of ``quant.weight_only``.

    Attributes:
        bits: 2 to 8.
        group_size: neighbours along the input axis that share a scale; ``null``: one scale per output channel;
            ``auto``: 64 below 8 bits, none at 8.
        symmetric: zero points of 0; ``null``: at 8 bits.
        clip: how ranges are found: every weight in range, or the least squared error.
        include: globs over layer names; only these are quantized.
        skip: globs over layer names; these stay in float.
        overrides: other schemes of single layers; later ones win.
        correction: a rounding that looks at training data: ``gptq``, or ``{name: gptq, …}``.
        samples: training samples that the correction sees, without augmentation.
    """

    bits: int = Field(default=8, ge=2, le=8)
    group_size: int | Literal["auto"] | None = "auto"
    symmetric: bool | None = None
    clip: str = Field(default="abs_max", pattern=f"^({'|'.join(WEIGHT_OBSERVERS)})$")
    include: list[str] = Field(default_factory=lambda: ["*"])
    skip: list[str] = Field(default_factory=list)
    overrides: list[OverrideConfig] = Field(default_factory=list)
    correction: str | dict[str, Any] | None = None
    samples: int = Field(default=128, ge=1)

    def scheme(self) -> Scheme:
        """Return the scheme of layers without an override.

        Raises:
            SlimError: there is no such scheme.
        """
        return default_scheme(self.bits, self.group_size, self.symmetric)

    def all_overrides(self) -> list[Override]:
        """Return the overrides.

        Raises:
            SlimError: one matches by nothing, sets nothing, or a scheme that there is not.
        """
        return weight_overrides(self.overrides, self.scheme())


class WeightOnlyTechnique:
    """Stores the weights of linear layers and embeddings as integers."""

    name: ClassVar[str] = "quant.weight_only"
    Config: ClassVar[type[WeightOnlyConfig]] = WeightOnlyConfig

    @staticmethod
    def check(config: WeightOnlyConfig, registry: Registry) -> None:
        """Look names and options up.

        Raises:
            UnknownNameError: no such correction.
            SlimError: an option does not fit, or schemes that there are not.
        """
        if config.correction is not None:
            make_correction(config.correction, registry)
        config.all_overrides()

    def rehearse(self, workload: Workload, config: WeightOnlyConfig, run: Run) -> None:
        """Look for training data where it is needed, and for the layers that patterns name.

        Raises:
            DataError: a correction is asked for, and the workload has no training data.
            ModelError: nothing can be quantized.
            PatternError: a pattern matches nothing.
        """
        _need_data(workload, config)
        require_float(workload.model)
        plan_of(
            workload.model, workload.example_inputs, config.scheme(), include=config.include, skip=config.skip,
            overrides=config.all_overrides(),
        )  # fmt: skip

    def run(self, workload: Workload, config: WeightOnlyConfig, run: Run) -> StepResult:
        """Quantize; the given model stays as it is.

        Raises:
            DataError: a correction is asked for, and the workload has no training data.
            ModelError: the model is quantized already, or nothing can be quantized.
            PatternError: a pattern matches nothing.
        """
        _need_data(workload, config)
        with kept_generators(*generators_of(workload.train)):
            result = quantize_weights(
                workload.model, workload.example_inputs, bits=config.bits, group_size=config.group_size,
                symmetric=config.symmetric, clip=config.clip, include=config.include, skip=config.skip,
                overrides=config.all_overrides(), correction=config.correction,
                calibration=None if config.correction is None else calibration_inputs(workload, run.seed),
                samples=config.samples, sample=sample_of(workload, run.seed), seed=run.seed, progress=run.progress,
                registry=run.registry,
            )  # fmt: skip
        return step_result(workload, result)


def weight_overrides(configs: list[OverrideConfig], scheme: Scheme) -> list[Override]:
    """Return the overrides of a technique that quantizes weights; what one leaves open is as in ``scheme``.

    Raises:
        SlimError: one matches by nothing, sets nothing, or a scheme that there is not.
    """
    return [
        Override(
            match=item.match, op=item.op, skip=item.skip, weight_observer=item.weight_observer,
            weight=None if item.weight is None else item.weight.over(scheme),
        )
        for item in configs
    ]  # fmt: skip


def sample_of(workload: Workload, seed: int) -> Any:
    """Return a batch of the training data to compare outputs on, or ``None`` where there is none."""
    return None if workload.train is None else next(iter(calibration_inputs(workload, seed)), None)


def step_result(workload: Workload, result: PackedResult) -> StepResult:
    """Return the result of a step, with what the report shows."""
    report = result.report
    details = {
        "layers": [dict(row) for row in report.layers],
        "sqnr_db": report.sqnr_db,
        "state_bytes": dict(result.sizes),
        "notes": list(report.notes),
    }
    return StepResult(workload.with_model(result.model, result.transform), details, report.notes)


def _need_data(workload: Workload, config: WeightOnlyConfig) -> None:
    if config.correction is not None and workload.train is None:
        raise DataError(
            "the correction looks at training data, and the workload has none",
            hint="give the workload a `train` source, or leave the correction out",
        )
