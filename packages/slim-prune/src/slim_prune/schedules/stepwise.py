"""``Stepwise``: one final budget, reached in several cuts, each planned anew from the weights of the moment.

It serves a user's own loop, :func:`~slim_prune.schedules.iterative.prune_iteratively` and
:class:`~slim_prune.schedules.gradual.GradualPruning`. Not here: any training.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Optimizer

from slim_core.budget import parse_budget
from slim_core.errors import BudgetError
from slim_core.graph import analyse
from slim_core.graph.isolate import unwrap
from slim_core.graph.rules.base import Preference
from slim_core.graph.types import ChannelGroup, Coupling
from slim_core.workload import Inputs
from slim_prune.allocation.problem import Choice, Problem
from slim_prune.composition import budget_notes
from slim_prune.costs import cost_models
from slim_prune.errors import PlanError
from slim_prune.options import as_patterns, check_numbers, choices_of
from slim_prune.planning import plan
from slim_prune.prune_plan import PrunePlan
from slim_prune.schedules.path import Spacing, limit_at, shares
from slim_prune.selection import matches, producers
from slim_prune.surgery import Ema

if TYPE_CHECKING:
    from slim_core.registry import Registry

#: What makes a plan: :func:`slim_prune.plan`, or it with some of its arguments fixed.
Planner = Callable[..., PrunePlan]


class Stepwise:
    """Prunes one model in several steps to one final budget.

    Iterating cuts, and leaves room to train in between::

        for plan in slim_prune.Stepwise(model, example_inputs, {"macs": 0.3}, steps=4):
            train(model)

    Each step is planned from the weights of the moment. Only the last one has to meet the final budget; the others have
    budgets on the way, spaced by ``spacing`` in every bounded cost. Rounding, floors and ratios refer to the original
    model, so that several small steps cannot lead past them.

    Args:
        model: the model, which is cut in place.
        example_inputs: inputs of one call.
        budget: the final budget, as for :func:`slim_prune.plan`.
        steps: number of cuts.
        spacing: ``geometric``: each step takes the same share of what is there; ``linear``: the same amount; ``cubic``:
            much at first, then less.
        include: globs over module paths that may be pruned.
        exclude: globs over module paths that may not be touched.
        ratios: final shares of channels to keep by glob.
        round_to: kept channels are a multiple of this.
        min_channels: the least that a layer keeps, for all layers or by glob.
        prefer: what attention loses first, see :func:`slim_prune.plan`.
        planner: instead of :func:`slim_prune.plan`.
        registry: where cost models and criteria are looked up.
        options: further arguments of the planner (``importance``, ``allocation``, ``task``, ``train``, …).

    Raises:
        BudgetError: the budget is malformed or out of reach, or ``steps`` is not at least 1.
        PatternError: a pattern matches nothing.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Inputs,
        budget: Mapping[str, float | int | str] | None = None,
        *,
        steps: int = 4,
        spacing: Spacing = "geometric",
        include: str | Sequence[str] = (),
        exclude: str | Sequence[str] = (),
        ratios: Mapping[str, float] | None = None,
        round_to: int = 8,
        min_channels: int | Mapping[str, int] = 1,
        prefer: Preference = "heads",
        planner: Planner = plan,
        registry: Registry | None = None,
        **options: Any,
    ) -> None:
        if steps < 1:
            raise BudgetError(f"steps must be at least 1, not {steps}", where="steps")
        bounds = parse_budget(budget) if budget is not None else ()
        if not bounds and not ratios:
            raise BudgetError(
                "neither a budget nor ratios: nothing to do", hint="pass budget={'macs': 0.5} to keep half of the MACs"
            )
        check_numbers(ratios or {}, round_to, min_channels)
        self.model = unwrap(model)
        self.steps = steps
        self.spacing: Spacing = spacing
        self.taken = 0
        self.plan: PrunePlan | None = None
        self.budget = dict(budget or {})
        self._inputs, self._planner, self._registry = example_inputs, planner, registry
        self._options = dict(options)
        self._round_to = round_to
        self._include, self._exclude = as_patterns(include), as_patterns(exclude)
        self._prefer: Preference = prefer
        self._models = cost_models([bound.cost for bound in bounds], registry)
        coupling = self._analysed(self.model)
        self.original = {name: float(model.total(coupling.graph)) for name, model in self._models.items()}
        self.limits = {bound.cost: bound.limit(self.original[bound.cost]) for bound in bounds}
        choices = choices_of(
            self.model,
            coupling,
            include=self._include,
            exclude=self._exclude,
            ratios=ratios,
            round_to=round_to,
            min_channels=min_channels,
        )
        Problem(coupling, choices, self._models, bounds).require_reachable()  # before any training
        self._floors = _floors(choices)
        self._units = {
            choice.name: (choice.group.units, choice.ratio) for choice in choices if choice.ratio is not None
        }
        self._coupling: Coupling | None = coupling  # of the model as it stands at first

    @property
    def finished(self) -> bool:
        """Whether all steps were taken."""
        return self.taken >= self.steps

    def limits_at(self, step: int) -> dict[str, float]:
        """Return what may be left of each bounded cost after ``step`` steps (1 … ``steps``)."""
        share = shares(self.steps)[step - 1]
        return {name: limit_at(self.original[name], limit, share, self.spacing) for name, limit in self.limits.items()}

    def propose(self, model: nn.Module | None = None, *, folder: str | os.PathLike[str] | None = None) -> PrunePlan:
        """Plan the next step. Nothing is changed.

        Args:
            model: the model as the steps so far left it (default: the one that was given at first).
            folder: where criteria and allocations keep resumable state.

        Raises:
            PlanError: all steps were taken.
            BudgetError: the step's budget is out of reach.
        """
        self._require_more()
        model = self.model if model is None else unwrap(model)
        coupling = self._coupling
        if coupling is None:
            coupling = self._analysed(model)
        limits = self.limits_at(self.taken + 1)
        budget = {}
        for name, limit in limits.items():
            present = float(self._models[name].total(coupling.graph))
            budget[name] = min(1.0, limit / present) if present > 0 else 1.0
        ratios = self._ratios(coupling)
        proposed = self._planner(
            model,
            self._inputs,
            budget or {"macs": 1.0},  # ratios alone decide; a planner wants some bound once nothing has a ratio
            coupling=self._permitted(coupling),
            ratios=ratios,
            round_to=self._round_to,
            min_channels=self._floors or 1,
            registry=self._registry,
            **{"folder": folder, **self._options},
        )
        if not budget:
            proposed = replace(proposed, budget={})
        return proposed

    def take(self, proposed: PrunePlan) -> PrunePlan:
        """Count ``proposed`` as the next step, and return the composed plan of all steps so far.

        Cutting the model is the caller's. :meth:`cut` does all of it.

        Raises:
            PlanError: all steps were taken, or the plan is not for the model that the steps so far left.
        """
        self._require_more()
        composed = proposed if self.plan is None else self.plan.then(proposed)
        known = {name: composed.before[name] for name in self.budget if name in composed.before}
        asked = {name: self.budget[name] for name in known}
        heads = tuple(f"{name}: " for name in {*composed.budget, *asked})
        others = [note for note in composed.notes if not (heads and note.startswith(heads))]
        lines = budget_notes(asked, composed.before, composed.after) if self.taken + 1 == self.steps else []
        self.plan = replace(composed, budget=dict(self.budget), notes=(*lines, *others))
        self.taken += 1
        self._coupling = None
        return self.plan

    def cut(
        self,
        *,
        optimizer: Optimizer | None = None,
        ema: Ema | None = None,
        folder: str | os.PathLike[str] | None = None,
    ) -> PrunePlan:
        """Plan the next step, cut the model in place, and return the step's own plan.

        Args:
            optimizer: the model's optimizer, whose state is cut alike.
            ema: a moving average of the weights, cut alike.
            folder: where criteria and allocations keep resumable state.

        Raises:
            PlanError: all steps were taken.
            BudgetError: the step's budget is out of reach.
        """
        proposed = self.propose(folder=folder)
        proposed.apply(self.model, inplace=True, optimizer=optimizer, ema=ema)
        self.take(proposed)
        return proposed

    def __iter__(self) -> Iterator[PrunePlan]:
        while not self.finished:
            yield self.cut()

    def resume(self, taken: int, composed: PrunePlan | None) -> None:
        """Go on after ``taken`` steps that an earlier process took, with their composed plan.

        Raises:
            PlanError: ``taken`` is not between 0 and ``steps``, or the plan is missing.
        """
        if not 0 <= taken <= self.steps or (composed is None) != (taken == 0):
            raise PlanError(f"{taken} of {self.steps} steps cannot have been taken")
        self.taken, self.plan = taken, composed
        if taken:
            self._coupling = None

    def _analysed(self, model: nn.Module) -> Coupling:
        return analyse(model, self._inputs, prefer=self._prefer, registry=self._registry)

    def _require_more(self) -> None:
        if self.finished:
            raise PlanError(f"all {self.steps} steps were taken", hint="make a new Stepwise for a smaller budget")

    def _permitted(self, coupling: Coupling) -> Coupling:
        """Return the coupling with the groups that may be pruned; patterns were checked on the original model."""
        groups = tuple(group for group in coupling.groups if self._may_touch(group))
        names = {group.name for group in groups}
        classes = {name: units for name, units in coupling.unit_classes.items() if name in names}
        return replace(coupling, groups=groups, unit_classes=classes)

    def _may_touch(self, group: ChannelGroup) -> bool:
        if any(matches(pattern, member.module) for pattern in self._exclude for member in group.members):
            return False
        made = producers(group)
        return not self._include or any(matches(pattern, path) for pattern in self._include for path in made)

    def _ratios(self, coupling: Coupling) -> dict[str, float]:
        """Return the share of its present units that each group with a ratio keeps in the next step, by exact path."""
        share = shares(self.steps)[self.taken]
        found: dict[str, float] = {}
        for group in coupling.groups:
            if group.name in self._units:
                units, ratio = self._units[group.name]
                target = limit_at(units, ratio * units, share, self.spacing)
                found.setdefault(_exactly(group), min(1.0, target / group.units))
        return _deepest_first(found)


def _floors(choices: Sequence[Choice]) -> dict[str, int]:
    """Return the least channels that each group may ever keep: a shrunken group has a finer grid than at first."""
    found: dict[str, int] = {}
    for choice in choices:
        channels = choice.grid.counts[0] * choice.grid.channels_per_unit
        pattern = _exactly(choice.group)
        found[pattern] = min(found.get(pattern, channels), channels)
    return _deepest_first(found)


def _exactly(group: ChannelGroup) -> str:
    """Return a pattern for the first module that makes the group's channels."""
    return glob.escape(producers(group)[0])


def _deepest_first(values: Mapping[str, Any]) -> dict[str, Any]:
    """A pattern also matches what is inside of a module, so inner modules come first."""
    return {pattern: values[pattern] for pattern in sorted(values, key=lambda p: -p.count("."))}
