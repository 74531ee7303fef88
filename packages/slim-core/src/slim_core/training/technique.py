"""Fine-tuning as a step of a recipe: the technique ``fit``."""

from __future__ import annotations

from typing import ClassVar

from slim_core.technique import Run, StepResult
from slim_core.training.config import FitConfig
from slim_core.training.loop import fit
from slim_core.workload import Workload


class FitTechnique:
    """Train the model as it stands."""

    name: ClassVar[str] = "fit"
    Config: ClassVar[type[FitConfig]] = FitConfig

    def run(self, workload: Workload, config: FitConfig, run: Run) -> StepResult:
        result = fit(workload, config, run=run)
        return StepResult(result.workload, {"history": [dict(row) for row in result.history]})

    def rehearse(self, workload: Workload, config: FitConfig, run: Run) -> Workload:
        """Training leaves the structure as it is."""
        return workload
