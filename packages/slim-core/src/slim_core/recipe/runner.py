"""Runs a recipe: base model, steps, export, measurement, report; checkpoints after each step and resumes from them.

Each step begins from the checkpoint that the step before it wrote, with seeds of its own, so that a run that was
killed and resumed computes what the uninterrupted one computes, and every figure of the report is about a file.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from slim_core import checkpoint
from slim_core.errors import CheckpointError, Interrupted, RecipeError
from slim_core.progress import Progress, SilentProgress
from slim_core.recipe import folder as files
from slim_core.recipe.build import Prepared, evaluate_workload, prepare, seeded, step_seed
from slim_core.recipe.finish import changed_files, finish, preflight, rerender, software
from slim_core.recipe.folder import OutFolder
from slim_core.recipe.load import load_recipe
from slim_core.recipe.rehearsal import at_step, rehearse
from slim_core.recipe.rows import channel_rows, json_value, model_row, table_rows, without_folders
from slim_core.recipe.schema import Recipe, Step
from slim_core.recipe.surroundings import missing
from slim_core.registry import Registry
from slim_core.report.data import Report, StepRow
from slim_core.technique import Run, StepResult
from slim_core.workload import Workload

#: keys of ``StepResult.details`` that the report draws; the others are listed
_DRAWN = ("channels", "history", "layers", "curves", "plots")

BASE = "original"


def run(
    recipe: str | os.PathLike[str] | Mapping[str, Any],
    out: str | os.PathLike[str],
    *,
    workload: Workload | None = None,
    registry: Registry | None = None,
    progress: Progress | None = None,
    overrides: Sequence[str] = (),
    overwrite: bool = False,
) -> Report:
    """Run a recipe.

    Args:
        recipe: path of a YAML file, name of an installed recipe, or the recipe as a mapping.
        out: the output folder; an unfinished run of the same recipe in it is resumed.
        workload: model and data as plain objects; the recipe then has no ``workload`` block.
        registry: what plugins registered; default: all installed plugins.
        progress: where to report; default: nowhere.
        overrides: changes to the recipe, such as ``"seed=3"`` or ``"steps[0].budget.macs=0.4"``.
        overwrite: replace whatever run the folder holds.

    Returns:
        The report, which is also in ``out`` as ``report.json`` and ``report.html``.

    Raises:
        RecipeError: the recipe is not valid.
        OutputFolderError: the folder holds another run, or cannot be written.
        SlimError: a step cannot be done; what is finished stays in ``out``.
    """
    if registry is None:
        from slim_core.plugins import load_plugins

        registry = load_plugins().registry
    source = recipe if isinstance(recipe, Mapping) else os.fspath(recipe)
    loaded = load_recipe(source, registry, overrides=overrides, own_workload=workload is not None)
    return run_recipe(loaded, out, registry=registry, progress=progress, workload=workload, overwrite=overwrite)


def run_recipe(
    recipe: Recipe,
    out: str | os.PathLike[str],
    *,
    registry: Registry,
    progress: Progress | None = None,
    workload: Workload | None = None,
    overwrite: bool = False,
) -> Report:
    """Run a recipe that was read and checked already. See :func:`run`.

    Raises:
        OutputFolderError: the folder holds another run, or cannot be written.
        Interrupted: Ctrl-C; the same call goes on.
        SlimError: a step cannot be done; what is finished stays in ``out``.
    """
    return run_or_reuse(recipe, out, registry=registry, progress=progress, workload=workload, overwrite=overwrite)[0]


def run_or_reuse(
    recipe: Recipe,
    out: str | os.PathLike[str],
    *,
    registry: Registry,
    progress: Progress | None = None,
    workload: Workload | None = None,
    overwrite: bool = False,
) -> tuple[Report, bool]:
    """Run a recipe as :func:`run_recipe` does; also tell whether it was finished already, so that nothing ran."""
    progress = progress or SilentProgress()
    identity = recipe.identity()
    if workload is not None:
        identity = _identity_with(identity, workload)
    used = software(registry)
    with files.open_folder(out, identity, recipe.resolved(), versions=used, overwrite=overwrite) as folder:
        state = _State()
        try:
            with seeded(recipe.seed):  # the caller's generators are given back as they were
                done = rerender(recipe, folder)
                if done is not None:
                    _tell_finished(folder, done, registry, progress)
                    return done, True
                return _run(recipe, folder, registry, progress, workload, state), False
        except KeyboardInterrupt:
            raise Interrupted(
                f"interrupted {state.doing}",
                hint=f"the same command resumes there (finished work is in '{folder.path}')",
            ) from None


def _tell_finished(folder: OutFolder, done: Report, registry: Registry, progress: Progress) -> None:
    progress.note(f"this recipe is finished in '{folder.path}'; its report was written again")
    for name in changed_files(done.versions, registry):
        progress.note(f"{name} has changed since that run; --overwrite runs the recipe with the file as it is now")


@dataclass(slots=True)
class _State:
    doing: str = "before the first step"


def _run(
    recipe: Recipe,
    folder: OutFolder,
    registry: Registry,
    progress: Progress,
    own: Workload | None,
    state: _State,
) -> Report:
    for problem in missing(recipe, registry):
        raise problem
    rows = _finished(recipe, folder)
    with seeded(recipe.seed):
        prepared = prepare(recipe, registry, own)
        size = sum(tensor.numel() * tensor.element_size() for tensor in prepared.workload.model.state_dict().values())
        files.require_space(folder.path, 3 * size * (len(recipe.steps) + 2) + (16 << 20))
        preflight(recipe, prepared, folder, registry, tried=bool(rows))
    if not rows:
        state.doing = "before training"
        rehearse(recipe, registry, prepared.workload)
    if rows:
        progress.note(f"resuming after {_label(rows[-1])}: {len(rows)} of {len(recipe.steps) + 1} parts are done")
        for name in changed_files(folder.versions, registry):
            progress.note(f"{name} has changed since this run was begun; --overwrite begins anew")
    current, rows = _resume(recipe, folder, registry, prepared, rows, progress)
    with progress.track(recipe.name, len(recipe.steps) + 1) as track:
        track.advance(len(rows))
        for index in range(len(rows), len(recipe.steps) + 1):
            step = recipe.steps[index - 1] if index else None
            state.doing = (
                f"in step {index} of {len(recipe.steps)} ({step.name})" if step else "while training the original"
            )
            before = rows[-1] if rows else None
            row, current = _do_step(recipe, step, current, before, prepared, folder, registry, progress)
            rows.append(row)
            track.advance(1)
        state.doing = "while exporting and measuring"
        with seeded(recipe.seed):
            return finish(recipe, folder, registry, prepared, current, rows, progress)


def _do_step(
    recipe: Recipe,
    step: Step | None,
    workload: Workload,
    before: StepRow | None,
    prepared: Prepared,
    folder: OutFolder,
    registry: Registry,
    progress: Progress,
) -> tuple[StepRow, Workload]:
    """Do one step (``None``: the base), write its checkpoint, read it back, and judge what was read."""
    index, kind, name = (step.index, step.kind, step.name) if step else (0, BASE, BASE)
    started = time.monotonic()
    seed = step_seed(recipe.seed, index)
    context = Run(
        folder=folder.work_folder(index, kind),
        seed=seed,
        registry=registry,
        progress=progress,
        log=logging.getLogger(f"slim.step{index}"),
    )
    with seeded(seed):
        if step is not None:
            with at_step(recipe, step):
                result = registry.get("techniques", step.kind)().run(workload, step.config, context)
        else:
            result = _base(recipe, workload, context)
    path = folder.step_folder(index, kind) / files.CHECKPOINT
    checkpoint.save(result.workload, path)
    current = _read_back(workload, path, registry, prepared)
    with seeded(seed):
        metrics = evaluate_workload(current, progress)
    last = before.after if before else None
    after, notes = model_row("original" if index == 0 else f"step-{index}", name, current, metrics, path, last)
    details = {key: json_value(value) for key, value in result.details.items() if key not in _DRAWN}
    row = StepRow(
        index=index,
        kind=kind,
        name=name,
        seconds=time.monotonic() - started,
        before=last,
        after=after,
        channels=channel_rows(result.details.get("channels")),
        history=table_rows(result.details.get("history")),
        layers=table_rows(result.details.get("layers")),
        curves=table_rows(result.details.get("curves")),
        plots=table_rows(result.details.get("plots")),
        details=details,
        notes=tuple(without_folders(note) for note in (*result.notes, *notes)),
    )
    folder.finish_step(row)
    return row, current


def _base(recipe: Recipe, workload: Workload, context: Run) -> StepResult:
    if recipe.train is None:
        return StepResult(workload)
    from slim_core.training import FitConfig, fit

    assert isinstance(recipe.train, FitConfig)  # noqa: S101
    result = fit(workload, recipe.train, run=context)
    return StepResult(result.workload, {"history": [dict(row) for row in result.history]})


def _read_back(workload: Workload, path: Path, registry: Registry, prepared: Prepared) -> Workload:
    """Return ``workload`` with the model of a checkpoint, and with the data that it had."""
    loaded = checkpoint.load(path, registry=registry, factory=prepared.factory)
    return replace(workload, model=loaded.model, transforms=loaded.transforms)


def _finished(recipe: Recipe, folder: OutFolder) -> list[StepRow]:
    """Return the rows of the steps that are done, without gaps."""
    rows: list[StepRow] = []
    for index in range(len(recipe.steps) + 1):
        step = recipe.steps[index - 1] if index else None
        row = folder.finished_step(index, step.kind if step else BASE)
        if row is None:
            break
        rows.append(replace(row, name=step.name if step else BASE))
    return rows


def _resume(
    recipe: Recipe,
    folder: OutFolder,
    registry: Registry,
    prepared: Prepared,
    rows: list[StepRow],
    progress: Progress,
) -> tuple[Workload, list[StepRow]]:
    """Return the workload that the next step begins from; a damaged checkpoint makes its step be done again.

    The original is looked at too, because the end of the run compares with it: when it is damaged, all begins anew.
    """
    rows = list(rows)

    def usable(row: StepRow) -> Workload | None:
        path = folder.step_folder(row.index, row.kind) / files.CHECKPOINT
        try:
            return _read_back(prepared.workload, path, registry, prepared)
        except CheckpointError as error:
            progress.note(f"the checkpoint of {_label(row)} cannot be used, so that step is done again: {error.what}")
            return None

    if len(rows) > 1 and usable(rows[0]) is None:
        for row in rows:
            folder.forget_step(row.index, row.kind)
        return prepared.workload, []
    while rows:
        workload = usable(rows[-1])
        if workload is not None:
            return workload, rows
        folder.forget_step(rows[-1].index, rows[-1].kind)
        rows.pop()
    return prepared.workload, rows


def _label(row: StepRow) -> str:
    return "the original" if row.index == 0 else f"step {row.index} ({row.name})"


def _identity_with(identity: str, workload: Workload) -> str:
    """Return a hash that also covers the weights of a workload that was passed from Python."""
    import hashlib

    import torch

    digest = hashlib.sha256(identity.encode())
    for name, tensor in workload.model.state_dict().items():
        if not isinstance(tensor, torch.Tensor):
            raise RecipeError(f"'{name}' in the model's state dict is not a tensor: such a model cannot be saved")
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
