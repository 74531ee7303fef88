"""``PrunePlan``: what to remove, as pure data, and the verbs on it: show, compare, save, apply, mask, roll back.

Not here: how a plan is made (``planning.py``), the surgery itself (``surgery.py``).
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn
from torch.optim import Optimizer

from slim_core.budget import parse_budget
from slim_core.errors import BudgetError
from slim_core.graph.isolate import unwrap
from slim_core.workload import Transform
from slim_prune.allocation.problem import figure
from slim_prune.documents import load_json, save_json
from slim_prune.edits import Edits, Indices, check_indices, decode, encode, state_of
from slim_prune.errors import PlanError
from slim_prune.masking import masked, masked_copy
from slim_prune.record import check_edits, to_transform
from slim_prune.rollback import Rollback
from slim_prune.schema import FORMAT, MAX_BYTES, NO_PLAN, VERSION, PlanData, read, upgraded
from slim_prune.signature import check_description, check_forward
from slim_prune.surgery import Ema, copy_and_operate, operate

if TYPE_CHECKING:
    from rich.console import RenderableType

    from slim_prune.schedules.masks import Masks


@dataclass(frozen=True, slots=True, eq=False)
class GroupPlan:
    """One channel group and what stays of it.

    Args:
        name: the group's name: the path of the first module that makes its channels.
        units: how many units it has.
        channels_per_unit: how many channels of the making layers one unit is.
        kept: the units that stay, ascending.
    """

    name: str
    units: int
    channels_per_unit: int
    kept: Indices


@dataclass(frozen=True, slots=True)
class GroupDifference:
    """A group that two plans treat differently: how many units each keeps, and how many both keep."""

    name: str
    units: int
    first: int
    second: int
    common: int


@dataclass(frozen=True, slots=True)
class Reached:
    """How a plan meets one bound of its budget.

    Args:
        cost: the cost model's name.
        original: the cost of the whole model.
        limit: what the budget allows.
        value: the cost of the pruned model.
    """

    cost: str
    original: float
    limit: float
    value: float

    @property
    def kept(self) -> float:
        """The share of the original cost that is left."""
        return self.value / self.original

    @property
    def distance(self) -> float:
        """The share of the limit that is not used: 0 is on the spot, 0.01 one percent below."""
        return 1.0 - self.value / self.limit

    def __str__(self) -> str:
        return (
            f"{self.cost}: {figure(self.value)} of {figure(self.original)} ({self.kept:.1%}), "
            f"{self.distance:.2%} below the limit of {figure(self.limit)}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the figures with ``distance``."""
        return {**asdict(self), "distance": self.distance}


@dataclass(frozen=True, eq=False)
class PrunePlan:
    """What to remove from one model. Data only: it can be read, compared, written to JSON and applied later.

    Args:
        model_class: the planned model's class name.
        groups: every channel group that the plan was allowed to touch.
        edits: the kept indices of every dimension that shrinks, and the attributes that change with them.
        shapes: the shapes of the model's parameters and buffers, which :meth:`apply` requires.
        ties: names that stand for one tensor.
        importance: name of the criterion.
        allocation: name of the allocation.
        budget: the budget as it was asked.
        before: costs of the model by cost model.
        after: costs of the pruned model.
        inputs: description of the example inputs, for the check of the pruned model; ``None`` when there is none.
        outputs: shapes of the model's output tensors on these inputs.
        notes: one line for everything that was left alone, rounded otherwise, or reached in another way.
        details: what criterion and allocation found on the way (curves, say), as JSON values.
    """

    model_class: str
    groups: tuple[GroupPlan, ...]
    edits: Edits
    shapes: Mapping[str, tuple[int, ...]]
    ties: tuple[tuple[str, ...], ...] = ()
    importance: str = ""
    allocation: str = ""
    budget: Mapping[str, float | int | str] = field(default_factory=dict)
    before: Mapping[str, float] = field(default_factory=dict)
    after: Mapping[str, float] = field(default_factory=dict)
    inputs: Any = None
    outputs: tuple[tuple[int, ...], ...] = ()
    notes: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    _checked_on: weakref.ref[nn.Module] | None = field(default=None, repr=False)

    @property
    def kept(self) -> dict[str, Indices]:
        """The kept units by group name."""
        return {group.name: group.kept for group in self.groups}

    @property
    def reached(self) -> tuple[Reached, ...]:
        """How each bound of the budget is met, in the order of the budget. The tightest one has the least distance."""
        bounds = parse_budget(self.budget) if self.budget else ()
        return tuple(
            Reached(bound.cost, self.before[bound.cost], bound.limit(self.before[bound.cost]), self.after[bound.cost])
            for bound in bounds
            if self.before.get(bound.cost) and bound.cost in self.after
        )

    # --- looking at it ---

    def summary(self) -> list[dict[str, Any]]:
        """Return one row per group: ``{"name", "kept", "total"}``, in channels of the layers that make it."""
        return [
            {
                "name": group.name,
                "kept": len(group.kept) * group.channels_per_unit,
                "total": group.units * group.channels_per_unit,
            }
            for group in self.groups
        ]

    def show(self) -> RenderableType:
        """Return the plan as a table for ``rich``: costs before and after, channels per group, notes."""
        from slim_prune.show import table

        return table(self)

    def picture(self) -> str:
        """Return an SVG drawing, a file of its own: the costs that are left, and kept channels per group."""
        from slim_prune.picture import picture

        return picture(self)

    def diff(self, other: PrunePlan) -> list[GroupDifference]:
        """Return the groups of which this plan and ``other`` keep different units.

        Raises:
            PlanError: the plans are for different models.
        """
        if self.shapes != other.shapes:
            raise PlanError("the plans are for different models: parameter names or shapes differ")
        mine, theirs = {g.name: g for g in self.groups}, {g.name: g for g in other.groups}
        rows = []
        for name in dict.fromkeys([*mine, *theirs]):
            units = (mine.get(name) or theirs[name]).units
            first, second = (
                plans[name].kept if name in plans else np.arange(units, dtype=np.int64) for plans in (mine, theirs)
            )
            if not np.array_equal(first, second):
                rows.append(GroupDifference(name, units, len(first), len(second), len(np.intersect1d(first, second))))
        return rows

    def then(self, other: PrunePlan) -> PrunePlan:
        """Return the plan that does what this plan does, and then what ``other`` does to the model that this one left.

        It equals applying one after the other, as one plan from the original to the final model.
        :func:`slim_prune.compose` takes any number of plans.

        Raises:
            PlanError: ``other`` is for another model than the one that this plan leaves.
        """
        from slim_prune.composition import then

        return then(self, other)

    # --- using it ---

    def check(self, model: nn.Module) -> None:
        """Check that this plan was made for a model like ``model``: names, shapes, ties. Touches nothing.

        Raises:
            PlanError: says the first difference.
        """
        model = unwrap(model)
        state = state_of(model)
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        hint = "a plan fits the model that it was made for; make a new plan for this one"
        for name, shape in self.shapes.items():
            if name not in shapes:
                raise PlanError(
                    f"the model has no '{name}', which the plan expects", where=type(model).__name__, hint=hint
                )
            if shapes[name] != shape:
                raise PlanError(f"the plan expects shape {shape}, the model has {shapes[name]}", where=name, hint=hint)
        for name in shapes:
            if name not in self.shapes:
                raise PlanError(
                    f"the model has '{name}', which the plan does not know", where=type(model).__name__, hint=hint
                )
        if ties_of(state) != self.ties:
            raise PlanError(
                "other tensors are tied in the model than in the plan", where=type(model).__name__, hint=hint
            )

    def apply(
        self, model: nn.Module, *, inplace: bool = False, optimizer: Optimizer | None = None, ema: Ema | None = None
    ) -> nn.Module:
        """Return the pruned model: the same class, with smaller layers.

        The model is checked against the plan before anything is touched. On a model other than the one that the plan
        was made and proved with, a shadow of the result is run on meta tensors first.

        Args:
            model: the model that the plan was made for, or one like it.
            inplace: edit ``model`` itself; its parameters stay the same objects. Otherwise a copy is made.
            optimizer: the model's optimizer, whose state is cut with the parameters (needs ``inplace``).
            ema: a moving average of the weights, a module or tensors by name, cut alike (needs ``inplace``).

        Wrappers (``torch.compile``, ``DataParallel``) are looked through: in place, the wrapper is returned, otherwise
        a copy of the module inside.

        Raises:
            PlanError: the plan does not fit; ``model`` is untouched then.
        """
        inner = unwrap(model)
        self._check_before(inner)
        if inplace:
            operate(inner, self.edits, optimizer=optimizer, ema=ema)
            pruned = inner
        elif optimizer is not None or ema is not None:
            raise PlanError(
                "an optimizer or EMA belongs to the very model that it was made for, and a copy was asked",
                hint="pass inplace=True",
            )
        else:
            model = pruned = copy_and_operate(inner, self.edits)
        self._check_after(pruned)
        return model

    def apply_reversibly(
        self, model: nn.Module, *, optimizer: Optimizer | None = None, ema: Ema | None = None
    ) -> Rollback:
        """Prune ``model`` in place and return what undoes it, bit for bit.

        ``with plan.apply_reversibly(model): ...`` undoes it at the end of the block.

        Raises:
            PlanError: the plan does not fit; ``model`` is untouched then.
        """
        model = unwrap(model)
        self._check_before(model)
        rollback = Rollback(model, self.edits, optimizer=optimizer, ema=ema)
        self._check_after(model)
        return rollback

    def mask(self, model: nn.Module) -> nn.Module:
        """Return a copy of ``model`` at full size in which everything that the plan removes is zero.

        It computes what the pruned model computes.
        """
        self.check(model)
        return masked_copy(unwrap(model), self.edits)

    def masked(self, model: nn.Module) -> AbstractContextManager[nn.Module]:
        """Mask ``model`` itself inside a ``with`` block; the very same bits come back at its end."""
        self.check(model)
        return masked(unwrap(model), self.edits)

    def mask_during_training(self, model: nn.Module, optimizer: Optimizer | None = None) -> Masks:
        """Hold everything that the plan removes at zero in ``model`` while it is trained, until the masks are removed.

        It computes, step by step, what training the pruned model computes (where no layer or group norm takes
        statistics over removed channels). Gradients are masked as they arrive, weights and state after each step of
        ``optimizer``; without one, call :meth:`~slim_prune.schedules.masks.Masks.apply` after each step. Works as a
        context manager.

        Raises:
            PlanError: the plan does not fit the model.
        """
        from slim_prune.schedules.masks import Masks

        self.check(model)
        return Masks(unwrap(model), self.edits).hold(optimizer)

    def transform(self) -> Transform:
        """Return the plan as the record that goes into a checkpoint (kind ``prune.channels``)."""
        return to_transform(self.edits, importance=self.importance, allocation=self.allocation, groups=self.summary())

    # --- writing it ---

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        edits, arrays = encode(self.edits)
        return {
            "format": FORMAT,
            "version": VERSION,
            "model_class": self.model_class,
            "importance": self.importance,
            "allocation": self.allocation,
            "budget": dict(self.budget),
            "before": dict(self.before),
            "after": dict(self.after),
            "groups": [
                {"name": g.name, "units": g.units, "channels_per_unit": g.channels_per_unit, "kept": g.kept.tolist()}
                for g in self.groups
            ],
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "ties": [list(names) for names in self.ties],
            "edits": edits,
            "indices": {name: array.tolist() for name, array in arrays.items()},
            "inputs": self.inputs,
            "outputs": [list(shape) for shape in self.outputs],
            "notes": list(self.notes),
            "details": dict(self.details),
        }

    @classmethod
    def from_json(cls, data: Any, *, where: str | None = None) -> PrunePlan:
        """Return the plan that :meth:`to_json` wrote.

        Raises:
            PlanError: ``data`` is not a valid plan; names the key.
        """
        plan = read(PlanData, upgraded(data, where), where)
        groups = []
        for group in plan.groups:
            kept = np.array(group.kept, dtype=np.int64)
            check_indices(kept, group.units, f"group '{group.name}'")
            groups.append(GroupPlan(group.name, group.units, group.channels_per_unit, kept))
        arrays = {name: np.array(array, dtype=np.int64) for name, array in plan.indices.items()}
        if len({group.name for group in groups}) != len(groups):
            raise PlanError("a group stands there twice", where="groups")
        edits = decode(plan.edits, arrays)
        for edit in edits.tensors:
            check_indices(edit.kept, edit.total, f"{edit.name}, dimension {edit.dim}")
            shape = plan.shapes.get(edit.name, [])
            if not (edit.dim < len(shape) and shape[edit.dim] == edit.total):
                raise PlanError(
                    f"an edit expects {edit.total} indices, and the plan has the shape {shape} for the tensor",
                    where=f"{edit.name}, dimension {edit.dim}",
                )
        check_edits(edits)
        check_description(plan.inputs)
        try:
            parse_budget(plan.budget or {"macs": 1.0})
        except BudgetError as error:
            raise PlanError(f"this is not a pruning plan that can be read: budget: {error.what}", where=where) from None
        return cls(
            model_class=plan.model_class,
            groups=tuple(groups),
            edits=edits,
            shapes={name: tuple(shape) for name, shape in plan.shapes.items()},
            ties=tuple(tuple(names) for names in plan.ties),
            importance=plan.importance,
            allocation=plan.allocation,
            budget=plan.budget,
            before=plan.before,
            after=plan.after,
            inputs=plan.inputs,
            outputs=tuple(tuple(shape) for shape in plan.outputs),
            notes=tuple(plan.notes),
            details=plan.details,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan to ``path`` as JSON; a kill leaves the old file or the new one.

        Raises:
            PlanError: the folder of ``path`` is not there, or the file cannot be written.
        """
        save_json(path, self.to_json(), "the plan")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PrunePlan:
        """Read a plan.

        Raises:
            PlanError: the file is not there, too large, not JSON, or not a valid plan.
        """
        data = load_json(
            path,
            "the plan",
            most=MAX_BYTES,
            missing="`slim prune plan … -o FILE` and PrunePlan.save write plans",
            hint=NO_PLAN,
        )
        return cls.from_json(data, where=str(path))

    def _check_before(self, model: nn.Module) -> None:
        self.check(model)
        proved = self._checked_on is not None and self._checked_on() is model
        if self.inputs is not None and not proved:
            check_forward(model, self.edits, self.inputs, self.outputs)

    def _check_after(self, pruned: nn.Module) -> None:
        """The shapes must be the planned ones: a guard against modules that hide or replace their tensors."""
        expected = {name: list(shape) for name, shape in self.shapes.items()}
        for edit in self.edits.tensors:
            expected[edit.name][edit.dim] = len(edit.kept)
        for name, tensor in state_of(pruned).items():
            if list(tensor.shape) != expected[name]:
                raise PlanError(f"pruned to shape {tuple(tensor.shape)} instead of {tuple(expected[name])}", where=name)


def ties_of(state: Mapping[str, Tensor]) -> tuple[tuple[str, ...], ...]:
    """Return the names that stand for one tensor, for each tensor with several names.

    Args:
        state: what :func:`slim_prune.edits.state_of` returns.
    """
    names: dict[int, list[str]] = {}
    for name, tensor in state.items():
        names.setdefault(id(tensor), []).append(name)
    return tuple(sorted(tuple(sorted(same)) for same in names.values() if len(same) > 1))
