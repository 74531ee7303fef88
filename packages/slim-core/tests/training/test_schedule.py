from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from slim_core.training import FitConfig, lr_scale


def reference(config: FitConfig, steps: int) -> np.ndarray:
    """The whole schedule at once, as arrays."""
    total, warmup = config.epochs * steps, config.warmup_epochs * steps
    position = np.arange(total, dtype=float)
    if config.schedule == "constant":
        scale = np.ones(total)
    elif config.schedule == "step":
        scale = config.step_factor ** (position[:, None] >= np.array(config.milestones) * total).sum(1)
    else:
        phase = np.pi * (position - warmup) / max(1.0, total - warmup)
        scale = config.lr_floor + (1 - config.lr_floor) * (1 + np.cos(phase)) / 2
    growing = position < warmup
    scale[growing] = np.minimum(1.0, (position[growing] + 1) / warmup) if warmup else 0
    return scale


@pytest.mark.parametrize("schedule", ["cosine", "step", "constant"])
@pytest.mark.parametrize("warmup", [0, 0.3, 1, 4])
@pytest.mark.parametrize("steps", [1, 7])
def test_the_schedule_is_the_reference(schedule: str, warmup: float, steps: int):
    config = FitConfig(epochs=4, schedule=schedule, warmup_epochs=warmup, lr_floor=0.05, milestones=(0.25, 0.6))
    scales = [lr_scale(config, step, steps) for step in range(4 * steps)]
    np.testing.assert_allclose(scales, reference(config, steps), rtol=1e-12)


def test_cosine_passes_through_the_known_points():
    config = FitConfig(epochs=10, lr_floor=0.1)
    assert lr_scale(config, 0, 10) == 1.0
    assert lr_scale(config, 50, 10) == pytest.approx(0.55)
    assert lr_scale(config, 100, 10) == pytest.approx(0.1)


def test_step_divides_at_the_milestones():
    config = FitConfig(epochs=8, schedule="step", milestones=(0.5, 0.75), step_factor=0.1)
    assert [lr_scale(config, step, 1) for step in (3, 4, 5, 6, 7)] == pytest.approx([1, 0.1, 0.1, 0.01, 0.01])


def test_warmup_reaches_the_top_and_the_rate_never_rises_again():
    config = FitConfig(epochs=10, warmup_epochs=2)
    scales = [lr_scale(config, step, 5) for step in range(50)]
    assert scales[:10] == pytest.approx([(n + 1) / 10 for n in range(10)])
    assert scales[10] == 1.0
    assert all(a >= b for a, b in pairwise(scales[10:]))
