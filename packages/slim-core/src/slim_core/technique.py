"""The contract of a compression technique, and what it is given to run with."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from pydantic import BaseModel, ConfigDict

from slim_core.progress import Progress, SilentProgress
from slim_core.registry import Registry
from slim_core.workload import Workload


class StrictConfig(BaseModel):
    """Base of every technique's configuration: an unknown key is an error, values are not coerced."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


@dataclass(frozen=True, slots=True)
class Run:
    """What a technique runs with.

    Args:
        folder: the step's own folder, kept between attempts: resumable state goes here.
        seed: the step's seed.
        registry: everything that plugins registered.
        progress: where long work reports to.
        log: the step's logger.
    """

    folder: Path
    seed: int
    registry: Registry
    progress: Progress = field(default_factory=SilentProgress)
    log: logging.Logger = field(default_factory=lambda: logging.getLogger("slim"))


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a technique did.

    Args:
        workload: the new workload; the one that was given is untouched.
        details: JSON values for the report. Keys that the report draws: ``"channels"`` (list of
            ``{"name", "kept", "total"}``), ``"history"`` (list of ``{"epoch", "loss", "lr", <metric>…}``),
            ``"layers"`` (list of ``{"name", …figures}``), ``"curves"`` (list of ``{"title", "x_label", "y_label",
            "series": [{"name", "x": […], "y": […]}]}``, each a line chart), ``"plots"`` (list of bars, histograms and
            scatter plots, as :func:`slim_core.report.plots.read_plots` reads them); anything else is listed.
        notes: one line for everything that was left alone, degraded or skipped, with the reason.
    """

    workload: Workload
    details: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Technique(Protocol):
    """A step of a recipe. Registered as a class under its name; an instance is made for each step.

    It may also have, both optional:

    * a static method ``check(config, registry) -> None``, which is called when a recipe is read, before anything runs:
      it raises a ``SlimError`` for what it can know without a model, such as an extra that is missing;
    * a method ``rehearse(workload, config, run) -> Workload | None``, which is called before the long work begins, with
      a copy of the untrained workload, in the order of the steps: it raises a ``SlimError`` for what cannot work with
      this model, such as a budget out of reach or a pattern that matches nothing. It takes seconds, leaves the workload
      as it is, and gives back the workload as the next step would find it: the same structure, whatever the weights.
      ``None`` says that it cannot tell; the steps after it are then not rehearsed.
    """

    name: ClassVar[str]
    Config: ClassVar[type[BaseModel]]

    def run(self, workload: Workload, config: Any, run: Run) -> StepResult: ...
