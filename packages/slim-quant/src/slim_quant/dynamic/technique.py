"""The technique ``quant.dynamic``: int8 products with scales of the batch at hand, as a step of a recipe."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from slim_core.data import generators_of
from slim_core.registry import Registry
from slim_core.technique import Run, StepResult, StrictConfig
from slim_core.training.rng import kept_generators
from slim_core.workload import Workload
from slim_quant.config import OverrideConfig
from slim_quant.dynamic.quantize import plan_dynamic, quantize_dynamic
from slim_quant.dynamic.rounding import Activations
from slim_quant.observers import WEIGHT_OBSERVERS
from slim_quant.overrides import Override
from slim_quant.schemes import Scheme
from slim_quant.weight_only.quantize import require_float
from slim_quant.weight_only.technique import sample_of, step_result, weight_overrides


class DynamicConfig(StrictConfig):
    """Settings of ``quant.dynamic``.

    Attributes:
        activations: one scale and zero point for a layer's input, or a scale per vector along the last dimension.
        per_channel: one scale per output channel of a weight; otherwise one per weight.
        clip: how ranges of weights are found: every weight in range, or the least squared error.
        include: globs over layer names; only these are quantized.
        skip: globs over layer names; these stay in float.
        overrides: other settings of single layers; later ones win.
    """

    activations: Activations = "per_tensor"
    per_channel: bool = True
    clip: str = Field(default="abs_max", pattern=f"^({'|'.join(WEIGHT_OBSERVERS)})$")
    include: list[str] = Field(default_factory=lambda: ["*"])
    skip: list[str] = Field(default_factory=list)
    overrides: list[OverrideConfig] = Field(default_factory=list)

    def scheme(self) -> Scheme:
        """Return the scheme of weights without an override."""
        return Scheme(8, True, "per_channel" if self.per_channel else "per_tensor")

    def all_overrides(self) -> list[Override]:
        """Return the overrides.

        Raises:
            SlimError: one matches by nothing, sets nothing, or a scheme that there is not.
        """
        return weight_overrides(self.overrides, self.scheme())


class DynamicTechnique:
    """Lets linear and recurrent layers multiply in int8, without calibration."""

    name: ClassVar[str] = "quant.dynamic"
    Config: ClassVar[type[DynamicConfig]] = DynamicConfig

    @staticmethod
    def check(config: DynamicConfig, registry: Registry) -> None:
        """Look at the overrides.

        Raises:
            SlimError: one has a scheme that there is not.
        """
        config.all_overrides()

    def rehearse(self, workload: Workload, config: DynamicConfig, run: Run) -> None:
        """Look for the layers that patterns name.

        Raises:
            ModelError: nothing can be quantized.
            PatternError: a pattern matches nothing.
        """
        require_float(workload.model)
        plan_dynamic(
            workload.model, workload.example_inputs, config.scheme(), config.include, config.skip,
            config.all_overrides(),
        )  # fmt: skip

    def run(self, workload: Workload, config: DynamicConfig, run: Run) -> StepResult:
        """Quantize; the given model stays as it is.

        Raises:
            ModelError: the model is quantized already, or nothing can be quantized.
            PatternError: a pattern matches nothing.
        """
        with kept_generators(*generators_of(workload.train)):
            result = quantize_dynamic(
                workload.model, workload.example_inputs, activations=config.activations, weight=config.scheme(),
                clip=config.clip, include=config.include, skip=config.skip, overrides=config.all_overrides(),
                sample=sample_of(workload, run.seed), progress=run.progress,
            )  # fmt: skip
        return step_result(workload, result)
