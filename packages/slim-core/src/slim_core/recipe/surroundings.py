"""What a recipe needs from the machine it runs on: files of its data, packages of its exporter and runtimes.

A recipe without them is valid all the same; a run would fail. Nothing is built or read here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from slim_core.errors import SlimError
from slim_core.extras import require
from slim_core.recipe.load import OWN
from slim_core.recipe.schema import Recipe
from slim_core.recipe.source import KeyPath
from slim_core.registry import Registry


def missing(recipe: Recipe, registry: Registry) -> list[SlimError]:
    """Return one error for everything that is not here, each with the line of the recipe that asks for it."""
    problems: list[SlimError] = []
    for path, look in _looks(recipe, registry):
        try:
            look()
        except SlimError as error:
            place = recipe.source.where(path)
            error.where = f"{place} ({error.where})" if error.where else place
            problems.append(error)
    return problems


def extras(recipe: Recipe, registry: Registry) -> list[str]:
    """Return the extras that the recipe's exporter and runtimes need, such as ``slim-latency[onnxruntime]``."""
    values = [value for _, value in _parts(recipe, registry)]
    return list(dict.fromkeys(extra for value in values for _, extra in getattr(value, "requires", ())))


def _parts(recipe: Recipe, registry: Registry) -> Iterator[tuple[KeyPath, Any]]:
    if recipe.export is not None:
        yield ("export", "format"), registry.get("exporters", recipe.export.format)
    for position, name in enumerate(recipe.measure.backends if recipe.measure is not None else ()):
        yield ("measure", "backends", position), registry.get("backends", name)


def _looks(recipe: Recipe, registry: Registry) -> Iterator[tuple[KeyPath, Callable[[], Any]]]:
    if recipe.workload.data != OWN:
        check = getattr(registry.get("datasets", recipe.workload.data), "check", None)
        if callable(check):
            yield ("workload", "data"), partial(check, **recipe.workload.data_kwargs)
    for path, value in _parts(recipe, registry):
        if path[0] == "measure":
            yield path, value().available
        else:
            yield path, partial(_require_all, getattr(value, "requires", ()))


def _require_all(wanted: Iterable[tuple[str, str]]) -> None:
    for module, extra in wanted:
        require(module, extra)
