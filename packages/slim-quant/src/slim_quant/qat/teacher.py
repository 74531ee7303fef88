"""Distillation from the float model: training keeps the quantized outputs close to those that the model had before.

Other teachers and losses are callbacks of ``fit`` too, slim-distill's among them: they go beside :class:`QATSchedule`.
"""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from torch import Tensor, nn

from slim_core.errors import DataError, SlimError
from slim_core.modes import set_mode
from slim_core.training.callbacks import Callback, FitState
from slim_core.workload import call, tensors_of

Loss = Literal["soft_labels", "mse"]


class FloatTeacher(Callback):
    """Adds a loss between the outputs of the model and those of a teacher, in float and in evaluation mode.

    The loss is ``(1 - weight)`` times the task's and ``weight`` times

    * ``"soft_labels"``: ``T^2`` times the Kullback-Leibler divergence of the softmax at temperature ``T`` over the last
      dimension, averaged over the rest (Hinton et al., 2015, arXiv 1503.02531);
    * ``"mse"``: the mean squared difference.

    Args:
        teacher: the float model; a copy is kept.
        weight: share of this loss, above 0 and at most 1.
        temperature: ``T``.
        loss: which of the two.

    Raises:
        SlimError: a number out of range, or an unknown loss.
    """

    def __init__(
        self, teacher: nn.Module, *, weight: float = 0.5, temperature: float = 2.0, loss: Loss = "soft_labels"
    ) -> None:
        if not 0 < weight <= 1:
            raise SlimError(f"the weight of a distillation loss is above 0 and at most 1, not {weight:g}")
        if temperature <= 0:
            raise SlimError(f"a temperature is above 0, not {temperature:g}")
        if loss not in ("soft_labels", "mse"):
            raise SlimError(f"unknown distillation loss '{loss}'", hint="known: soft_labels, mse")
        self._teacher = copy.deepcopy(teacher).requires_grad_(False)
        self._weight, self._temperature, self._loss = weight, temperature, loss
        set_mode(self._teacher, False)

    def on_fit_start(self, state: FitState) -> None:
        self._teacher.to(state.device)
        state.task_weight = 1 - self._weight

    def loss(self, outputs: Any, batch: Any, state: FitState) -> Tensor | None:
        with torch.no_grad():
            wanted = _floats(call(self._teacher, state.task.inputs(batch)))
        found = _floats(outputs)
        if len(found) != len(wanted) or not found:
            raise DataError(f"the teacher has {len(wanted)} outputs in floating point, and the model {len(found)}")
        terms = [self._term(one.float(), other.float()) for one, other in zip(found, wanted, strict=True)]
        return self._weight * torch.stack(terms).mean()

    def _term(self, found: Tensor, wanted: Tensor) -> Tensor:
        if self._loss == "mse":
            return nn.functional.mse_loss(found, wanted)
        classes = found.shape[-1] if found.dim() else 1
        logs = [
            nn.functional.log_softmax(item.reshape(-1, classes) / self._temperature, -1) for item in (found, wanted)
        ]
        divergence = nn.functional.kl_div(logs[0], logs[1], reduction="batchmean", log_target=True)
        return self._temperature**2 * divergence


def _floats(outputs: Any) -> list[Tensor]:
    return [tensor for tensor in tensors_of(outputs) if tensor.is_floating_point()]
