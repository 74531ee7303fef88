"""Learning-rate schedules as one pure function of the step. No state, so nothing to save."""

from __future__ import annotations

import math

from slim_core.training.config import FitConfig


def lr_scale(config: FitConfig, step: int, steps_per_epoch: int) -> float:
    """Return what ``config.lr`` is multiplied by at ``step`` (counted from 0 over the whole run).

    Args:
        config: the schedule and its knobs.
        step: number of optimizer steps taken so far.
        steps_per_epoch: optimizer steps in an epoch.
    """
    total = config.epochs * steps_per_epoch
    warmup = config.warmup_epochs * steps_per_epoch
    if step < warmup:
        return min(1.0, (step + 1) / warmup)
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "step":
        passed = sum(step >= share * total for share in config.milestones)
        return float(config.step_factor**passed)
    done = (step - warmup) / max(1.0, total - warmup)
    return config.lr_floor + (1 - config.lr_floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
