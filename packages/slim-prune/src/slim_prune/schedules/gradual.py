"""Gradual pruning: channels go while a model is being trained, cut for real or masked until the end."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from slim_core.data import to_device
from slim_core.graph.isolate import unwrap
from slim_core.training.callbacks import Callback, FitState
from slim_core.training.rng import kept_generators
from slim_core.workload import Inputs, Workload
from slim_prune.errors import PlanError
from slim_prune.planning import plan
from slim_prune.prune_plan import PrunePlan
from slim_prune.schedules.masks import Masks
from slim_prune.schedules.packing import packed, unpacked
from slim_prune.schedules.path import Spacing
from slim_prune.schedules.stepwise import Planner, Stepwise
from slim_prune.surgery import Ema

if TYPE_CHECKING:
    from slim_core.registry import Registry


@dataclass(frozen=True, slots=True)
class GradualStep:
    """One cut.

    Args:
        number: which, from 1.
        at: optimizer steps that were taken before it.
        after: costs of the model after it.
    """

    number: int
    at: int
    after: Mapping[str, float]


class GradualPruning(Callback):
    """Pruning during training, as a callback of :func:`slim_core.training.fit` or as calls in a user's own loop.

    In a loop of your own::

        gradual = GradualPruning(example_inputs, {"macs": 0.5}, steps=4)
        gradual.begin(model, steps_in_all, optimizer=optimizer, ema=ema)
        for step in range(steps_in_all):
            gradual.step(step)                      # cuts where it is time
            train_one_step(model, optimizer, ema)
        plan = gradual.finish()

    Each cut is planned from the weights of the moment. Cuts are real: model, gradients, optimizer state and moving
    average become smaller together, and training gets faster on the way. ``masked=True`` holds the channels at zero
    instead and cuts once at the end, which computes the same (where no layer or group norm takes statistics over the
    channels) and suits runs of several processes and compiled models, whose shapes must stay.

    Args:
        example_inputs: inputs of one call.
        budget: the final budget, met by the last cut.
        steps: number of cuts.
        start: where the first cut is, as a share of the run.
        end: where the last cut is, as a share of the run; what follows is fine-tuning.
        at_epochs: instead of ``steps``, ``start`` and ``end``: finished epochs before each cut; fractions are possible.
        spacing: how the budgets on the way are spaced; ``cubic``: much at first, then less (Zhu and Gupta, 2017, arXiv
            1710.01878).
        masked: hold masks, and cut at the end.
        folder: where criteria and allocations keep resumable state.
        planner: instead of :func:`slim_prune.plan`.
        registry: where cost models and criteria are looked up.
        options: further arguments of :class:`Stepwise` and of the planner.

    Raises:
        PlanError: ``start``, ``end`` or ``at_epochs`` are not in order.
    """

    def __init__(
        self,
        example_inputs: Inputs,
        budget: Mapping[str, float | int | str] | None = None,
        *,
        steps: int = 4,
        start: float = 0.0,
        end: float = 0.5,
        at_epochs: Sequence[float] | None = None,
        spacing: Spacing = "cubic",
        masked: bool = False,
        folder: str | os.PathLike[str] | None = None,
        planner: Planner = plan,
        registry: Registry | None = None,
        **options: Any,
    ) -> None:
        check_times(steps, start, end, at_epochs)
        self.steps: list[GradualStep] = []
        self.masked = masked
        self._count = len(at_epochs) if at_epochs is not None else steps
        self._start, self._end, self._epochs = start, end, tuple(at_epochs) if at_epochs is not None else None
        self._inputs, self._budget, self._spacing, self._folder = example_inputs, budget, spacing, folder
        self._options = {"planner": planner, "registry": registry, **options}
        self._stepwise: Stepwise | None = None
        self._times: tuple[int, ...] = ()
        self._masks: Masks | None = None
        self._optimizer: Optimizer | None = None
        self._ema: Ema | None = None
        self._cut = False  # whether the model has been cut to the plan
        self._resumed = False
        self._by_epoch = False  # whether times are epochs, because nobody knows how many steps these have

    @property
    def plan(self) -> PrunePlan | None:
        """The composed plan of all cuts so far."""
        return self._stepwise.plan if self._stepwise is not None else None

    # --- plain calls ---

    def begin(
        self,
        model: nn.Module,
        total: int,
        *,
        steps_per_epoch: int | None = None,
        optimizer: Optimizer | None = None,
        ema: Ema | None = None,
    ) -> None:
        """Analyse the model and set the times. Nothing is cut yet.

        Args:
            model: the model, which is trained and cut in place.
            total: optimizer steps of the whole run.
            steps_per_epoch: optimizer steps of an epoch, which ``at_epochs`` needs.
            optimizer: its optimizer, whose state is cut alike.
            ema: a moving average of its weights, cut alike.

        Raises:
            BudgetError: the budget is malformed.
            PatternError: a pattern matches nothing.
        """
        self._optimizer, self._ema = optimizer, ema
        if self._epochs is not None and steps_per_epoch is None:
            raise PlanError("at_epochs needs to know how long an epoch is", hint="pass steps_per_epoch to begin")
        self._prepare(model)
        each = steps_per_epoch or 1
        self._times = self._in_steps(total / each, each)

    def step(self, number: int) -> PrunePlan | None:
        """Call before each optimizer step (``number`` from 0): make the cuts that are due.

        Returns:
            The composed plan if something was cut, else ``None``.

        Raises:
            BudgetError: a budget on the way is out of reach.
        """
        stepwise = self._begun()
        made: PrunePlan | None = None
        while not stepwise.finished and number >= self._times[stepwise.taken]:
            made = self._advance(stepwise, number)
        return made

    def finish(self, *, number: int | None = None) -> PrunePlan:
        """End the run: make the cuts that are left, take the masks away, and return the composed plan.

        Raises:
            PlanError: :meth:`begin` was not called.
        """
        stepwise = self._begun()
        while not stepwise.finished:
            stepwise.taken = max(stepwise.taken, stepwise.steps - 1)  # straight to the final budget
            self._advance(stepwise, number if number is not None else self._times[-1])
        assert stepwise.plan is not None  # noqa: S101  finished
        if self._masks is not None:
            self._masks.remove()
            self._masks = None
        if self.masked and not self._cut:
            stepwise.plan.apply(stepwise.model, inplace=True, optimizer=self._optimizer, ema=self._ema)
        self._cut = True
        return stepwise.plan

    def applied_to(self, workload: Workload) -> Workload:
        """Return a workload that ``fit`` gave back with the record of the cuts, as checkpoints need it.

        Raises:
            PlanError: nothing was cut yet.
        """
        if self.plan is None:
            raise PlanError("nothing was cut yet", hint="call finish(), or pass the callback to fit")
        return workload.with_model(workload.model, self.plan.transform())

    # --- as a callback ---

    def on_resume(self, state: FitState, tensors: dict[str, Tensor]) -> None:
        self._optimizer, self._ema = state.optimizer, state.ema
        self._inputs = to_device(self._inputs, state.device)
        stepwise = self._prepare(state.model)
        self._resumed = True
        if "plan" not in tensors:
            return
        composed = unpacked(tensors["plan"])
        stepwise.resume(int(tensors["taken"]), composed)
        names = [name for name in tensors if name.startswith("after/")]
        for row, (number, at) in enumerate(tensors["steps"].tolist()):
            after = {name.removeprefix("after/"): float(tensors[name][row]) for name in names}
            self.steps.append(GradualStep(int(number), int(at), after))
        if not self.masked:
            composed.apply(state.model, inplace=True, ema=state.ema)

    def on_fit_start(self, state: FitState) -> None:
        if state.processes > 1 and not self.masked:
            raise PlanError(
                "a model that is trained by several processes cannot change its shapes",
                hint="pass masked=True (in a recipe: `masked: true`), which cuts at the end",
            )
        self._optimizer, self._ema = state.optimizer, state.ema
        self._inputs = to_device(self._inputs, state.device)
        if not self._resumed:
            self._prepare(state.model)
        self._resumed = False
        per_epoch = state.steps_per_epoch
        self._times = self._in_steps(state.epochs, per_epoch)
        self._by_epoch = per_epoch is None
        if self.masked and self.plan is not None:
            self._mask(self.plan)

    def on_step_start(self, state: FitState) -> None:
        self.step(state.epoch if self._by_epoch else state.step)

    def on_fit_end(self, state: FitState) -> None:
        self.finish(number=state.epoch if self._by_epoch else state.step)

    def state(self) -> dict[str, Tensor]:
        stepwise = self._stepwise
        if stepwise is None or stepwise.plan is None:
            return {}
        costs = list(self.steps[0].after)
        return {
            "plan": packed(stepwise.plan),
            "taken": torch.tensor(stepwise.taken),
            "steps": torch.tensor([[step.number, step.at] for step in self.steps]),
            **{f"after/{n}": torch.tensor([s.after[n] for s in self.steps], dtype=torch.float64) for n in costs},
        }

    # --- inside ---

    def _prepare(self, model: nn.Module) -> Stepwise:
        with kept_generators():
            self._stepwise = Stepwise(
                unwrap(model), self._inputs, self._budget, steps=self._count, spacing=self._spacing, **self._options
            )
        self.steps, self._masks, self._cut = [], None, False
        return self._stepwise

    def _begun(self) -> Stepwise:
        if self._stepwise is None or not self._times:
            raise PlanError("gradual pruning has not begun", hint="call begin(model, total) first")
        return self._stepwise

    def _advance(self, stepwise: Stepwise, number: int) -> PrunePlan:
        model = stepwise.model
        folder = Path(self._folder) / f"cut-{stepwise.taken + 1}" if self._folder is not None else None
        small = stepwise.plan.apply(model) if self.masked and stepwise.plan is not None else model
        with kept_generators():
            made = stepwise.propose(small, folder=folder)
        if self.masked:
            composed = stepwise.take(made)
            self._mask(composed)
        else:
            made.apply(model, inplace=True, optimizer=self._optimizer, ema=self._ema)
            composed = stepwise.take(made)
        self.steps.append(GradualStep(stepwise.taken, number, dict(made.after)))
        return composed

    def _mask(self, composed: PrunePlan) -> None:
        stepwise = self._begun()
        if self._masks is not None:
            self._masks.remove()
        self._masks = composed.mask_during_training(stepwise.model, self._optimizer)
        if self._ema is not None:
            self._masks.apply_to_average(self._ema)

    def _in_steps(self, epochs: float, per_epoch: int | None) -> tuple[int, ...]:
        """Return when the cuts are due, in optimizer steps; in epochs where nobody knows how long these are."""
        if self._epochs is not None:
            each = [epoch * per_epoch if per_epoch is not None else epoch for epoch in self._epochs]
            return tuple(math.ceil(time - 1e-9) for time in each)
        total = epochs * per_epoch if per_epoch is not None else epochs
        return times(self._count, self._start * total, self._end * total)


def times(count: int, start: float, end: float) -> tuple[int, ...]:
    """Return ``count`` times from ``start`` to ``end``, equally far apart, rounded up; a single one is at ``end``."""
    if count == 1:
        return (math.ceil(end - 1e-9),)
    return tuple(math.ceil(start + (end - start) * number / (count - 1) - 1e-9) for number in range(count))


def check_times(steps: int, start: float, end: float, at_epochs: Sequence[float] | None) -> None:
    """Check when cuts are to be made.

    Raises:
        PlanError: they are not in order.
    """
    if steps < 1:
        raise PlanError(f"steps must be at least 1, not {steps}", where="steps")
    if not 0 <= start <= end <= 1:
        raise PlanError(
            f"start ({start:g}) and end ({end:g}) are shares of the run, in this order",
            where="start",
            hint="0 is the beginning of the training, 1 its end",
        )
    if at_epochs is not None and (not at_epochs or min(at_epochs) < 0 or any(b <= a for a, b in pairwise(at_epochs))):
        raise PlanError(
            f"at_epochs must be a list of growing numbers of epochs, not {list(at_epochs)}", where="at_epochs"
        )
