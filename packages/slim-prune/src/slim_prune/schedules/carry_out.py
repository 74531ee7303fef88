"""Carries a schedule out on a workload, as a step of a recipe: plan, cut and train, resumably, with what to report."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from slim_core.technique import Run
from slim_core.training.config import FitConfig
from slim_core.training.loop import fit
from slim_core.workload import Workload
from slim_prune.planning import plan
from slim_prune.prune_plan import PrunePlan
from slim_prune.schedules.config import Gradual, Iterative, OneShot, Soft
from slim_prune.schedules.gradual import GradualPruning
from slim_prune.schedules.iterative import prune_iteratively
from slim_prune.schedules.soft import SoftPruning
from slim_prune.schedules.stepwise import Stepwise

Schedule = OneShot | Iterative | Soft | Gradual


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a schedule came to.

    Args:
        workload: the pruned workload, with the transform.
        plan: the plan from the original to it.
        history: epochs of all training, numbered through.
        details: more for the report, as JSON values.
        notes: lines that a reader should know.
    """

    workload: Workload
    plan: PrunePlan
    history: list[dict[str, float]] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def carry_out(
    workload: Workload,
    budget: Mapping[str, float | int | str] | None,
    schedule: Schedule,
    config: FitConfig | None,
    run: Run,
    options: Mapping[str, Any],
) -> Outcome:
    """Prune and train a workload; the given one is untouched.

    Args:
        workload: what is pruned.
        budget: the final budget.
        schedule: when the channels go.
        config: the training: after one shot and iterative pruning, around soft and gradual pruning.
        run: folder for resumable state, seed, progress and registry.
        options: further arguments of :func:`slim_prune.plan`.

    Raises:
        BudgetError: the budget is out of reach.
        SlimError: the folder holds the state of another run.
    """
    match schedule:
        case OneShot():
            return _one_shot(workload, budget, config, run, options)
        case Iterative():
            return _iterative(workload, budget, schedule, config, run, options)
        case Soft():
            return _soft(workload, budget, schedule, config, run, options)
        case Gradual():
            return _gradual(workload, budget, schedule, config, run, options)


def rehearsed(
    workload: Workload,
    budget: Mapping[str, float | int | str] | None,
    schedule: Schedule,
    options: Mapping[str, Any],
) -> tuple[PrunePlan, Workload]:
    """Return what ``carry_out`` would cut, without any training: in seconds, and by whatever weights there are.

    Raises:
        BudgetError: the budget is out of reach.
        PatternError: a pattern matches nothing.
    """
    steps = 1
    if isinstance(schedule, Iterative | Gradual):
        times = schedule.at_epochs if isinstance(schedule, Gradual) else None
        steps = len(times) if times is not None else schedule.steps
    if steps == 1:
        made = plan(workload.model, workload.example_inputs, budget, **options)
        return made, workload.with_model(made.apply(workload.model), made.transform())
    assert isinstance(schedule, Iterative | Gradual)  # noqa: S101  only these have several steps
    known = {name: value for name, value in options.items() if name != "folder"}
    model = copy.deepcopy(workload.model)
    stepwise = Stepwise(model, workload.example_inputs, budget, steps=steps, spacing=schedule.spacing, **known)
    for _ in stepwise:
        pass
    assert stepwise.plan is not None  # noqa: S101  there is at least one step
    return stepwise.plan, workload.with_model(model, stepwise.plan.transform())


def _one_shot(
    workload: Workload,
    budget: Mapping[str, float | int | str] | None,
    config: FitConfig | None,
    run: Run,
    options: Mapping[str, Any],
) -> Outcome:
    made = plan(workload.model, workload.example_inputs, budget, **{**options, "folder": run.folder})
    made.save(run.folder / "plan.json")
    pruned = workload.with_model(made.apply(workload.model), made.transform())
    if config is None:
        return Outcome(pruned, made)
    result = fit(pruned, config, run=run, inplace=True)
    return Outcome(result.workload, made, _numbered(result.history))


def _iterative(
    workload: Workload,
    budget: Mapping[str, float | int | str] | None,
    schedule: Iterative,
    config: FitConfig | None,
    run: Run,
    options: Mapping[str, Any],
) -> Outcome:
    between = schedule.fit if schedule.fit is not None else config
    known = {name: value for name, value in options.items() if name != "folder"}
    result = prune_iteratively(
        workload,
        budget,
        steps=schedule.steps,
        spacing=schedule.spacing,
        fit_between=between,
        fit_after=config,
        run=run,
        **known,
    )
    result.plan.save(run.folder / "plan.json")
    rows = [dict(row) for row in result.steps]
    notes: tuple[str, ...] = ()
    if between is None and schedule.steps > 1:
        notes = ("the steps follow each other without training between them: neither fit nor schedule.fit is set",)
    curves = [
        _curve(name, "step", [row["step"] for row in rows], {
            "reached": [row[name] for row in rows], "allowed": [row[f"{name} allowed"] for row in rows],
        })
        for name in budget or {}
    ]  # fmt: skip
    history = [dict(row) for row in result.history]
    return Outcome(result.workload, result.plan, history, {"schedule": rows, "curves": curves}, notes)


def _soft(
    workload: Workload,
    budget: Mapping[str, float | int | str] | None,
    schedule: Soft,
    config: FitConfig | None,
    run: Run,
    options: Mapping[str, Any],
) -> Outcome:
    soft = SoftPruning(
        workload.example_inputs,
        budget,
        asymptotic=schedule.asymptotic,
        every=schedule.every,
        zero=schedule.zero,
        **{**options, "folder": run.folder},
    )
    result = fit(workload, _needed(config), run=run, callbacks=[soft])
    pruned, made = soft.applied_to(result.workload), _planned(soft.plan)
    made.save(run.folder / "plan.json")
    history = _numbered(result.history)
    if schedule.fit is not None:
        after = fit(pruned, schedule.fit, run=run, inplace=True, folder=run.folder / "after")
        pruned, history = after.workload, history + _numbered(after.history, len(history))
    rows = [
        {"epoch": step.epoch, "rate": step.rate, "zeroed": step.zeroed, "newly zeroed": step.changed}
        for step in soft.steps
    ]
    curves = []
    if rows:
        x = [row["epoch"] for row in rows]
        series = {name: [float(row[name]) for row in rows] for name in ("zeroed", "newly zeroed")}
        curves = [_curve("units at zero", "epoch", x, series)]
    return Outcome(pruned, made, history, {"schedule": rows, "curves": curves})


def _gradual(
    workload: Workload,
    budget: Mapping[str, float | int | str] | None,
    schedule: Gradual,
    config: FitConfig | None,
    run: Run,
    options: Mapping[str, Any],
) -> Outcome:
    gradual = GradualPruning(
        workload.example_inputs,
        budget,
        steps=schedule.steps,
        start=schedule.start,
        end=schedule.end,
        at_epochs=schedule.at_epochs,
        spacing=schedule.spacing,
        masked=schedule.masked,
        **{**options, "folder": run.folder},
    )
    result = fit(workload, _needed(config), run=run, callbacks=[gradual])
    made = _planned(gradual.plan)
    made.save(run.folder / "plan.json")
    rows = [{"cut": step.number, "optimizer steps before": step.at, **step.after} for step in gradual.steps]
    curves = [
        _curve(name, "optimizer steps", [float(step.at) for step in gradual.steps], {
            "after the cut": [step.after[name] for step in gradual.steps],
        })
        for name in budget or {}
    ]  # fmt: skip
    details = {"schedule": rows, "curves": curves}
    return Outcome(gradual.applied_to(result.workload), made, _numbered(result.history), details)


def _curve(name: str, x_label: str, x: Sequence[float], series: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    return {
        "title": f"{name} along the schedule",
        "x_label": x_label,
        "y_label": name,
        "series": [{"name": label, "x": list(x), "y": list(y)} for label, y in series.items()],
    }


def _numbered(history: Sequence[Mapping[str, float]], start: int = 0) -> list[dict[str, float]]:
    return [{**row, "epoch": start + number} for number, row in enumerate(history, 1)]


def _needed(config: FitConfig | None) -> FitConfig:
    assert config is not None  # noqa: S101  the step's configuration was validated
    return config


def _planned(made: PrunePlan | None) -> PrunePlan:
    assert made is not None  # noqa: S101  the callback cut at the end of the training
    return made
