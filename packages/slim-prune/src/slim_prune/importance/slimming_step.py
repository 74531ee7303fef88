"""The recipe step ``prune.slimming``: training with the penalty of network slimming. It removes nothing.

What it prepares is the next step's work: ``prune.global`` or ``prune.uniform`` with ``importance: bn_scale``.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import ConfigDict, Field

from slim_core.technique import Run, StepResult, StrictConfig
from slim_core.training import FitConfig, fit
from slim_core.workload import Workload
from slim_prune.importance.slimming import NEAR_ZERO, Slimming, norm_scales


class SlimmingConfig(StrictConfig):
    """Configuration of ``prune.slimming``."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    strength: float = Field(1e-4, gt=0, allow_inf_nan=False)
    """Of the penalty on the norms' scales; the paper takes 1e-5 to 1e-4, chosen by grid search."""
    include: list[str] = Field(default_factory=list)
    """Globs over module paths whose norms are made sparse; empty: all."""
    exclude: list[str] = Field(default_factory=list)
    """Globs over module paths whose norms are left alone; they win over ``include``."""
    fit: FitConfig = Field(default_factory=lambda: FitConfig.model_validate({}))
    """How to train."""


class SlimmingTraining:
    """Train the model while a penalty makes the scales of its batch norms small."""

    name: ClassVar[str] = "prune.slimming"
    Config: ClassVar[type[SlimmingConfig]] = SlimmingConfig

    def rehearse(self, workload: Workload, config: SlimmingConfig, run: Run) -> Workload:
        """Training leaves the structure as it is.

        Raises:
            PatternError: a pattern matches nothing.
            SlimError: the model has no norm with a scale.
        """
        norm_scales(workload.model, include=config.include, exclude=config.exclude)
        return workload

    def run(self, workload: Workload, config: SlimmingConfig, run: Run) -> StepResult:
        callback = Slimming(config.strength, include=config.include, exclude=config.exclude)
        result = fit(workload, config.fit, run=run, callbacks=[callback])
        scales = norm_scales(result.workload.model, include=config.include, exclude=config.exclude)
        flat = {name: scale.detach().abs().double().cpu() for name, scale in scales.items()}
        small = sum(int((values < NEAR_ZERO).sum()) for values in flat.values())
        total = sum(values.numel() for values in flat.values())
        details = {
            "history": [dict(row) for row in result.history],
            "layers": [
                {
                    "name": name,
                    "scales": values.numel(),
                    f"below {NEAR_ZERO:g}": int((values < NEAR_ZERO).sum()),
                    "median scale": float(torch.median(values)),
                }
                for name, values in flat.items()
            ],
        }
        note = f"{small} of {total} norm scales are below {NEAR_ZERO:g}, in {len(flat)} layers"
        return StepResult(result.workload, details, (note,))
