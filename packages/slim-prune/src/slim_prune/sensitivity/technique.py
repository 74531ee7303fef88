"""The recipe step ``prune.sensitivity``: measure what each layer can spare, cut accordingly, train as scheduled."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field, model_validator

from slim_core.technique import StrictConfig
from slim_prune.schedules.config import Gradual, Iterative
from slim_prune.technique import StructuredConfig, StructuredPruning


class EarlyStopConfig(StrictConfig):
    """When a point is decided; see :class:`slim_prune.sensitivity.stopping.EarlyStop`."""

    tolerance: float = Field(0.002, gt=0)
    relative: float = Field(0.0, ge=0)
    ceiling: float | None = None
    confidence: float = Field(0.999, ge=0.5, lt=1)
    min_samples: int = Field(256, ge=1)


class SensitivityConfig(StructuredConfig):
    """Configuration of ``prune.sensitivity``.

    Attributes:
        metric: what is measured: ``loss``, or a metric of the task.
        points: how many counts are measured for each group.
        samples: measure on the first so many validation samples only; ``null``: all.
        early_stop: stop a point when its confidence interval decides; ``null``: measure all samples.
        max_drop: no group may lose more than this by itself, in the metric's unit; ``null``: no limit.
        max_pruned: the largest share of its channels that a layer may lose.
        curves: a file of curves that were measured before; ``null``: measure. They are those of the whole model, so
            that a schedule of several cuts cannot use them: it measures before each cut.
        workers: processes that share the measuring; 0: this one.
        timeout: seconds without any sign of a worker after which it is given up on.
    """

    metric: str = "loss"
    points: int = Field(8, ge=1)
    samples: int | None = Field(None, ge=1)
    early_stop: EarlyStopConfig | None = None
    max_drop: float | None = Field(None, ge=0)
    max_pruned: float = Field(0.9, gt=0, le=1)
    curves: str | None = None
    workers: int = Field(0, ge=0)
    timeout: float = Field(3600.0, gt=0)

    @model_validator(mode="after")
    def _of_the_whole_model(self) -> SensitivityConfig:
        cuts = 1
        if isinstance(self.schedule, Iterative):
            cuts = self.schedule.steps
        elif isinstance(self.schedule, Gradual) and not self.schedule.masked:
            cuts = self.schedule.steps if self.schedule.at_epochs is None else len(self.schedule.at_epochs)
        if self.curves is not None and cuts > 1:
            raise ValueError(
                f"curves are those of the whole model, and the schedule cuts {cuts} times: after the first cut they "
                "are another model's; leave out curves, and they are measured before each cut"
            )
        return self


class SensitivityPruning(StructuredPruning):
    """Remove the least important channels, most of them where measured curves say that it hurts least."""

    name: ClassVar[str] = "prune.sensitivity"
    Config: ClassVar[type[StructuredConfig]] = SensitivityConfig

    def allocation(self, config: SensitivityConfig) -> dict[str, Any]:
        return {
            "name": "sensitivity",
            "metric": config.metric,
            "points": config.points,
            "samples": config.samples,
            "early_stop": config.early_stop.model_dump() if config.early_stop is not None else None,
            "max_drop": config.max_drop,
            "max_pruned": config.max_pruned,
            "curves": config.curves,
            "workers": config.workers,
            "timeout": config.timeout,
        }
