"""``plan()``: from a model, a scheme and a figure to a :class:`SparsityPlan`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from slim_core.budget import parse_budget
from slim_core.errors import BudgetError, PatternError
from slim_core.graph.isolate import state_of as parameters_of
from slim_core.graph.isolate import unwrap
from slim_core.graph.types import Coupling
from slim_core.progress import Progress
from slim_core.workload import DataSource, Inputs, Task
from slim_prune.options import as_patterns
from slim_prune.sparsity.errors import SparsityError
from slim_prune.sparsity.masks import SparsityMasks
from slim_prune.sparsity.orders import Order
from slim_prune.sparsity.schemes import NM, Block, Scheme, Unstructured, label, resolve
from slim_prune.sparsity.scores import BATCHES, Criterion, score_all
from slim_prune.sparsity.selecting import Array, above, n_of_m, select, whole
from slim_prune.sparsity.sparsity_plan import SparsityPlan
from slim_prune.sparsity.targets import Target, find_targets, value_for

#: The only cost that a sparsity budget is in: parameters of the model that may be other than zero.
NONZERO = "nonzero"


def plan(
    model: nn.Module,
    example_inputs: Inputs | None = None,
    *,
    scheme: str | Mapping[str, Any] | Scheme = "unstructured",
    sparsity: float | None = None,
    budget: Mapping[str, float | int | str] | None = None,
    threshold: float | None = None,
    ratios: Mapping[str, float] | None = None,
    include: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    importance: str | Criterion = "magnitude",
    task: Task | None = None,
    train: DataSource | None = None,
    batches: int = BATCHES,
    seed: int = 0,
    previous: SparsityMasks | None = None,
    progress: Progress | None = None,
    coupling: Coupling | None = None,
) -> SparsityPlan:
    """Plan which weights of ``model`` become zero. The model is not changed.

    How many is said in exactly one way: ``sparsity``, ``budget``, ``threshold``, or by ``ratios`` alone; N:M says it
    itself. Candidates are the weights of convolutions, linear layers, attention and recurrent layers; biases, norms and
    embeddings stay as they are.

    Args:
        model: any model.
        example_inputs: needed for ``NM(permute=True)`` only.
        scheme: ``"unstructured"``, ``"block"``, ``"2:4"``, a mapping with options, or a scheme.
        sparsity: the share of the selected weights that becomes zero: 0.9.
        budget: ``{"nonzero": 0.2}``: at most a fifth of all parameters of the model stay other than zero;
            ``{"nonzero": "120k"}``: at most so many.
        threshold: everything whose score is below it becomes zero.
        ratios: the share that stays, by glob; the first that matches. Such weights do not compete.
        include: globs over module paths or parameter names; empty: all candidates.
        exclude: globs; they win.
        importance: see :func:`slim_prune.sparsity.scores.score_all`.
        task: its loss, for importances that need gradients.
        train: training batches for them.
        batches: how many of these are used.
        seed: of the order of these.
        previous: masks of an earlier plan: what they removed stays removed.
        progress: where to report.
        coupling: the channel analysis of this very model, when it has been made already (for ``permute``).

    Raises:
        SparsityError: the scheme or figures have no meaning, or scores are not finite.
        BudgetError: the budget is malformed or out of reach; says what is reachable.
        PatternError: a pattern matches no weight; lists close names.
    """
    scheme = resolve(scheme)
    ratios = dict(ratios or {})
    check_figures(scheme, sparsity, budget, threshold, ratios)
    model = unwrap(model)
    targets = find_targets(model, as_patterns(include), as_patterns(exclude))
    _check_ratios(ratios, targets)
    if not targets:
        raise SparsityError("the model has no weight that may become sparse", hint="see include=… for other parameters")
    criterion, scores = score_all(
        importance, targets, model=model, task=task, train=train, batches=batches, seed=seed, progress=progress
    )
    axes = {target.name: target.axis for target in targets}
    params = sum(item.tensor.numel() for item in parameters_of(model) if item.kind == "parameter")
    notes: list[str] = []
    orders: tuple[Order, ...] = ()
    if isinstance(scheme, NM) and scheme.permute:
        from slim_prune.sparsity.permuting import find_orders, reordered

        if example_inputs is None:
            raise SparsityError("permuting channels needs example inputs", hint="plan(model, example_inputs, …)")
        orders, lines = find_orders(model, example_inputs, scheme, scores, axes, coupling=coupling, progress=progress)
        notes += lines
        scores = reordered(orders, scores)
        if previous is not None and orders:
            raise SparsityError("channels cannot be permuted again under earlier masks", hint="permute=False")
    if previous is not None:
        scores = {name: _lowered(values, previous.get(name)) for name, values in scores.items()}
    fixed = {
        target.name: whole(target.tensor.numel(), value)
        for target in targets
        if (value := value_for(target, ratios)) is not None
    }
    if isinstance(scheme, NM):
        masks = {name: n_of_m(values, axes[name], scheme) for name, values in scores.items()}
    elif threshold is not None:
        masks = above(scheme, scores, axes, threshold)
    else:
        if sparsity is None and budget is None:
            scores = {name: values for name, values in scores.items() if name in fixed}
        kept = _kept(sum(v.size for v in scores.values()), params, sum(fixed.values()), sparsity, budget)
        masks = select(scheme, scores, axes, kept, fixed)
    if previous is not None:
        masks = {name: mask & _array(previous[name]) if name in previous else mask for name, mask in masks.items()}
    found = SparsityMasks(masks)
    asked = {"sparsity": sparsity, "budget": dict(budget) if budget else None, "threshold": threshold, "ratios": ratios}
    return SparsityPlan(
        model_class=type(model).__name__,
        scheme=scheme,
        masks=found,
        axes={name: axes[name] for name in found},
        importance=criterion,
        asked={key: value for key, value in asked.items() if value not in (None, {})},
        params=params,
        orders=orders,
        notes=(*notes, *_notes(scheme, found, sparsity, params)),
    )


def check_figures(
    scheme: Scheme,
    sparsity: float | None,
    budget: Mapping[str, float | int | str] | None,
    threshold: float | None,
    ratios: Mapping[str, float],
) -> None:
    """Check what needs no model.

    Raises:
        SparsityError, BudgetError, PatternError: see :func:`plan`.
    """
    told = [
        name
        for name, value in (("sparsity", sparsity), ("budget", budget), ("threshold", threshold))
        if value is not None
    ]
    if isinstance(scheme, NM):
        if told or ratios:
            raise SparsityError(
                f"{scheme.n}:{scheme.m} says itself how many weights stay; '{(told or ['ratios'])[0]}' cannot",
                hint="leave it out, or choose the scheme 'unstructured' or 'block'",
            )
        return
    if len(told) > 1:
        raise SparsityError(f"{' and '.join(told)} both say how many weights stay", hint="give one of them")
    if not told and not ratios:
        raise SparsityError("how sparse? Neither a figure nor ratios were given", hint="sparsity=0.9, for example")
    if sparsity is not None and (isinstance(sparsity, bool) or not 0 <= sparsity < 1):
        raise SparsityError(f"the sparsity is the share of zeros, in [0, 1), not {sparsity!r}", where="sparsity")
    if threshold is not None and ratios:
        raise SparsityError("a threshold leaves nothing for ratios to say", hint="give one of them")
    if threshold is not None and not (isinstance(threshold, int | float) and math.isfinite(threshold)):
        raise SparsityError(f"the threshold is a number, not {threshold!r}", where="threshold")
    if budget is not None:
        for bound in parse_budget(budget):
            if bound.cost != NONZERO:
                raise BudgetError(
                    f"sparsity changes neither '{bound.cost}' nor any other cost than '{NONZERO}'",
                    hint="budget={'nonzero': 0.2}; for MACs, parameters and latency remove channels: slim_prune.plan",
                )
    for pattern, ratio in ratios.items():
        if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 < ratio <= 1:
            raise PatternError(
                f"the ratio for '{pattern}' is the share of weights to keep, in (0, 1], not {ratio!r}",
                where=f"ratios['{pattern}']",
            )


def _kept(
    total: int, params: int, fixed: int, sparsity: float | None, budget: Mapping[str, float | int | str] | None
) -> int:
    """Return how many of the weights that compete may stay."""
    if sparsity is not None:
        kept = whole(total, 1 - sparsity)
        if kept < fixed:
            raise BudgetError(
                f"a sparsity of {sparsity:g} leaves {kept} weights, and the ratios alone keep {fixed}",
                hint=f"the most that these ratios allow is {1 - fixed / total:.4f}",
            )
        return kept - fixed
    if budget is None:
        return 0
    limit = min(math.floor(bound.limit(params) + 1e-9) for bound in parse_budget(budget))
    least = params - total + fixed
    if limit < least:
        raise BudgetError(
            f"at most {limit} parameters may be other than zero, and {least} are not up for choice",
            hint=f"the least that is reachable is {least} ({least / params:.2%}): biases, norms, excluded weights and "
            "what ratios keep",
        )
    return min(limit - least, total - fixed)


def _check_ratios(ratios: Mapping[str, float], targets: Sequence[Target]) -> None:
    for pattern in ratios:
        if not any(value_for(target, {pattern: 1.0}) for target in targets):
            raise PatternError(f"pattern '{pattern}' of the ratios matches no selected weight", where="ratios")


def _notes(scheme: Scheme, masks: SparsityMasks, sparsity: float | None, params: int) -> Iterable[str]:
    rows = masks.statistics()
    empty = [row["name"] for row in rows if row["total"] and not row["kept"]]
    if empty:
        yield f"nothing is left of {', '.join(empty[:4])}{' and others' if len(empty) > 4 else ''}: see 'floor'"
    if isinstance(scheme, NM):
        dense = [row["name"] for row in rows if row["kept"] == row["total"]]
        if dense:
            more = f" and {len(dense) - 4} more" if len(dense) > 4 else ""
            yield f"{', '.join(dense[:4])}{more}: too few inputs for {label(scheme)}; left dense"
    if isinstance(scheme, Block) and sparsity is not None and masks.sparsity > sparsity + 0.01:
        yield f"blocks are coarse: {masks.sparsity:.1%} became zero where {sparsity:.1%} were asked"


def _lowered(scores: Array, mask: Any) -> Array:
    return scores if mask is None else np.where(_array(mask), scores, -np.inf)


def _array(mask: Any) -> Any:
    return mask.cpu().numpy()


__all__ = ["NM", "NONZERO", "Block", "Scheme", "Unstructured", "check_figures", "plan"]
