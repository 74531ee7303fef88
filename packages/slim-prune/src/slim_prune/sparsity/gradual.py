"""``Gradual``: gradual magnitude pruning for one's own training loop (Zhu and Gupta, 2017, arXiv 1710.01878)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn
from torch.optim import Optimizer

from slim_core.graph.isolate import unwrap
from slim_prune.sparsity.errors import SparsityError
from slim_prune.sparsity.masks import SparsityHandle, SparsityMasks
from slim_prune.sparsity.planning import plan
from slim_prune.sparsity.schedule import CubicSchedule, cubic
from slim_prune.sparsity.schemes import NM, Scheme, resolve
from slim_prune.sparsity.sparsity_plan import SparsityPlan


class Gradual:
    """Raises a model's sparsity while it is trained, by the magnitudes that its weights have by then.

    ``step(n)`` is called after the optimizer's step number n (from 0). What was masked stays masked, so the masks of
    one raise contain those of the one before. N:M loosens from m of m to n of m in whole steps: 4:4, 3:4, 2:4.

    Args:
        model: the model.
        schedule: when sparsity is raised.
        sparsity: the final one; not for N:M, which says it itself.
        scheme: see :func:`slim_prune.sparsity.plan`.
        ratios: final shares that stay, by glob.
        include, exclude: globs.
        optimizer: applies the masks after each of its steps too, through a hook.
        gradients: also set the gradients of masked weights to zero.

    Raises:
        SparsityError, BudgetError, PatternError: as :func:`slim_prune.sparsity.plan`, for the final masks.
    """

    def __init__(
        self,
        model: nn.Module,
        schedule: CubicSchedule,
        *,
        sparsity: float | None = None,
        scheme: str | Mapping[str, Any] | Scheme = "unstructured",
        ratios: Mapping[str, float] | None = None,
        include: str | Sequence[str] = (),
        exclude: str | Sequence[str] = (),
        optimizer: Optimizer | None = None,
        gradients: bool = False,
    ) -> None:
        self.schedule, self.scheme, self.final = schedule, resolve(scheme), sparsity
        if isinstance(self.scheme, NM) and self.scheme.permute:
            raise SparsityError("channels are permuted once, before training", hint="apply plan(…).orders first")
        self._model = unwrap(model)
        self._selection: dict[str, Any] = {"include": include, "exclude": exclude}
        self._ratios = dict(ratios or {})
        self._held: SparsityHandle | None = None
        self.plan_at(1.0)  # says now what cannot work at the end
        self._held = SparsityHandle(SparsityMasks({}), self._model, optimizer, gradients=gradients)

    @property
    def _handle(self) -> SparsityHandle:
        assert self._held is not None  # noqa: S101 - set by the constructor
        return self._held

    @property
    def masks(self) -> SparsityMasks:
        """The masks that hold now."""
        return SparsityMasks({}) if self._held is None else self._held.masks

    def step(self, number: int) -> bool:
        """Raise the sparsity where the schedule says so, and apply the masks; return whether they changed."""
        due = self.schedule.due(number) or (number > self.schedule.end and not self.masks)
        if due:
            self._handle.update(self.plan_at(self.progress(number)).masks)
        else:
            self._handle.step()
        return due

    def progress(self, number: int) -> float:
        """Return how far sparsity is raised at a step: 0 before ``begin``, 1 at ``end``, along the cubic curve."""
        schedule = self.schedule
        if number < schedule.begin:
            return 0.0
        if number < schedule.end:
            number -= (number - schedule.begin) % schedule.every
        return cubic(number, schedule.begin, schedule.end, 0.0, 1.0)

    def plan_at(self, progress: float) -> SparsityPlan:
        """Return the plan for the weights as they are now, so far along the way: 1 is the final sparsity.

        Every share of zeros goes from ``schedule.initial`` to its final value, those of ``ratios`` too.
        """
        initial = self.schedule.initial
        previous = self.masks or None
        if isinstance(self.scheme, NM):
            share = _between(1 - initial, self.scheme.n / self.scheme.m, progress)
            n = max(self.scheme.n, math.ceil(self.scheme.m * share - 1e-9))
            if n >= self.scheme.m:
                return self._dense()
            return plan(self._model, scheme=replace(self.scheme, n=n), previous=previous, **self._selection)
        ratios = {glob: _between(1 - initial, ratio, progress) for glob, ratio in self._ratios.items()}
        sparsity = None if self.final is None else 1 - _between(1 - initial, 1 - self.final, progress)
        return plan(
            self._model, scheme=self.scheme, sparsity=sparsity, ratios=ratios, previous=previous, **self._selection
        )

    def restore(self, masks: Mapping[str, Any]) -> None:
        """Take masks of an interrupted run back, and apply them."""
        self._handle.update(SparsityMasks(masks))

    def remove(self) -> None:
        """Take the hooks off; weights and masks stay as they are."""
        self._handle.remove()

    def _dense(self) -> SparsityPlan:
        from slim_prune.sparsity.targets import find_targets

        selection = {
            key: (value,) if isinstance(value, str) else tuple(value) for key, value in self._selection.items()
        }
        targets = find_targets(self._model, **selection)
        masks = {target.name: target.tensor.detach().new_ones(target.tensor.shape).bool() for target in targets}
        axes = {target.name: target.axis for target in targets}
        return SparsityPlan(type(self._model).__name__, self.scheme, SparsityMasks(masks), axes)


def _between(first: float, last: float, progress: float) -> float:
    return last if progress >= 1 else first + (last - first) * progress
