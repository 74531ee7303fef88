"""The technique ``quant.mixed``: bits for each layer, and what stays in float, under a goal or a budget."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field, model_validator

from slim_core.data import generators_of
from slim_core.errors import DataError
from slim_core.registry import Registry
from slim_core.technique import Run, StepResult
from slim_core.training.rng import kept_generators
from slim_core.workload import Workload
from slim_quant.bits import parse_bits
from slim_quant.mixed.choose import Mixed, choose
from slim_quant.technique import PTQConfig, PTQTechnique, calibration_inputs


class MixedConfig(PTQConfig):
    """Settings of ``quant.mixed``, beside those of ``quant.ptq``.

    Attributes:
        max_drop: the most that the metric may get worse, in points (hundredths) for a metric that is a share.
        budget: a bound on one cost: ``{bytes: 0.2}``, ``{bytes: 1.2MB}``, ``{bitops: 0.05}``.
        options: choices of bits, such as ``w4a8``; they stand in place of ``weight_bits`` and ``activation_bits``.
        allow_float: whether layers may stay in float.
        cost: what is kept small under ``max_drop``: ``bytes`` or ``bitops``.
        metric: what is measured; ``null``: the task's primary metric.
        evaluated: validation samples of the search; ``null``: all. The final figure is of all samples.
    """

    max_drop: float | None = Field(default=None, ge=0)
    budget: dict[str, float | int | str] | None = None
    options: list[str] = Field(default_factory=lambda: ["w4a8", "w8a8"], min_length=1)
    allow_float: bool = True
    cost: str = "bytes"
    metric: str | None = None
    evaluated: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _has_a_goal(self) -> MixedConfig:
        if self.max_drop is None and self.budget is None:
            raise ValueError("quant.mixed needs max_drop (0.5, say) or a budget ({bytes: 0.2}, say)")
        if self.overrides:
            raise ValueError("quant.mixed chooses bits for each layer: leave out overrides, or use quant.ptq")
        if self.never_slower:
            raise ValueError("quant.mixed keeps a goal or a budget, not speed: never_slower belongs to quant.ptq")
        return self


class MixedTechnique:
    """Quantizes the workload's model with bits that differ from layer to layer."""

    name: ClassVar[str] = "quant.mixed"
    Config: ClassVar[type[MixedConfig]] = MixedConfig

    @staticmethod
    def check(config: MixedConfig, registry: Registry) -> None:
        """Look names up.

        Raises:
            SlimError: no such target, observer, correction or bits.
        """
        PTQTechnique.check(config, registry)
        for option in config.options:
            parse_bits(option)

    def rehearse(self, workload: Workload, config: MixedConfig, run: Run) -> None:
        """Look for data, and for the layers that ``skip`` names.

        Raises:
            DataError: the workload lacks training data, or validation data that a goal needs.
            ModelError: the model cannot be exported.
            PatternError: a pattern matches nothing.
        """
        PTQTechnique().rehearse(workload, config, run)
        _need_val(workload, config)

    def run(self, workload: Workload, config: MixedConfig, run: Run) -> StepResult:
        """Measure sensitivities, choose, quantize and measure; the given model stays as it is.

        Raises:
            DataError: the workload lacks data.
            BudgetError: goal or budget cannot be met.
            ModelError: the model cannot be exported, or is quantized already.
        """
        _need_val(workload, config)
        judged = workload.task is not None and workload.val is not None
        with kept_generators(*generators_of(workload.train)):
            found = choose(
                workload.model, calibration_inputs(workload, run.seed), example_inputs=workload.example_inputs,
                task=workload.task if judged else None, val=workload.val if judged else None, metric=config.metric,
                max_drop=config.max_drop, budget=config.budget, options=config.options,
                allow_float=config.allow_float, cost=config.cost, target=config.target,
                weight=config.weight_scheme(), activation=config.activation_scheme(), observer=config.observer,
                weight_observer=config.weight_observer, skip=config.skip, samples=config.samples,
                evaluated=config.evaluated, corrections=config.corrections, folder=run.folder / "sensitivity",
                seed=run.seed, progress=run.progress, registry=run.registry,
            )  # fmt: skip
        if found.result is None:
            return StepResult(workload, details_of(found), found.notes)
        report = found.result.report
        return StepResult(
            workload.with_model(found.result.model, found.result.transform), details_of(found),
            (*report.notes, *found.notes),
        )  # fmt: skip


def details_of(found: Mixed) -> Mapping[str, Any]:
    """Return what the report shows: each layer's bits, what it loses at each choice, and the trials."""
    rows = {row["name"]: row for row in (found.result.report.layers if found.result is not None else ())}
    layers = [
        {"name": unit, "bits": choice, "sqnr_db": rows.get(unit, {}).get("sqnr_db")}
        for unit, choice in found.assignment.items()
    ]
    built = [trial for trial in found.trials if trial.drop is not None]
    curves = []
    if len(built) > 1:
        ordered = sorted(built, key=lambda trial: trial.cost)
        curves.append({
            "title": f"{found.metric} lost, by {found.cost}", "x_label": found.cost, "y_label": "drop",
            "series": [{"name": "models on the way", "x": [trial.cost for trial in ordered],
                        "y": [trial.drop for trial in ordered]}],
        })  # fmt: skip
    data = found.to_json()
    return {
        "layers": layers, "curves": curves, "bits": found.counts(),
        **{key: data[key] for key in ("cost", "cost_before", "cost_after", "metric", "before", "after", "drop")},
    }  # fmt: skip


def _need_val(workload: Workload, config: MixedConfig) -> None:
    if config.max_drop is not None and (workload.val is None or workload.task is None):
        raise DataError(
            "max_drop is measured on validation data, and the workload has none",
            hint="give the workload a task and a `val` source, or choose by a budget",
        )
