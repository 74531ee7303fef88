"""The end of a run: exported files, timings, the report and its views; and the trial of all that at its beginning."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from slim_core import checkpoint
from slim_core.errors import SlimError
from slim_core.files import write_text
from slim_core.progress import Progress
from slim_core.recipe import folder as files
from slim_core.recipe.build import Prepared
from slim_core.recipe.folder import OutFolder
from slim_core.recipe.judge import judge
from slim_core.recipe.latency import check_backends, time_models
from slim_core.recipe.rows import without_folders
from slim_core.recipe.schema import Recipe
from slim_core.recipe.surroundings import extras
from slim_core.registry import Registry
from slim_core.report import write_views
from slim_core.report.data import LatencyRow, ModelRow, Note, NoteLevel, Report, StepRow, read_report
from slim_core.report.machine import this_device, versions
from slim_core.workload import Workload

#: extension of exported files by format; other formats get their own name
_SUFFIX = {"onnx": ".onnx"}
#: packages that lie together in one repository, under ``packages``
_OWN_PACKAGES = ("slim-core", "slim-prune", "slim-quant", "slim-latency", "slim-distill", "slim-nas", "slim-zoo")

_DIGEST = "sha256:"  # what the registry has for a local file begins with it; no version does


def preflight(recipe: Recipe, prepared: Prepared, folder: OutFolder, registry: Registry, *, tried: bool) -> None:
    """Try what comes last before the long work begins: runtimes, and the export of the untrained model.

    Raises:
        SlimError: an extra is missing, or the model cannot be exported.
    """
    trial: Path | None = None
    try:
        if recipe.export is not None and not tried:
            trial = folder.file(files.STEPS) / f"trial{_suffix(recipe)}"
            _export(recipe, registry, prepared.workload, trial)
        if recipe.measure is not None:
            check_backends(recipe, registry, prepared.workload, trial)
    finally:
        if trial is not None:
            for stray in trial.parent.glob(f"{trial.name}*"):
                stray.unlink()


def finish(
    recipe: Recipe,
    folder: OutFolder,
    registry: Registry,
    prepared: Prepared,
    compressed: Workload,
    rows: Sequence[StepRow],
    progress: Progress,
) -> Report:
    """Export, measure, and write the model, the report and its views."""
    base, last = rows[0].after, rows[-1].after
    path = folder.file(files.CHECKPOINT)
    resolved = _resolved(recipe, folder.path)
    checkpoint.save(compressed, path, recipe=_for_header(recipe), metrics=dict(last.metrics))
    original = _original(folder, registry, prepared, rows[0])
    notes = [Note("warning", text) for text in prepared.notes]
    notes += [Note("warning", text, _where(row)) for row in rows for text in row.notes]
    exported: dict[str, Path] = {}
    if recipe.export is not None:
        with progress.track("export", 2) as track:
            for name, workload, file in (
                ("original", original, f"original{_suffix(recipe)}"),
                ("compressed", compressed, f"model{_suffix(recipe)}"),
            ):
                exported[name] = folder.file(file)
                found = _export(recipe, registry, workload, exported[name])
                notes += [Note("info", text, f"export of the {name} model") for text in found]
                track.advance(1)
    latency: tuple[LatencyRow, ...] = ()
    if recipe.measure is not None:
        latency, said = time_models(
            recipe, registry, {"original": original, "compressed": compressed}, exported, progress
        )
        notes += said
    report = Report(
        title=recipe.name,
        description=recipe.description,
        created=datetime.now(UTC).astimezone().isoformat(timespec="seconds"),
        seconds=sum(row.seconds for row in rows),
        seed=recipe.seed,
        recipe=resolved,
        recipe_hash=folder.identity,
        versions=software(registry),
        device=this_device(),
        metrics=tuple(info for info in prepared.metrics if info.name in {**base.metrics, **last.metrics}),
        original=_final_row(base, "original", "original", exported.get("original")),
        compressed=replace(
            _final_row(last, "compressed", "compressed", exported.get("compressed")),
            checkpoint_bytes=path.stat().st_size,
        ),
        steps=tuple(rows),
        latency=latency,
        files=_files(folder, exported),
        reproduce=_reproduce(recipe, registry, prepared),
        dataset=prepared.dataset,
    )
    merged = _merged((*judge(report), *notes, *_version_notes(folder, report.versions)))
    report = replace(report, notes=tuple(_portable(note, folder) for note in merged))
    write_text(folder.file(files.RESOLVED), yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True))
    write_views(report, folder.path)
    return report


def software(registry: Registry) -> dict[str, str]:
    """Return the versions of the packages in use, and digests of the local files that were loaded as plugins."""
    return {**versions({"slim-core", *registry.installed}), **registry.files}


def changed_files(before: Mapping[str, str], registry: Registry) -> list[str]:
    """Return the local files that are loaded and hold something else than ``before``, a run's software, says."""
    return [name for name, held in registry.files.items() if before.get(name) != held]


def _portable(note: Note, folder: OutFolder) -> Note:
    """Return a note without the folders of this machine."""
    out = f"{folder.path.resolve()}/"
    text, where, hint = (without_folders(part.replace(out, "")) for part in (note.text, note.where, note.hint))
    return Note(note.level, text, where, hint)


def rerender(recipe: Recipe, folder: OutFolder) -> Report | None:
    """Return the report of a run that is finished, its views written again; ``None`` when something is left to do."""
    path = folder.file(files.REPORT)
    if not path.is_file() or not folder.file(files.CHECKPOINT).is_file():
        return None
    try:
        report = read_report(path)
    except SlimError:
        return None
    if report.recipe_hash != folder.identity:
        return None
    wanted = _resolved(recipe, folder.path)
    same = all(
        report.recipe.get(key) == wanted.get(key)
        for key in ("name", "description", "export", "measure", "compare", "steps")
    )
    if not same or any(not folder.file(name).is_file() for name in report.files.values() if name not in files.VIEWS):
        return None
    write_views(report, folder.path)
    return report


def _original(folder: OutFolder, registry: Registry, prepared: Prepared, base: StepRow) -> Workload:
    loaded = checkpoint.load(
        folder.step_folder(base.index, base.kind) / files.CHECKPOINT, registry=registry, factory=prepared.factory
    )
    return replace(prepared.workload, model=loaded.model, transforms=loaded.transforms)


def _export(recipe: Recipe, registry: Registry, workload: Workload, path: Path) -> list[str]:
    assert recipe.export is not None  # noqa: S101
    exporter: Callable[..., Any] = registry.get("exporters", recipe.export.format)
    result = exporter(workload.model, workload.example_inputs, path, dynamic_batch=recipe.export.dynamic_batch)
    return [str(note) for note in getattr(result, "notes", ())]


def _suffix(recipe: Recipe) -> str:
    assert recipe.export is not None  # noqa: S101
    return _SUFFIX.get(recipe.export.format, f".{recipe.export.format}")


def _final_row(row: ModelRow, key: str, label: str, exported: Path | None) -> ModelRow:
    size = None
    if exported is not None:
        size = sum(part.stat().st_size for part in exported.parent.glob(f"{exported.name}*") if part.is_file())
    return replace(row, key=key, label=label, export_bytes=size)


def _files(folder: OutFolder, exported: Mapping[str, Path]) -> dict[str, str]:
    found = {"checkpoint": files.CHECKPOINT}
    if "compressed" in exported:
        found["exported model"] = exported["compressed"].name
        found["exported original"] = exported["original"].name
    found["report"] = files.HTML
    found["figures"] = files.REPORT
    found["model card"] = files.CARD
    found["recipe"] = files.RESOLVED
    return found


def _resolved(recipe: Recipe, out: Path) -> dict[str, Any]:
    """Return the resolved recipe with the weights' path written as seen from the output folder."""
    import os

    data = recipe.resolved()
    weights = recipe.weights_path()
    if weights is not None:
        data["workload"]["weights"] = os.path.relpath(weights.resolve(), out.resolve())
    return data


def _for_header(recipe: Recipe) -> dict[str, Any]:
    """Return the resolved recipe without anything that depends on where files lie: the same run, the same bytes."""
    data = recipe.resolved()
    data["workload"]["weights"] = recipe.weights_digest()
    return data


def _reproduce(recipe: Recipe, registry: Registry, prepared: Prepared) -> tuple[str, ...]:
    owners = _owners(recipe, registry)
    names = {
        "slim-core",
        *(name for name in registry.installed if name in owners or name.removeprefix("slim-") in owners),
    }
    install = _install(versions(names), names, extras(recipe, registry))
    if prepared.factory is not None:
        return (*install, f"slim_core.recipe.run('{files.RESOLVED}', 'out', workload=…)  # from Python")
    loads = "".join(f" --load {shlex.quote(name)}" for name in owners if name.endswith(".py"))
    return (*install, f"slim run {files.RESOLVED} -o out{loads}")


def _install(versions: Mapping[str, str], names: set[str], extras: Sequence[str]) -> tuple[str, ...]:
    """Return what installs these packages with these extras. Development versions are on no index."""
    wanted: dict[str, set[str]] = {name: set() for name in names}
    for extra in extras:
        name, _, inner = extra.rstrip("]").partition("[")
        wanted.setdefault(name, set()).add(inner)
    released, checkout, lines = [], [], []
    for name in sorted(wanted):
        version, inner = versions.get(name), ",".join(sorted(wanted[name] - {""}))
        with_extras = f"{name}[{inner}]" if inner else name
        if version is None or not re.search(r"dev|\+", version):
            released.append(f"{with_extras}=={version}" if version else with_extras)
        elif name in _OWN_PACKAGES:
            checkout.append(f"./packages/{with_extras}")
        else:
            lines.append(f"# {with_extras} {version} is a development version: install it from its own checkout")
    if checkout:
        lines.append("# a development version, which is on no package index: run this in a checkout of Slim")
        lines.append(f"pip install {shlex.join(checkout)}")
    if released:
        lines.append(f"pip install {shlex.join(released)}")
    return tuple(lines)


def _owners(recipe: Recipe, registry: Registry) -> list[str]:
    """Return the plugins that registered what the recipe names."""
    wanted = {("models", recipe.workload.model), ("datasets", recipe.workload.data)}
    wanted |= {("techniques", step.kind) for step in recipe.steps}
    wanted |= {("backends", name) for name in (recipe.measure.backends if recipe.measure else ())}
    wanted |= {("tasks", recipe.workload.task)} if recipe.workload.task else set()
    wanted |= {("exporters", recipe.export.format)} if recipe.export else set()
    kinds = sorted({kind for kind, _ in wanted})
    found = [entry.plugin for kind in kinds for entry in registry.entries(kind) if (kind, entry.name) in wanted]
    return list(dict.fromkeys(found))


def _merged(notes: Sequence[Note]) -> tuple[Note, ...]:
    """Return notes with the same words as one note that names every place."""
    places: dict[tuple[NoteLevel, str, str], list[str]] = {}
    for note in notes:
        places.setdefault((note.level, note.text, note.hint), []).append(note.where)
    return tuple(
        Note(level, text, "; ".join(dict.fromkeys(place for place in where if place)), hint)
        for (level, text, hint), where in places.items()
    )


def _version_notes(folder: OutFolder, now: Mapping[str, str]) -> list[Note]:
    different = [name for name in dict.fromkeys((*folder.versions, *now)) if folder.versions.get(name) != now.get(name)]
    local = [name for name in different if _DIGEST in (folder.versions.get(name, "") + now.get(name, ""))]
    packages = [
        f"{name} {folder.versions.get(name, 'not installed')} and then {now.get(name, 'not installed')}"
        for name in different
        if name not in local
    ]
    hint = "the same recipe may give another model when it is run in one go"
    notes = []
    if packages:
        text = f"the run was begun and resumed with different packages: {'; '.join(packages)}"
        notes.append(Note("warning", text, hint=hint))
    if local:
        text = f"the run was begun and resumed with different contents of {', '.join(local)}"
        notes.append(Note("warning", text, hint=hint))
    return notes


def _where(row: StepRow) -> str:
    return "original" if row.index == 0 else f"step {row.index}, {row.name}"
