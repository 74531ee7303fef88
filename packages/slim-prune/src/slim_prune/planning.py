"""``plan()``: from a model and a budget to a :class:`PrunePlan`. The steps, in order; each lives in its own file."""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from slim_core.budget import parse_budget
from slim_core.errors import BudgetError
from slim_core.graph import analyse
from slim_core.graph.isolate import collector_paused, unwrap
from slim_core.graph.probe import check
from slim_core.graph.rules.base import Preference
from slim_core.graph.types import ChannelGroup, Coupling
from slim_core.progress import Progress, SilentProgress
from slim_core.workload import DataSource, Inputs, Task
from slim_prune import allocation as allocations
from slim_prune import importance as importances
from slim_prune.allocation.fill import NEAR
from slim_prune.allocation.grid import channels_per_unit
from slim_prune.allocation.problem import Problem, figure
from slim_prune.costs import cost_models
from slim_prune.edits import Indices, edits_of, state_of
from slim_prune.errors import PlanError
from slim_prune.options import as_patterns, check_numbers, choices_of
from slim_prune.prune_plan import GroupPlan, PrunePlan, Reached, ties_of
from slim_prune.scorer import Scorer, context_of
from slim_prune.signature import check_forward, describe

if TYPE_CHECKING:
    from slim_core.registry import Registry
    from slim_prune.allocation import Allocation

Importance = importances.Importance
#: Reported with every plan, whatever the budget is in.
_REPORTED = ("macs", "params")
_NAMED = 4  # dimensions that a note about one reason names


@collector_paused()
def plan(
    model: nn.Module,
    example_inputs: Inputs,
    budget: Mapping[str, float | int | str] | None = None,
    *,
    importance: str | Mapping[str, Any] | Importance = "l1",
    allocation: str | Mapping[str, Any] | Allocation = "uniform",
    include: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    ratios: Mapping[str, float] | None = None,
    round_to: int = 8,
    min_channels: int | Mapping[str, int] = 1,
    prefer: Preference = "heads",
    task: Task | None = None,
    train: DataSource | None = None,
    val: DataSource | None = None,
    folder: str | os.PathLike[str] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    coupling: Coupling | None = None,
    registry: Registry | None = None,
) -> PrunePlan:
    """Plan which channels to remove from ``model``. The model is not changed.

    Args:
        model: any model whose forward runs on ``example_inputs``.
        example_inputs: positional inputs (tuple, batch first), keyword inputs (mapping) or one tensor.
        budget: bounds by cost model: ``{"macs": 0.5}`` keeps half of the multiply-accumulates, ``{"params": "1.2M"}``
            at most 1.2 million parameters; several hold at once. ``None``: only ``ratios`` decide.
        importance: a criterion's name (``"l1"``, ``"l2"``, ``"random"``, or what a plugin registered), a mapping with
            its options (``{"name": "l1", "normalize": "max"}``), or a function ``(group, tensors) -> scores``.
        allocation: how much to take where: a name (``"uniform"``, or what a plugin registered), a mapping with its
            options, or a function ``(problem, context) -> {group name: kept units}``.
        include: globs over module paths; a group is included when a module that makes its channels matches.
        exclude: globs; a group is excluded when any module that it touches matches.
        ratios: shares of channels to keep by glob (``{"layer1.*": 0.75}``), the first that matches; such groups are not
            changed to meet the budget.
        round_to: kept channels are a multiple of this; lowered for groups that do not hold two such multiples.
        min_channels: the least that any layer keeps, for all or by glob.
        prefer: what attention loses where its forward leaves the choice: whole ``heads``, or equal positions of all
            heads (``head_dim``). The other is taken where it reaches more.
        task: loss and metrics, for criteria and allocations that look at data.
        train: training batches, for these.
        val: validation batches, for these.
        folder: where state that can be resumed goes; ``None``: nothing is kept.
        seed: of everything random.
        progress: where long work reports to.
        coupling: the analysis of this very model, when it has been made already.
        registry: where plugins' criteria and cost models are looked up (default: built-in names first, then all
            installed plugins).

    Raises:
        BudgetError: the budget is malformed or cannot be reached; says what is reachable.
        PatternError: a pattern matches nothing; lists close names.
        UnknownNameError: nobody registered the criterion or the cost model.
        ModelError: the model does not run on its example inputs.
        PlanError: the criterion gave no usable scores, or the pruned model would not run.
    """
    include, exclude = as_patterns(include), as_patterns(exclude)
    bounds = parse_budget(budget) if budget is not None else ()
    if not bounds and not ratios:
        raise BudgetError(
            "neither a budget nor ratios: nothing to do", hint="pass budget={'macs': 0.5} to keep half of the MACs"
        )
    check_numbers(ratios or {}, round_to, min_channels)
    models = cost_models([*(bound.cost for bound in bounds), *_REPORTED], registry)
    label, criterion = importances.resolve(importance, registry)
    importances.check_data(label, criterion, task=task, train=train, val=val)
    allocation_label, allocate = allocations.resolve(allocation, registry)
    model = unwrap(model)
    coupling = coupling if coupling is not None else analyse(model, example_inputs, prefer=prefer, registry=registry)

    choices = choices_of(
        model,
        coupling,
        include=include,
        exclude=exclude,
        ratios=ratios,
        round_to=round_to,
        min_channels=min_channels,
    )
    groups = [choice.group for choice in choices]
    problem = Problem(coupling, choices, models, bounds, remark=_remark(coupling, groups))
    state = state_of(model)
    context = context_of(
        model,
        example_inputs,
        coupling,
        Scorer(label, criterion),
        task=task,
        train=train,
        val=val,
        folder=Path(folder) if folder is not None else None,
        seed=seed,
        progress=progress or SilentProgress(),
        registry=registry,
    )
    counts = checked_counts(problem, allocate(problem, context), allocation_label)
    kept = context.kept(counts)
    edits = edits_of(model, coupling, kept)
    outputs = tuple(coupling.graph.values[index].shape for index in coupling.graph.outputs)
    inputs = describe(example_inputs, model) if coupling.graph.device_kind == "meta" else None
    if inputs is not None:
        check_forward(model, edits, inputs, outputs)
    else:
        _prove(model, example_inputs, coupling, kept)
    return PrunePlan(
        model_class=type(model).__name__,
        groups=tuple(GroupPlan(g.name, g.units, channels_per_unit(g), kept[g.name]) for g in groups),
        edits=edits,
        shapes={name: tuple(tensor.shape) for name, tensor in state.items()},
        ties=ties_of(state),
        importance=label,
        allocation=allocation_label,
        budget=dict(budget or {}),
        before=problem.original,
        after=problem.costs(counts),
        inputs=inputs,
        outputs=outputs,
        notes=(*_notes(coupling, problem, groups, counts, round_to), *context.notes),
        details=_json(context.details, allocation_label),
        _checked_on=weakref.ref(model),
    )


def _prove(model: nn.Module, example_inputs: Inputs, coupling: Coupling, kept: Mapping[str, Indices]) -> None:
    """Check the plan with the core's probe, which also serves models that cannot run on meta tensors."""
    failure = check(model, example_inputs, coupling, kept)
    if failure is not None:
        raise PlanError(
            f"the pruned model does not run: {failure.reason}",
            where=str(failure.source) if failure.source else None,
            hint="exclude the modules that this line of the model uses, and plan again",
        )


def _json(details: Mapping[str, Any], label: str) -> dict[str, Any]:
    """Return ``details`` as plain JSON values."""
    try:
        return cast(dict[str, Any], json.loads(json.dumps(details, allow_nan=False)))
    except (TypeError, ValueError) as error:
        raise PlanError(f"the details of a plan are JSON values: {error}", where=f"allocation '{label}'") from None


def checked_counts(problem: Problem, counts: Mapping[str, int], label: str) -> dict[str, int]:
    """Return the kept units of every group, in the problem's order, after checking what an allocation gave.

    Raises:
        PlanError: a group that is not known, or a count that is not permitted.
        BudgetError: a bound does not hold.
    """
    where = f"allocation '{label}'"
    names = {choice.name for choice in problem.choices}
    for name in counts:
        if name not in names:
            raise PlanError(f"there is no channel group '{name}' to decide about", where=where)
    checked: dict[str, int] = {}
    for choice in problem.choices:
        count = counts.get(choice.name, choice.at(1.0))
        if count not in choice.counts:
            raise PlanError(
                f"{count!r} units of channel group '{choice.name}' are not permitted",
                where=where,
                hint="rounding, floors and fixed ratios permit: " + ", ".join(map(str, choice.counts)),
            )
        checked[choice.name] = int(count)
    if not problem.meets(checked):
        costs = problem.costs(checked)
        over = [
            f"{figure(costs[name])} {name} where {figure(limit)} are allowed"
            for name, limit in problem.limits.items()
            if costs[name] > limit
        ]
        raise BudgetError(f"the allocation breaks the budget: {'; '.join(over)}", where=where)
    return checked


def _remark(coupling: Coupling, groups: Sequence[ChannelGroup]) -> str:
    """Say why the rest of the model cannot be made smaller."""
    parts = [f"{len(groups)} of {len(coupling.groups)} channel groups may be pruned"]
    if coupling.frozen:
        largest = sorted(coupling.frozen, key=lambda frozen: -frozen.count)[:3]
        parts.append("frozen: " + "; ".join(f"{f.name} dimension {f.dim} ({f.reason})" for f in largest))
    return "; ".join(parts)


def _notes(
    coupling: Coupling, problem: Problem, groups: Sequence[ChannelGroup], counts: Mapping[str, int], round_to: int
) -> Iterable[str]:
    yield from coupling.graph.notes
    costs = problem.costs(counts)
    bounds = [Reached(n, problem.original[n], limit, costs[n]) for n, limit in problem.limits.items()]
    yield from map(str, bounds)
    tightest = min(bounds, key=lambda bound: bound.distance, default=None)
    if tightest is not None and tightest.distance > 1 - NEAR and any(counts[c.name] < c.at(1.0) for c in problem.free):
        yield (
            f"the budget is met with {tightest.distance:.1%} of {tightest.cost} to spare: the allocation found no "
            "better choice nearer to the limit among the counts that rounding, floors and ratios permit; a smaller "
            "round_to makes steps finer"
        )
    for choice in problem.choices:
        if choice.grid.multiple % round_to and counts[choice.name] < choice.group.units:
            channels = choice.group.units * choice.grid.channels_per_unit
            multiple = choice.grid.multiple
            yield f"{choice.name}: {channels} channels are few for multiples of {round_to}; rounded to {multiple}"
    reasons: dict[str, list[str]] = {}
    for frozen in coupling.frozen:
        line = f" ({frozen.source})" if frozen.source else ""
        reasons.setdefault(frozen.reason + line, []).append(f"{frozen.name} dimension {frozen.dim}")
    for reason, where in reasons.items():
        more = f" and {len(where) - _NAMED} more" if len(where) > _NAMED else ""
        yield f"frozen: {', '.join(where[:_NAMED])}{more}: {reason}"
