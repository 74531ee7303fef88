"""Times the original against the compressed model on the backends that a recipe names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slim_core.data import batch_size
from slim_core.errors import RecipeError, SlimError
from slim_core.measure import Artifact, Measurement, batched, measure
from slim_core.progress import Progress
from slim_core.recipe.schema import Recipe
from slim_core.registry import Registry
from slim_core.report.data import LatencyRow, Note
from slim_core.workload import Workload

ORIGINAL, COMPRESSED = "original", "compressed"


def check_backends(recipe: Recipe, registry: Registry, workload: Workload, exported: Path | None) -> None:
    """Make sure that every backend is there and takes the base model.

    Args:
        recipe: a recipe with a ``measure`` block.
        registry: where the backends are registered.
        workload: the base model.
        exported: the base model, exported; ``None`` where the recipe exports nothing, or where it was tried before.

    Raises:
        SlimError: a runtime is not installed, or cannot run the model; says which key of the recipe asks for it.
    """
    assert recipe.measure is not None  # noqa: S101
    where = recipe.source.where
    fixed = recipe.export is not None and not recipe.export.dynamic_batch
    size = batch_size(workload.example_inputs)
    for batch in recipe.measure.batches:
        if fixed and batch != size:
            raise RecipeError(
                f"batch {batch} cannot be measured: export.dynamic_batch is false; the inputs have batch {size}",
                where=where(("measure", "batch")),
                hint="set export.dynamic_batch to true, or measure that batch only",
            )
    for position, name in enumerate(recipe.measure.backends):
        backend = registry.get("backends", name)()
        try:
            backend.available()
            if name != "compile" and (exported is not None or recipe.export is None):  # compiling takes long
                artifact = Artifact(workload.model, exported, ORIGINAL)
                inputs = batched(workload.example_inputs, recipe.measure.batches[0])
                backend.prepare(artifact, inputs, threads=recipe.measure.threads).close()
        except SlimError as error:
            error.where = error.where or where(("measure", "backends", position))
            if recipe.export is None and "ONNX" in error.what:
                error.hint = "add `export: {}` to the recipe"
            raise


def time_models(
    recipe: Recipe,
    registry: Registry,
    models: Mapping[str, Workload],
    exported: Mapping[str, Path],
    progress: Progress,
) -> tuple[tuple[LatencyRow, ...], list[Note]]:
    """Time both models, interleaved, on every backend at every batch size.

    A measurement that fails becomes a note: the rest of the report does not depend on it.
    """
    assert recipe.measure is not None  # noqa: S101
    rows: list[LatencyRow] = []
    notes: list[Note] = []
    artifacts = {name: Artifact(workload.model, exported.get(name), name) for name, workload in models.items()}
    for name in recipe.measure.backends:
        for batch in recipe.measure.batches:
            place = f"{name}, batch {batch}"
            inputs = batched(models[ORIGINAL].example_inputs, batch)
            try:
                backend = registry.get("backends", name)()
                candidates = {key: (backend, artifacts[key]) for key in (ORIGINAL, COMPRESSED)}
                found = measure(
                    candidates,
                    inputs,
                    rounds=recipe.measure.rounds,
                    threads=recipe.measure.threads,
                    seed=recipe.seed,
                    progress=progress,
                )
            except SlimError as error:
                notes.append(Note("bad", f"nothing was measured: {error.what}", place, error.hint or ""))
                continue
            rows.append(row_of(name, batch, found))
            notes += _notes(found, place)
    return tuple(rows), notes


def row_of(backend: str, batch: int, found: Measurement) -> LatencyRow:
    """Return the report's row of one measurement."""
    original, compressed = found[ORIGINAL], found[COMPRESSED]
    low, high = compressed.speedup_interval
    settings: dict[str, Any] = dict(compressed.info.get("settings") or {})
    if compressed.agreement is not None:
        settings["agreement"] = str(compressed.agreement)
    return LatencyRow(
        backend=backend,
        runtime=str(compressed.info.get("runtime", backend)),
        batch=batch,
        threads=compressed.info.get("threads"),
        original_ms=original.median_ms,
        original_iqr_ms=original.iqr_ms,
        compressed_ms=compressed.median_ms,
        compressed_iqr_ms=compressed.iqr_ms,
        speedup=compressed.speedup,
        speedup_low=low,
        speedup_high=high,
        rounds=len(compressed.samples_ms),
        settings=settings,
    )


def _notes(found: Measurement, place: str) -> Sequence[Note]:
    return [Note("info", text, place) for text in found.notes]
