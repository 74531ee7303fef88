"""Iterative pruning of a workload: cut a little, fine-tune, plan anew, cut again; resumable at every epoch of it."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slim_core.data import length, take
from slim_core.errors import SlimError
from slim_core.files import write_json
from slim_core.progress import Progress, SilentProgress
from slim_core.technique import Run
from slim_core.training.config import FitConfig
from slim_core.training.loop import fit
from slim_core.training.state import digest, model_tensors
from slim_core.workload import DataSource, Workload, tensors_of
from slim_prune.errors import PlanError
from slim_prune.locking import owned
from slim_prune.prune_plan import PrunePlan
from slim_prune.schedules.path import Spacing
from slim_prune.schedules.stepwise import Stepwise

_IDENTITY = "schedule.json"
_PLAN = "plan.json"
#: arguments that decide what is pruned
_ASKED = ("importance", "allocation", "include", "exclude", "ratios", "round_to", "min_channels", "prefer", "seed")


@dataclass(frozen=True, slots=True)
class IterativeResult:
    """What :func:`prune_iteratively` returns.

    Args:
        workload: the workload with the pruned and fine-tuned model, and one transform from the model that was given.
        plan: the composed plan of all steps.
        steps: one row per step: ``step``, ``epochs``, kept units as ``<cost>``, the limit of the step as
            ``<cost> allowed``, and the metrics after its training where it validated.
        history: the epochs of all steps, numbered through.
    """

    workload: Workload
    plan: PrunePlan
    steps: tuple[Mapping[str, float], ...]
    history: tuple[Mapping[str, float], ...]


def prune_iteratively(
    workload: Workload,
    budget: Mapping[str, float | int | str] | None = None,
    *,
    steps: int = 4,
    spacing: Spacing = "geometric",
    fit_between: FitConfig | None = None,
    fit_after: FitConfig | None = None,
    folder: Path | str | None = None,
    run: Run | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> IterativeResult:
    """Prune a copy of the workload's model in steps, with fine-tuning after each.

    With a folder, each step's plan and the state of its training are kept there, and a call with the same arguments,
    model and data goes on after the last finished epoch, bit for bit.

    Args:
        workload: model, data and task.
        budget: the final budget, met by the last step.
        steps: number of cuts.
        spacing: how the steps' budgets are spaced; see :class:`Stepwise`.
        fit_between: fine-tuning after every step but the last; ``None``: none.
        fit_after: fine-tuning after the last step; ``None``: none.
        folder: where state is kept; default: ``run.folder``.
        run: gives folder, seed, progress and registry inside a recipe.
        progress: where to report; default: ``run.progress``.
        options: further arguments of :class:`Stepwise` and :func:`slim_prune.plan`.

    Raises:
        BudgetError: the budget is out of reach.
        SlimError: the folder holds the state of another run, or another process is working there.
    """
    if run is not None:
        folder = run.folder if folder is None else folder
        progress = run.progress if progress is None else progress
        options.setdefault("registry", run.registry)
        options.setdefault("seed", run.seed)
    progress = progress or SilentProgress()
    options.setdefault("task", workload.task)
    options.setdefault("train", workload.train)
    options.setdefault("val", workload.val)
    place = Path(folder) if folder is not None else None
    fits = (fit_between, fit_after)
    with owned(place, "pruning in this folder"):
        if place is not None:
            asked = {name: options.get(name) for name in _ASKED}
            dumped = [None if config is None else config.model_dump(mode="json") for config in fits]
            asked |= {"budget": budget, "steps": steps, "spacing": spacing, "fit": dumped}
            _claim(place, workload, asked, options)
        return _prune(workload, budget, steps, spacing, fits, place, run, progress, options)


def _prune(
    workload: Workload,
    budget: Mapping[str, float | int | str] | None,
    steps: int,
    spacing: Spacing,
    fits: tuple[FitConfig | None, FitConfig | None],
    place: Path | None,
    run: Run | None,
    progress: Progress,
    options: Mapping[str, Any],
) -> IterativeResult:
    current = workload.with_model(copy.deepcopy(workload.model))
    stepwise = Stepwise(
        current.model, workload.example_inputs, budget, steps=steps, spacing=spacing, progress=progress, **options
    )
    rows: list[dict[str, float]] = []
    history: list[dict[str, float]] = []
    with progress.track("prune in steps", steps) as track:
        for number in range(1, steps + 1):
            own = place / f"step-{number}" if place is not None else None
            made = _cut(stepwise, own)
            row = _row(number, stepwise, made)
            config = fits[1] if number == steps else fits[0]
            if config is not None:
                result = fit(current, config, run=run, inplace=True, folder=own, progress=progress)
                _append(history, result.history)
                row |= {"epochs": len(result.history), **_metrics(result.history)}
            rows.append(row)
            track.advance(1)
    assert stepwise.plan is not None  # noqa: S101  there is at least one step
    done = workload.with_model(current.model, stepwise.plan.transform())
    return IterativeResult(done, stepwise.plan, tuple(rows), tuple(history))


def _cut(stepwise: Stepwise, folder: Path | None) -> PrunePlan:
    """Take the next step; one that was planned already is read from its folder."""
    if folder is None:
        return stepwise.cut()
    path = folder / _PLAN
    if path.exists():
        made = PrunePlan.load(path)
        made.check(stepwise.model)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        made = stepwise.propose(folder=folder)
        made.save(path)
    made.apply(stepwise.model, inplace=True)
    stepwise.take(made)
    return made


def _claim(folder: Path, workload: Workload, asked: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Write down whose state the folder holds, or check that it is this run's.

    Raises:
        SlimError: it holds another run's.
    """
    text = json.dumps(asked, sort_keys=True, default=_name)
    task = workload.task if workload.task is not None else options["task"]
    identity = {
        "model": digest(model_tensors(workload.model)),
        "asked": hashlib.sha256(text.encode()).hexdigest(),
        "task": task.name if task is not None else None,
        "data": {name: known_of(getattr(workload, name) or options[name]) for name in ("train", "val")},
    }
    path = folder / _IDENTITY
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        write_json(path, identity)
        return
    except (OSError, ValueError) as error:
        raise SlimError(
            f"the state of an earlier run cannot be read: {error}", where=str(path), hint="choose another folder"
        ) from error
    different = _difference(there, identity)
    if different is not None:
        raise PlanError(
            f"the folder holds the state of another run: {different}",
            where=str(path),
            hint="choose another folder, or delete this one to start anew",
        )


def _difference(there: Any, here: Mapping[str, Any]) -> str | None:
    """Say in what the run that a folder belongs to differs from this one; ``None``: in nothing that is known."""
    there = there if isinstance(there, Mapping) else {}
    if there.get("model") != here["model"]:
        return "its model had other starting weights"
    if there.get("asked") != here["asked"]:
        return "its budget, steps or options were others"
    if there.get("task") != here["task"]:
        return f"its task was '{there.get('task')}'"
    for name, known in here["data"].items():
        other = there.get("data", {}).get(name) or {}
        for what, value in (known or {}).items():
            if value is not None and other.get(what) not in (None, value):
                return f"its {name} data was other data: not the same {what}"
        if bool(known) != bool(other):
            return f"it had {'no ' if known else ''}{name} data"
    return None


def known_of(source: DataSource | None) -> dict[str, Any] | None:
    """Return what tells one source of batches from another without reading all of it.

    How many batches it has, and what its first one holds where that is the same each time: a list, or a source that
    gives its samples ``plain()``. ``None`` stands for what is not known, and differs from nothing.
    """
    if source is None:
        return None
    fixed = isinstance(source, list | tuple) or hasattr(source, "plain")
    content = None
    if fixed and length(source):
        content = digest({str(number): tensor for number, tensor in enumerate(tensors_of(take(source, 1)))})
    return {"batches": length(source), "first sample": content}


def _name(value: object) -> str:
    """What stands for a function or an object of the user's in the identity of a run."""
    return getattr(value, "__qualname__", type(value).__qualname__)


def _row(number: int, stepwise: Stepwise, made: PrunePlan) -> dict[str, float]:
    row: dict[str, float] = {"step": number, "epochs": 0}
    for name, allowed in stepwise.limits_at(number).items():
        row |= {name: made.after[name], f"{name} allowed": allowed}
    return row


def _append(history: list[dict[str, float]], rows: Sequence[Mapping[str, float]]) -> None:
    start = len(history)
    history += [{**row, "epoch": start + number} for number, row in enumerate(rows, 1)]


def _metrics(history: Sequence[Mapping[str, float]]) -> dict[str, float]:
    known = ("epoch", "lr", "images_per_s")
    return {name: value for name, value in (history[-1] if history else {}).items() if name not in known}
