"""Composition of plans: several plans, each made for what the one before left, as one plan for the original model.

Only data is touched here; no model is needed. Not here: making plans step by step (``schedules/``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import reduce

from slim_core.budget import Bound, parse_budget
from slim_prune.edits import AttributeEdit, Edits, Indices, TensorEdit
from slim_prune.errors import PlanError
from slim_prune.prune_plan import GroupPlan, PrunePlan, Reached

#: notes of a plan that speak of one part alone: how near its budget is, how coarse the steps of a small group are
_SPARE, _ROUNDED = "the budget is met with ", " channels are few for multiples of "
_HINT = "a plan follows another one when it was made for the model that the first one left"


def compose(first: PrunePlan, *others: PrunePlan) -> PrunePlan:
    """Return one plan that does what ``first`` and then each of ``others`` do.

    Args:
        first: a plan for the original model.
        others: plans, each for the model that the plans before it left.

    Raises:
        PlanError: a plan is for another model than the one that the plans before it leave.
    """
    return reduce(then, others, first)


def then(first: PrunePlan, second: PrunePlan) -> PrunePlan:
    """Return the plan that does what ``first`` and then ``second`` do. See :func:`compose`.

    Costs go from before ``first`` to after ``second``; relative bounds of ``second`` are restated as shares of the
    original.

    Raises:
        PlanError: ``second`` is not for the model that ``first`` leaves.
    """
    _check_follows(first, second)
    edits = Edits(
        compose_tensors(first.edits.tensors, second.edits.tensors),
        compose_attributes(first.edits.attributes, second.edits.attributes),
    )
    costs = [name for name in first.before if name in second.after]
    before, after = {n: first.before[n] for n in costs}, {n: second.after[n] for n in costs}
    budget = _budget(first, second, before)
    return PrunePlan(
        model_class=first.model_class,
        groups=_groups(first, second, edits),
        edits=edits,
        shapes=first.shapes,
        ties=first.ties,
        importance=_joined(first.importance, second.importance),
        allocation=_joined(first.allocation, second.allocation),
        budget=budget,
        before=before,
        after=after,
        inputs=first.inputs,
        outputs=first.outputs,
        notes=(*budget_notes(budget, before, after), *_other_notes(first, second)),
        details={**first.details, **second.details},
    )


def compose_tensors(first: Iterable[TensorEdit], second: Iterable[TensorEdit]) -> tuple[TensorEdit, ...]:
    """Return the edits that cut at once what ``first`` and then ``second`` cut.

    Raises:
        PlanError: ``second`` expects another size than ``first`` leaves.
    """
    composed = {(edit.name, edit.dim): edit for edit in first}
    shared: dict[tuple[int, int], Indices] = {}  # dimensions that are cut alike share one array
    for edit in second:
        before = composed.get((edit.name, edit.dim))
        if before is None:
            composed[edit.name, edit.dim] = edit
            continue
        if len(before.kept) != edit.total:
            raise PlanError(
                f"the second plan expects {edit.total} indices, and the first one leaves {len(before.kept)}",
                where=f"{edit.name}, dimension {edit.dim}",
                hint=_HINT,
            )
        key = (id(before.kept), id(edit.kept))
        if key not in shared:
            shared[key] = before.kept[edit.kept]
        composed[edit.name, edit.dim] = TensorEdit(edit.name, edit.dim, before.total, shared[key])
    return tuple(edit for edit in composed.values() if len(edit.kept) < edit.total)


def compose_attributes(first: Iterable[AttributeEdit], second: Iterable[AttributeEdit]) -> tuple[AttributeEdit, ...]:
    """Return the edits that set at once what ``first`` and then ``second`` set.

    Raises:
        PlanError: ``second`` expects another value than ``first`` leaves.
    """
    composed = {(edit.module, edit.name): edit for edit in first}
    for edit in second:
        before = composed.get((edit.module, edit.name))
        if before is not None and before.after != edit.before:
            raise PlanError(
                f"the second plan expects {edit.before}, and the first one leaves {before.after}",
                where=f"{edit.module}.{edit.name}",
                hint=_HINT,
            )
        start = edit.before if before is None else before.before
        composed[edit.module, edit.name] = AttributeEdit(edit.module, edit.name, start, edit.after)
    return tuple(edit for edit in composed.values() if edit.before != edit.after)


def budget_notes(
    budget: Mapping[str, float | int | str], before: Mapping[str, float], after: Mapping[str, float]
) -> list[str]:
    """Return one line for each bound: what was reached, and how far below the limit."""
    return [
        str(Reached(bound.cost, before[bound.cost], bound.limit(before[bound.cost]), after[bound.cost]))
        for bound in _bounds(budget)
        if before.get(bound.cost) and bound.cost in after
    ]


def _bounds(budget: Mapping[str, float | int | str]) -> tuple[Bound, ...]:
    return parse_budget(budget) if budget else ()


def _check_follows(first: PrunePlan, second: PrunePlan) -> None:
    left = {name: list(shape) for name, shape in first.shapes.items()}
    for edit in first.edits.tensors:
        left[edit.name][edit.dim] = len(edit.kept)
    if left.keys() != second.shapes.keys():
        odd = sorted(left.keys() ^ second.shapes.keys())[0]
        raise PlanError("only one of the two plans knows this tensor", where=odd, hint=_HINT)
    for name, shape in second.shapes.items():
        if tuple(left[name]) != tuple(shape):
            raise PlanError(
                f"the second plan is for shape {tuple(shape)}, and the first one leaves {tuple(left[name])}",
                where=name,
                hint=_HINT,
            )
    if first.ties != second.ties:
        raise PlanError("other tensors are tied in the second plan than in the first", hint=_HINT)


def _groups(first: PrunePlan, second: PrunePlan, edits: Edits) -> tuple[GroupPlan, ...]:
    """Rows of both plans by name, with the units of the original.

    A group whose units are others in the second plan (a grouped convolution that is left with one group is an ordinary
    one) is listed by channels of the layer that it is named after.
    """
    later = {group.name: group for group in second.groups}
    known = {group.name for group in first.groups}
    cuts = {(edit.name, edit.dim): edit for edit in edits.tensors}
    rows: list[GroupPlan] = []
    for group in first.groups:
        follow = later.get(group.name)
        if follow is None:
            rows.append(group)
        elif follow.units == len(group.kept):
            rows.append(GroupPlan(group.name, group.units, group.channels_per_unit, group.kept[follow.kept]))
        else:
            rows.append(_by_channels(group, cuts))
    rows += [group for group in second.groups if group.name not in known]
    return tuple(rows)


def _by_channels(group: GroupPlan, cuts: Mapping[tuple[str, int], TensorEdit]) -> GroupPlan:
    base = group.name.partition(":")[0]
    for name, dim in ((f"{base}.weight", 0), (f"{base}.weight", 1), (base, 0)):
        edit = cuts.get((name, dim))
        if edit is not None and edit.total == group.units * group.channels_per_unit:
            return GroupPlan(group.name, edit.total, 1, edit.kept)
    return group


def _budget(first: PrunePlan, second: PrunePlan, before: Mapping[str, float]) -> dict[str, float | int | str]:
    """Bounds of both plans in terms of the original; where both bound a cost, the tighter one."""
    budget: dict[str, float | int | str] = dict(first.budget)
    for bound in _bounds(second.budget):
        value = second.budget[bound.cost]
        start, middle = before.get(bound.cost), second.before.get(bound.cost)
        if bound.relative and not (start and middle):
            continue
        if start and middle and bound.relative:
            value = min(1.0, bound.value * middle / start)
        mine = next((b for b in _bounds(first.budget) if b.cost == bound.cost), None)
        if mine is not None and start and mine.limit(start) < bound.limit(middle or start):
            continue
        budget[bound.cost] = value
    return budget


def _other_notes(first: PrunePlan, second: PrunePlan) -> list[str]:
    """Notes of both, each once, without those about the bounds of one part alone."""
    found: dict[str, None] = {}
    for plan in (first, second):
        heads = tuple(f"{name}: " for name in plan.budget)
        found |= {note: None for note in plan.notes if not (heads and note.startswith(heads))}
    rounded = {note.partition(": ")[0] for note in first.notes if _ROUNDED in note}
    return [
        note
        for note in found
        if not (note.startswith(_SPARE) and note not in second.notes)
        and not (_ROUNDED in note and note not in first.notes and note.partition(": ")[0] in rounded)
    ]


def _joined(first: str, second: str) -> str:
    parts = [part for part in (first, second) if part]
    return ", then ".join(dict.fromkeys(part for whole in parts for part in whole.split(", then ")))
