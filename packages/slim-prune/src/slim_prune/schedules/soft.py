"""Soft filter pruning: after each epoch the least important channels are set to zero, and go on learning.

He et al., 2018, "Soft Filter Pruning" (arXiv 1808.06866), with the asymptotic rate of He et al., 2019 (arXiv
1808.07471), over whole channel groups instead of single filters. One hard cut at the end.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from slim_core.data import to_device
from slim_core.graph import analyse
from slim_core.graph.isolate import unwrap
from slim_core.graph.masking import divides
from slim_core.graph.rules.base import Preference
from slim_core.graph.types import ChannelGroup, Coupling, Member
from slim_core.training.callbacks import Callback, FitState
from slim_core.training.rng import kept_generators
from slim_core.workload import Inputs, Workload
from slim_prune.edits import Indices, state_of
from slim_prune.errors import PlanError
from slim_prune.planning import plan
from slim_prune.prune_plan import PrunePlan
from slim_prune.schedules.packing import packed, unpacked
from slim_prune.schedules.path import asymptotic
from slim_prune.schedules.stepwise import Planner
from slim_prune.surgery import Ema

if TYPE_CHECKING:
    from slim_core.registry import Registry
    from slim_prune.allocation import Allocation
    from slim_prune.allocation.problem import Problem
    from slim_prune.context import Context
    from slim_prune.importance import Importance

Zero = Literal["channels", "filters"]

_SCALES = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.PReLU)


@dataclass(frozen=True, slots=True)
class SoftStep:
    """What was zeroed after an epoch.

    Args:
        epoch: finished epochs.
        rate: part of the final pruning rate in force, 0 to 1.
        zeroed: units that were set to zero.
        changed: units among them that were not zeroed the time before.
    """

    epoch: float
    rate: float
    zeroed: int
    changed: int


class SoftPruning(Callback):
    """Soft filter pruning, as a callback of :func:`slim_core.training.fit` or as calls in a user's own loop.

    In a loop of your own::

        soft = SoftPruning(example_inputs, {"macs": 0.5})
        soft.begin(model, epochs=20)
        for epoch in range(20):
            train_one_epoch(model)
            soft.zero(epoch + 1)
        plan = soft.finish()          # the hard cut, in place

    How many channels each group loses in the end is fixed at the beginning: the budget decides, and an allocation that
    looks at weights or data sees those of that moment. In training from random weights, only ``uniform`` makes sense
    then, which looks at neither, as in the paper; :class:`GradualPruning` plans the counts anew on the way. Which
    channels go is chosen anew after each epoch from the weights of the moment: a channel that was zeroed and grew back
    may stay. Momentum and gradients are left alone; with plain SGD and no momentum, a zeroed channel behind a ReLU has
    no gradient and cannot come back.

    Args:
        example_inputs: inputs of one call.
        budget: the final budget, met by the hard cut.
        asymptotic: let the rate grow towards its goal (ASFP); otherwise it is the goal from the first epoch (SFP).
        every: zero after every so many epochs, and after the last one.
        zero: ``channels``: the layers that make a channel and the shifts of its norms, so that it is silent as after
            the cut; ``filters``: only the layers that make it, as in the paper.
        prefer: what attention loses first, see :func:`slim_prune.plan`.
        folder: where criteria and allocations keep resumable state.
        planner: instead of :func:`slim_prune.plan`.
        registry: where cost models and criteria are looked up.
        options: further arguments of the planner (``importance``, ``allocation``, ``include``, ``ratios``, …).
    """

    def __init__(
        self,
        example_inputs: Inputs,
        budget: Mapping[str, float | int | str] | None = None,
        *,
        asymptotic: bool = True,
        every: int = 1,
        zero: Zero = "channels",
        prefer: Preference = "heads",
        folder: str | os.PathLike[str] | None = None,
        planner: Planner = plan,
        registry: Registry | None = None,
        **options: Any,
    ) -> None:
        if every < 1:
            raise PlanError(f"every must be at least 1, not {every}", where="every")
        self.goal: PrunePlan | None = None
        self.plan: PrunePlan | None = None
        self.steps: list[SoftStep] = []
        self._inputs, self._budget, self._folder = example_inputs, budget, folder
        self._asymptotic, self._every, self._what = asymptotic, every, zero
        self._prefer: Preference = prefer
        self._planner, self._registry, self._options = planner, registry, dict(options)
        self._model: nn.Module | None = None
        self._coupling: Coupling | None = None
        self._epochs = 0
        self._last: PrunePlan | None = None
        self._resumed = False

    # --- plain calls ---

    def begin(self, model: nn.Module, epochs: int) -> PrunePlan:
        """Plan how many channels each group loses in the end. The model is not changed.

        Args:
            model: the model at full size.
            epochs: epochs of the whole run.

        Raises:
            BudgetError: the budget is out of reach.
        """
        if not self._resumed:
            self.goal, self._last, self.steps = None, None, []
        self._resumed = False
        self._model, self._epochs = unwrap(model), epochs
        self._coupling = analyse(self._model, self._inputs, prefer=self._prefer, registry=self._registry)
        if self.goal is None:
            with kept_generators():
                self.goal = self._planner(
                    self._model,
                    self._inputs,
                    self._budget,
                    coupling=self._coupling,
                    registry=self._registry,
                    **{"folder": self._folder, **self._options},
                )
        return self.goal

    def zero(self, epoch: int) -> SoftStep | None:
        """Choose and zero channels after ``epoch`` finished epochs; ``None`` where it is not time.

        Raises:
            PlanError: :meth:`begin` was not called.
        """
        if epoch % self._every and epoch < self._epochs:
            return None
        model, coupling, goal = self._begun()
        rate = asymptotic(min(1.0, epoch / self._epochs)) if self._asymptotic else 1.0
        counts = {group.name: _count(group.units, len(group.kept), rate) for group in goal.groups}
        chosen = self._choose(model, coupling, counts)
        kept = chosen.kept
        silence_(model, coupling, kept, zero=self._what)
        before = self._last.kept if self._last is not None else {}
        gone = {name: _removed(kept[name], coupling.group(name).units) for name in kept}
        earlier = {name: _removed(before[name], coupling.group(name).units) for name in before}
        changed = sum(len(np.setdiff1d(gone[name], earlier.get(name, gone[name][:0]))) for name in gone)
        self._last = chosen
        step = SoftStep(epoch, rate, sum(len(removed) for removed in gone.values()), changed)
        self.steps.append(step)
        return step

    def finish(self, *, optimizer: Optimizer | None = None, ema: Ema | None = None) -> PrunePlan:
        """Cut the channels that were zeroed last away, in place, and return the plan, which meets the final budget.

        Where the final rate was not reached, channels are chosen and zeroed once more before.

        Args:
            optimizer: the model's optimizer, whose state is cut alike.
            ema: a moving average of the weights, cut alike.

        Raises:
            PlanError: :meth:`begin` was not called.
        """
        model, coupling, goal = self._begun()
        counts = {group.name: len(group.kept) for group in goal.groups}
        if self._last is None or {group.name: len(group.kept) for group in self._last.groups} != counts:
            self.zero(self._epochs)
        assert self._last is not None  # noqa: S101  zero() sets it at the last epoch
        options = {**self._options, "importance": _by_choice(self._last.kept), "allocation": fixed(counts)}
        made = self._planner(
            model,
            self._inputs,
            self._budget,
            coupling=coupling,
            registry=self._registry,
            **{**options, "folder": None},
        )
        self.plan = replace(made, importance=goal.importance, allocation=goal.allocation, details=goal.details)
        self.plan.apply(model, inplace=True, optimizer=optimizer, ema=ema)
        return self.plan

    def applied_to(self, workload: Workload) -> Workload:
        """Return a workload that ``fit`` gave back with the record of the cut, as checkpoints need it.

        Raises:
            PlanError: the model was not cut yet.
        """
        if self.plan is None:
            raise PlanError("nothing was cut yet", hint="call finish(), or pass the callback to fit")
        return workload.with_model(workload.model, self.plan.transform())

    # --- as a callback ---

    def on_fit_start(self, state: FitState) -> None:
        self._inputs = to_device(self._inputs, state.device)
        self.begin(state.model, state.epochs)

    def on_epoch_end(self, state: FitState) -> None:
        last = state.epoch >= state.epochs or state.stop
        self.zero(self._epochs if last else state.epoch)

    def on_fit_end(self, state: FitState) -> None:
        self.finish()

    def state(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        if self.goal is not None:
            tensors["goal"] = packed(self.goal)
        if self._last is not None:
            tensors["last"] = packed(self._last)
            rows = [[step.epoch, step.rate, step.zeroed, step.changed] for step in self.steps]
            tensors["steps"] = torch.tensor(rows, dtype=torch.float64)
        return tensors

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        self._resumed = True
        self.goal = unpacked(tensors["goal"]) if "goal" in tensors else None
        self._last = unpacked(tensors["last"]) if "last" in tensors else None
        rows = tensors["steps"].tolist() if "steps" in tensors else []
        self.steps = [SoftStep(int(epoch), rate, int(zeroed), int(new)) for epoch, rate, zeroed, new in rows]

    # --- inside ---

    def _begun(self) -> tuple[nn.Module, Coupling, PrunePlan]:
        if self._model is None or self._coupling is None or self.goal is None:
            raise PlanError("soft pruning has not begun", hint="call begin(model, epochs) first")
        return self._model, self._coupling, self.goal

    def _choose(self, model: nn.Module, coupling: Coupling, counts: Mapping[str, int]) -> PrunePlan:
        options = {name: value for name, value in self._options.items() if name != "ratios"}
        with kept_generators():
            return self._planner(
                model,
                self._inputs,
                {"macs": 1.0},  # the counts decide
                coupling=coupling,
                registry=self._registry,
                **{**options, "allocation": fixed(counts), "round_to": 1, "min_channels": 1, "folder": None},
            )


def fixed(counts: Mapping[str, int]) -> Allocation:
    """Return an allocation that gives these counts, whatever the weights."""

    def fixed_counts(problem: Problem, context: Context) -> Mapping[str, int]:
        return {choice.name: counts[choice.name] for choice in problem.choices if choice.name in counts}

    return fixed_counts


def _by_choice(kept: Mapping[str, Indices]) -> Importance:
    """Return a criterion by which exactly these units are the best."""

    def chosen(group: ChannelGroup, tensors: Mapping[str, Tensor]) -> Tensor:
        scores = torch.zeros(group.units, dtype=torch.float64)
        scores[torch.from_numpy(kept[group.name])] = 1.0
        return scores

    return chosen


def silence_(
    model: nn.Module, coupling: Coupling, kept: Mapping[str, Indices | Sequence[int]], *, zero: Zero = "channels"
) -> None:
    """Set what makes the channels that ``kept`` leaves out to zero, in place; what consumes them stays.

    The channels are silent (where the functions between map zero to zero) and can learn on: what consumes them, and
    the scales of norms, keep their weights.

    Args:
        model: the model at full size.
        coupling: its analysis.
        kept: kept unit numbers by group name.
        zero: ``channels``: also shifts of norms and other per-channel tensors; ``filters``: only the layers that make
            the channels.
    """
    state, modules = state_of(model), dict(model.named_modules(remove_duplicate=False))
    with torch.no_grad():
        for name, units in kept.items():
            group = coupling.group(name)
            removed = _removed(np.asarray(units, dtype=np.int64), group.units)
            if len(removed) == 0:
                continue
            for member in group.members:
                if _silenced(member, modules.get(member.module), zero):
                    tensor = state[member.name]
                    index = torch.from_numpy(member.indices[removed].reshape(-1)).to(tensor.device)
                    tensor.index_fill_(member.dim, index, 0)


def _silenced(member: Member, module: nn.Module | None, zero: Zero) -> bool:
    leaf = member.name.rsplit(".", 1)[-1]
    if member.kind == "in" or divides(member.name, member.dim):
        return False
    if zero == "filters":
        return member.kind == "out" or isinstance(module, nn.Linear | nn.modules.conv._ConvNd)  # with their biases
    return not (leaf == "weight" and _scales(module))


def _scales(module: nn.Module | None) -> bool:
    """Return whether a module's weight multiplies channels one by one: a silent channel stays silent, and it learns on.

    A norm, a PReLU or a depthwise convolution.
    """
    if isinstance(module, nn.modules.conv._ConvNd):
        return module.groups == module.in_channels > 1
    return isinstance(module, _SCALES)


def _count(units: int, goal: int, rate: float) -> int:
    """Return how many of ``units`` stay when ``rate`` of the final pruning is in force, rounded to keep more."""
    return units - int((units - goal) * rate + 1e-9)


def _removed(kept: Indices, units: int) -> Indices:
    mask = np.ones(units, dtype=bool)
    mask[kept] = False
    return np.flatnonzero(mask)
