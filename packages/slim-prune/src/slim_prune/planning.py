"""``plan()``: from a model and a budget to a :class:`PrunePlan`. The steps, in order; each lives in its own file."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from slim_core.budget import parse_budget
from slim_core.errors import BudgetError, PatternError
from slim_core.graph import analyse
from slim_core.graph.isolate import collector_paused, unwrap, walk
from slim_core.graph.probe import check
from slim_core.graph.types import ChannelGroup, Coupling
from slim_core.workload import Inputs
from slim_prune import importance as importances
from slim_prune.allocation.grid import channels_per_unit, grid
from slim_prune.allocation.problem import Choice, Problem, figure
from slim_prune.allocation.uniform import uniform
from slim_prune.costs import cost_models
from slim_prune.edits import Indices, edits_of, state_of
from slim_prune.errors import PlanError
from slim_prune.importance.aggregate import Tensors
from slim_prune.prune_plan import GroupPlan, PrunePlan, ties_of
from slim_prune.selection import by_pattern, check_patterns, select
from slim_prune.signature import check_forward, describe

if TYPE_CHECKING:
    from slim_core.registry import Registry

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
    include: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    ratios: Mapping[str, float] | None = None,
    round_to: int = 8,
    min_channels: int | Mapping[str, int] = 1,
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
        include: globs over module paths; a group is included when a module that makes its channels matches.
        exclude: globs; a group is excluded when any module that it touches matches.
        ratios: shares of channels to keep by glob (``{"layer1.*": 0.75}``), the first that matches; such groups are not
            changed to meet the budget.
        round_to: kept channels are a multiple of this; lowered for groups that do not hold two such multiples.
        min_channels: the least that any layer keeps, for all or by glob.
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
    include, exclude = _patterns(include), _patterns(exclude)
    bounds = parse_budget(budget) if budget is not None else ()
    if not bounds and not ratios:
        raise BudgetError(
            "neither a budget nor ratios: nothing to do", hint="pass budget={'macs': 0.5} to keep half of the MACs"
        )
    check_numbers(ratios or {}, round_to, min_channels)
    models = cost_models([*(bound.cost for bound in bounds), *_REPORTED], registry)
    label, criterion = importances.resolve(importance, registry)
    model = unwrap(model)
    coupling = coupling if coupling is not None else analyse(model, example_inputs, registry=registry)

    paths = [path for path, _ in walk(model)]
    floors = min_channels if isinstance(min_channels, Mapping) else {}
    check_patterns([*(ratios or {}), *floors], paths)
    groups = select(coupling, paths, include=include, exclude=exclude)
    choices = [_choice(group, ratios or {}, round_to, min_channels) for group in groups]
    problem = Problem(coupling, choices, models, bounds, remark=_remark(coupling, groups))
    counts = uniform(problem)

    state = state_of(model)
    tensors = Tensors({name: tensor.detach() for name, tensor in state.items()})
    kept = {group.name: _best(label, criterion, group, counts[group.name], tensors) for group in groups}
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
        shapes={name: tuple(tensor.shape) for name, tensor in tensors.items()},
        ties=ties_of(state),
        importance=label,
        allocation="uniform",
        budget=dict(budget or {}),
        before=problem.original,
        after=problem.costs(counts),
        inputs=inputs,
        outputs=outputs,
        notes=tuple(_notes(coupling, problem, groups, counts, round_to)),
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


def _best(label: str, criterion: Importance, group: ChannelGroup, count: int, tensors: Mapping[str, Any]) -> Indices:
    """Return the ``count`` units with the highest scores, ascending; of equal ones the first."""
    if count == group.units:
        return np.arange(group.units, dtype=np.int64)
    scores = importances.score(label, criterion, group, tensors)
    order = np.argsort(-scores, kind="stable")
    return np.sort(order[:count]).astype(np.int64)


def _choice(group: ChannelGroup, ratios: Mapping[str, float], round_to: int, least: int | Mapping[str, int]) -> Choice:
    floor = least if isinstance(least, int) else by_pattern(group, least) or 1
    return Choice(group, grid(group, round_to=round_to, min_channels=floor), by_pattern(group, ratios))


def _patterns(patterns: str | Sequence[str]) -> tuple[str, ...]:
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)


def check_numbers(ratios: Mapping[str, float], round_to: int, min_channels: int | Mapping[str, int]) -> None:
    """Check what needs no model.

    Raises:
        PatternError: a ratio is no share.
        BudgetError: ``round_to`` or ``min_channels`` is not at least 1.
    """
    for pattern, ratio in ratios.items():
        if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 < ratio <= 1:
            raise PatternError(
                f"the ratio for '{pattern}' is the share of channels to keep, in (0, 1], not {ratio!r}",
                where=f"ratios['{pattern}']",
                hint="0.75 keeps three quarters; to leave layers alone, exclude them",
            )
    if round_to < 1:
        raise BudgetError(
            f"round_to must be at least 1, not {round_to}", where="round_to", hint="1 rounds nothing; 8 suits runtimes"
        )
    for floor in min_channels.values() if isinstance(min_channels, Mapping) else (min_channels,):
        if floor < 1:
            raise BudgetError(
                f"min_channels must be at least 1, not {floor}",
                where="min_channels",
                hint="a layer without channels is no layer; 1 sets no floor",
            )


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
    for name, limit in problem.limits.items():
        reached, original = problem.costs(counts)[name], problem.original[name]
        yield (
            f"{name}: {figure(reached)} of {figure(original)} ({reached / original:.1%}), "
            f"{1 - reached / limit:.2%} below the limit of {figure(limit)}"
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
