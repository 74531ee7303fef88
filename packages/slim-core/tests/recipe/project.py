"""A small project for the tests: a model, data, and techniques that need nothing but the core.

Loaded as a file, as `slim run --load` does.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

import slim_core
from slim_core.data import Dataset, TensorSource
from slim_core.technique import Run, StepResult, StrictConfig
from slim_core.training import FitConfig, fit
from slim_core.workload import Workload


@slim_core.register.model("t/net")
class Net(nn.Module):
    def __init__(self, width: int = 16, num_classes: int = 3, broken: bool = False) -> None:
        super().__init__()
        self.first = nn.Linear(8, width)
        self.norm = nn.BatchNorm1d(width)
        self.last = nn.Linear(width, num_classes)
        self.broken = broken

    def forward(self, x: Tensor) -> Tensor:  # (N, 8) -> (N, classes)
        if self.broken:
            x = x.reshape(-1, 7)
        return self.last(torch.relu(self.norm(self.first(x))))


@slim_core.register.dataset("t/data")
def data(samples: int = 192, seed: int = 0, slow: float = 0.0) -> Dataset:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(samples) % 3
    centres = 2 * torch.randn(3, 8, generator=generator)
    inputs = centres[labels] + torch.randn(samples, 8, generator=generator)
    cut = samples * 2 // 3
    source = SlowSource if slow else TensorSource
    train = source(inputs[:cut], labels[:cut], 16, shuffle=True, seed=seed)
    if slow:
        train.seconds = slow
    return Dataset(train, TensorSource(inputs[cut:], labels[cut:], 16), (inputs[:1].clone(),), 3, (8,))


class SlowSource(TensorSource):
    """Takes its time at every epoch, and tells which epochs were begun, so that a test can kill the run in between."""

    seconds = 0.0

    def __iter__(self):
        log = os.environ.get("SLIM_TEST_EPOCHS")
        if log:
            with open(log, "a", encoding="utf-8") as handle:
                handle.write(f"{self.epoch}\n")
        time.sleep(self.seconds)
        yield from super().__iter__()


class NudgeConfig(StrictConfig):
    by: float = 0.0
    fail: bool = False
    interrupt: str | None = None
    fit: FitConfig | None = None


@slim_core.register.technique("t.nudge")
class Nudge:
    """Shifts every weight, then fine-tunes; notes and details go into the report."""

    name: ClassVar[str] = "t.nudge"
    Config = NudgeConfig

    def run(self, workload: Workload, config: NudgeConfig, run: Run) -> StepResult:
        import copy

        if config.interrupt is not None and not Path(config.interrupt).exists():
            Path(config.interrupt).touch()
            raise KeyboardInterrupt
        if config.fail:
            raise slim_core.SlimError("this step fails", hint="do not ask it to")
        model = copy.deepcopy(workload.model)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(config.by).add_(1e-3 * torch.randn_like(parameter))
        workload = workload.with_model(model)
        history: list[dict[str, Any]] = []
        if config.fit is not None:
            result = fit(workload, config.fit, run=run)
            workload, history = result.workload, [dict(row) for row in result.history]
        details = {
            "channels": [{"name": "first", "kept": 12, "total": 16}],
            "history": history,
            "layers": [{"name": "first", "shift": config.by}],
            "seed": run.seed,
            "odd": float("nan"),
        }
        return StepResult(workload, details, ("the last layer was left alone",))
