"""What techniques hook into ``fit``: callbacks, and the state that they see and may change."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from slim_core.training.config import FitConfig
from slim_core.training.ema import Ema
from slim_core.workload import Task


@dataclass(slots=True)
class FitState:
    """Where a run of ``fit`` stands. Mutable; callbacks may change what is said to be theirs to change.

    Attributes:
        model: the model that is trained, never wrapped; its weights may be changed.
        optimizer: the optimizer; its groups' ``lr`` is set before each step.
        task: loss and metrics.
        config: the configuration.
        device: where the model is.
        epochs: epochs of the whole run.
        steps_per_epoch: optimizer steps per epoch, or ``None`` if the data does not know its length.
        epoch: the present epoch, from 0.
        step: optimizer steps taken before this one, over the whole run.
        batch: the present batch, on the device.
        outputs: what the model returned for it.
        loss: the loss that is minimized, with the terms that callbacks added.
        lr: the present learning rate.
        task_weight: multiplier of the task's own loss; change it to blend in another (distillation).
        history: one row per finished epoch.
        stop: set it to end the run after the present epoch.
        ema: the moving average of the weights, or ``None``; a callback that makes tensors smaller cuts it too.
        processes: how many processes share the run.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    task: Task
    config: FitConfig
    device: torch.device
    epochs: int
    steps_per_epoch: int | None
    epoch: int = 0
    step: int = 0
    batch: Any = None
    outputs: Any = None
    loss: Tensor | None = None
    lr: float = 0.0
    task_weight: float = 1.0
    history: list[dict[str, float]] = field(default_factory=list)
    stop: bool = False
    ema: Ema | None = None
    processes: int = 1


class Callback:
    """Base of callbacks: override what is needed. Called in the order in which they were passed to ``fit``.

    A callback with state of its own that changes while training returns it from :meth:`state`, so that a resumed run
    continues bit for bit.
    """

    def on_resume(self, state: FitState, tensors: dict[str, Tensor]) -> None:
        """Called in a resumed run before anything is restored, with what :meth:`state` returned.

        A callback that makes the model smaller while it is trained brings model and moving average to the shapes that
        they had when the state was written; their values are put back after that.
        """

    def on_fit_start(self, state: FitState) -> None:
        """Called once, with the model on its device, after the state of a resumed run was restored."""

    def on_epoch_start(self, state: FitState) -> None:
        """Called after the model was put into training mode (a callback may freeze parts of it again)."""

    def on_step_start(self, state: FitState) -> None:
        """Called before the forward pass, with ``state.batch`` set."""

    def loss(self, outputs: Any, batch: Any, state: FitState) -> Tensor | None:
        """Return a scalar to add to ``state.task_weight`` times the task's loss, or ``None``."""
        return None

    def on_backward_end(self, state: FitState) -> None:
        """Called when all gradients are there, before they are clipped and the optimizer steps."""

    def on_step_end(self, state: FitState) -> None:
        """Called after the optimizer's step, before the moving average takes the weights in: masks are applied here."""

    def on_epoch_end(self, state: FitState) -> None:
        """Called after validation, with the epoch's row in ``state.history``, before the state is written."""

    def on_fit_end(self, state: FitState) -> None:
        """Called once at the end; with a moving average, the model holds the averaged weights by now."""

    def state(self) -> dict[str, Tensor]:
        """Return what a resumed run needs, as tensors by name."""
        return {}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Take back what :meth:`state` returned."""
