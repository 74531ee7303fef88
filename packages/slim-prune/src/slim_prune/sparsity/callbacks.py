"""Sparsity as callbacks of ``fit``: holding masks, and raising sparsity along the cubic schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from slim_core.training.callbacks import Callback, FitState
from slim_prune.sparsity.errors import SparsityError
from slim_prune.sparsity.gradual import Gradual
from slim_prune.sparsity.masks import SparsityHandle, SparsityMasks
from slim_prune.sparsity.schedule import CubicSchedule
from slim_prune.sparsity.schemes import Scheme, resolve


class KeepMasks(Callback):
    """Holds masked weights at zero: after every step, and in the averaged weights at the end.

    Args:
        masks: the masks.
        gradients: also set the gradients of masked weights to zero.
    """

    def __init__(self, masks: SparsityMasks, *, gradients: bool = False) -> None:
        self._masks, self._gradients = masks, gradients
        self._handle: SparsityHandle | None = None

    def on_fit_start(self, state: FitState) -> None:
        self._handle = self._masks.attach(state.model, gradients=self._gradients)

    def on_step_end(self, state: FitState) -> None:
        if self._handle is not None:
            self._handle.step()

    def on_fit_end(self, state: FitState) -> None:
        if self._handle is not None:
            self._handle.step()  # the model holds averages by now: of masked weights, but rounded
            self._handle.remove()
            self._handle = None


class GradualSparsity(Callback):
    """Raises sparsity while ``fit`` runs (Zhu and Gupta, 2017, arXiv 1710.01878).

    Where ``fit`` keeps a moving average, validation during the rise uses averages that are not masked; the final ones
    are.

    Args:
        sparsity: the final share of zeros; not for N:M.
        scheme: see :func:`slim_prune.sparsity.plan`.
        begin, end: shares of the run between which sparsity is raised.
        every: optimizer steps between two raises; ``None``: so many that there are about 30 raises, as in the paper's
            range.
        initial: sparsity at the first raise.
        ratios: final shares that stay, by glob.
        include, exclude: globs.
        gradients: also set the gradients of masked weights to zero.
    """

    def __init__(
        self,
        sparsity: float | None = None,
        *,
        scheme: str | Mapping[str, Any] | Scheme = "unstructured",
        begin: float = 0.0,
        end: float = 0.75,
        every: int | None = None,
        initial: float = 0.0,
        ratios: Mapping[str, float] | None = None,
        include: str | Sequence[str] = (),
        exclude: str | Sequence[str] = (),
        gradients: bool = False,
    ) -> None:
        check_span(begin, end)
        self.scheme = resolve(scheme)
        self._begin, self._end, self._every = begin, end, every
        self._initial = initial
        self._options: dict[str, Any] = {
            "sparsity": sparsity, "scheme": self.scheme, "ratios": ratios, "include": include, "exclude": exclude,
            "gradients": gradients,
        }  # fmt: skip
        self._gradual: Gradual | None = None
        self._saved: dict[str, Tensor] = {}
        self.masks = SparsityMasks({})

    def on_fit_start(self, state: FitState) -> None:
        if state.steps_per_epoch is None:
            raise SparsityError(
                "the training data does not say how many batches it has, and the schedule needs to know",
                hint="give it a __len__",
            )
        total = state.epochs * state.steps_per_epoch
        schedule = schedule_for(total, self._begin, self._end, self._every, self._initial)
        self._gradual = Gradual(state.model, schedule, **self._options)
        if self._saved:
            self._gradual.restore(self._saved)
            self.masks = self._gradual.masks

    def on_step_end(self, state: FitState) -> None:
        if self._gradual is not None:
            self._gradual.step(state.step)
            self.masks = self._gradual.masks

    def on_fit_end(self, state: FitState) -> None:
        if self._gradual is not None:
            self._gradual.masks.apply_(state.model)
            self.masks = SparsityMasks({name: mask.cpu() for name, mask in self._gradual.masks.items()})
            self._gradual.remove()
            self._gradual = None

    def state(self) -> dict[str, Tensor]:
        return {name: mask.to(torch.uint8) for name, mask in self.masks.items()}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        self._saved = {name: tensor.bool() for name, tensor in tensors.items()}
        self.masks = SparsityMasks(self._saved)


def schedule_for(steps: int, begin: float, end: float, every: int | None, initial: float) -> CubicSchedule:
    """Return the schedule over a run of so many steps, from shares of it."""
    check_span(begin, end)
    first, last = math.floor(begin * steps), min(steps - 1, math.ceil(end * steps))
    return CubicSchedule(first, max(first, last), every or max(1, (last - first) // 30), initial)


def check_span(begin: float, end: float) -> None:
    """Check shares of a run.

    Raises:
        SparsityError: they are not 0 <= begin < end <= 1.
    """
    if not 0 <= begin < end <= 1:
        raise SparsityError(f"begin and end are shares of the run, 0 <= begin < end <= 1, not {begin:g} and {end:g}")
