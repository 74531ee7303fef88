"""Lets every step say what cannot work, with the untrained model, before the long work begins."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from slim_core.errors import SlimError
from slim_core.recipe.build import seeded, step_seed
from slim_core.recipe.schema import Recipe, Step
from slim_core.registry import Registry
from slim_core.technique import Run
from slim_core.workload import Workload


def rehearse(recipe: Recipe, registry: Registry, workload: Workload) -> None:
    """Call ``rehearse`` of every step's technique, in order, up to the first one that cannot tell what comes after.

    Neither the workload nor any random generator is changed.

    Raises:
        SlimError: what a step found; ``where`` begins with the line of the recipe.
    """
    current: Workload | None = None
    with tempfile.TemporaryDirectory(prefix="slim-") as scratch:
        for step in recipe.steps:
            technique = registry.get("techniques", step.kind)()
            if not hasattr(technique, "rehearse"):
                return
            if current is None:
                current = replace(workload, model=copy.deepcopy(workload.model))
            seed = step_seed(recipe.seed, step.index)
            with seeded(seed), at_step(recipe, step):
                run = Run(folder=Path(scratch), seed=seed, registry=registry)
                current = technique.rehearse(current, step.config, run)
            if current is None:
                return


@contextmanager
def at_step(recipe: Recipe, step: Step) -> Iterator[None]:
    """Add the line of the recipe to the errors of a step."""
    try:
        yield
    except SlimError as error:
        place = recipe.source.where(("steps", step.index - 1))
        error.where = f"{place}, step {step.index}" + (f" ({error.where})" if error.where else "")
        raise
