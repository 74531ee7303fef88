"""Times the original against the compressed model on the backends that a recipe names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from slim_core.progress import Progress
from slim_core.recipe.schema import Recipe
from slim_core.registry import Registry
from slim_core.report.data import LatencyRow
from slim_core.workload import Workload


def check_backends(recipe: Recipe, registry: Registry) -> None:
    """Make sure that every backend can be used here."""


def time_models(
    recipe: Recipe,
    registry: Registry,
    models: Mapping[str, Workload],
    exported: Mapping[str, Path],
    progress: Progress,
) -> tuple[tuple[LatencyRow, ...], list[str]]:
    """Time both models, interleaved."""
    return (), []
