"""Schedules of training-aware quantization, as a callback of ``fit``: when it begins, and what is frozen when."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from slim_core.errors import SlimError
from slim_core.training.callbacks import Callback, FitState
from slim_quant.qat.activations import ClippingQuantizer
from slim_quant.qat.phases import prepared_model, set_phase

#: PACT's penalty on clipping values: PaddleSlim's default, and the order of the usual weight decay, as in the paper
PENALTY = 1e-4


class QATSchedule(Callback):
    """Says in which part of a run quantization begins, and ranges and batch norms are frozen.

    What holds at a step depends on the step alone, so that a resumed run goes on as the uninterrupted one. Where the
    data does not know its length, shares are rounded to epochs.

    Args:
        start: share of the run that is trained in float first, while moving averages already follow.
        freeze_batch_norm: share of the run after which batch norms are folded with their running statistics: from then
            on training sees exactly what is deployed (Krishnamoorthi, 2018, arXiv 1806.08342). ``None``: never.
        freeze_observers: share after which the ranges of moving averages stay. ``None``: never.
        clipping_penalty: of PACT, ``lambda / 2`` times the sum of the squared clipping values; see
            :func:`clipping_penalty`.

    Raises:
        SlimError: a share is not within 0 and 1.
    """

    def __init__(
        self, *, start: float = 0.0, freeze_batch_norm: float | None = 0.5, freeze_observers: float | None = 0.75,
        clipping_penalty: float = PENALTY,
    ) -> None:  # fmt: skip
        for name, share in (
            ("start", start), ("freeze_batch_norm", freeze_batch_norm), ("freeze_observers", freeze_observers),
        ):  # fmt: skip
            if share is not None and not 0 <= share <= 1:
                raise SlimError(f"{name} is a share of the run, from 0 to 1, not {share:g}")
        self.start, self.freeze_batch_norm, self.freeze_observers = start, freeze_batch_norm, freeze_observers
        self.penalty = clipping_penalty
        self._clips = False

    def on_fit_start(self, state: FitState) -> None:
        """Look whether the model is prepared.

        Raises:
            ModelError: it is not.
        """
        model = prepared_model(state.model)
        self._clips = any(isinstance(module, ClippingQuantizer) for module in model.modules())

    def on_step_start(self, state: FitState) -> None:
        done, total = state.step, state.epochs * (state.steps_per_epoch or 1)
        if state.steps_per_epoch is None:
            done = state.epoch
        set_phase(
            state.model,
            quantize=done >= self.start * total,
            observe=self.freeze_observers is None or done < self.freeze_observers * total,
            live_batch_norm=self.freeze_batch_norm is None or done < self.freeze_batch_norm * total,
        )

    def loss(self, outputs: object, batch: object, state: FitState) -> Tensor | None:
        if not self._clips or self.penalty == 0:
            return None
        return clipping_penalty(state.model, self.penalty)


def clipping_penalty(model: nn.Module, weight: float = PENALTY) -> Tensor:
    """Return PACT's penalty, ``weight / 2`` times the sum of the squared clipping values: add it to the loss.

    It draws clipping values down until clipping costs accuracy (Choi et al., 2018, arXiv 1805.06085, section 3). It is
    0 for models without them.

    Args:
        model: the prepared model.
        weight: lambda.
    """
    inner = prepared_model(model)
    values = [module.alpha() for module in inner.modules() if isinstance(module, ClippingQuantizer)]
    if not values:
        device = next((tensor.device for tensor in inner.parameters()), torch.device("cpu"))
        return torch.zeros((), device=device)
    return weight / 2 * torch.stack(values).square().sum()
