"""Recipe file or mapping -> checked :class:`Recipe`. Every problem is told at once. Nothing is built or run here."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from slim_core.budget import parse_budget
from slim_core.errors import RecipeError, SlimError, close_match
from slim_core.recipe.arguments import accepted
from slim_core.recipe.problems import at, explain, raise_all
from slim_core.recipe.schema import RECIPE_VERSION, Recipe, Skeleton, Step
from slim_core.recipe.source import KeyPath, Source, from_mapping, read_file, read_text, show_path
from slim_core.registry import Registry

#: what a resolved recipe names where the workload was passed as an object
OWN = "(passed from Python)"

_STEP_KEYS = ("kind", "name")
_SET_PART = re.compile(r"([^.\[\]]+)|\[([0-9]+)\]")


def load_recipe(
    recipe: str | Path | Mapping[str, Any],
    registry: Registry,
    *,
    overrides: Sequence[str] = (),
    own_workload: bool = False,
) -> Recipe:
    """Read and check a recipe.

    Args:
        recipe: path of a YAML file, name of a recipe that a plugin ships, or the recipe as a mapping.
        registry: what plugins registered; names in the recipe are looked up there.
        overrides: ``"seed=3"`` or ``"steps[0].budget.macs=0.4"``; the value is read like YAML.
        own_workload: the caller brings model and data, so that the recipe needs no ``workload`` block.

    Raises:
        RecipeError: the recipe is not valid; ``problems`` holds every problem with its line.
    """
    source = find_source(recipe, registry)
    data = source.data
    if not isinstance(data, dict):
        what = "is empty" if data is None else f"is a {type(data).__name__}, not a mapping of keys and values"
        raise RecipeError(
            f"the recipe {what}", where=source.name, hint="`slim recipe show NAME` prints a recipe to start from"
        )
    for override in overrides:
        source = _set(source, override)
    return _check(source, registry, own_workload)


def find_source(recipe: str | Path | Mapping[str, Any], registry: Registry) -> Source:
    """Return the recipe as plain values: from a path, from a shipped recipe's name, or from a mapping.

    Raises:
        RecipeError: there is no such file and no such name, or it is not YAML.
    """
    if isinstance(recipe, Mapping):
        return from_mapping(recipe)
    path = Path(recipe)
    if path.is_file():
        return read_file(path)
    name = str(recipe)
    if ("recipes", name) in registry:
        return read_file(shipped_path(name, registry))
    known = registry.names("recipes")
    hints = [
        close_match(name, known),
        close_match(path.name, [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []),
        "`slim recipe list` shows the recipes that are installed",
    ]
    raise RecipeError(
        f"there is no recipe file and no installed recipe '{name}'", hint="; ".join(hint for hint in hints if hint)
    )


def shipped_path(name: str, registry: Registry) -> Path:
    """Return the file of the recipe that a plugin registered as ``name``."""
    value = registry.get("recipes", name)
    path = Path(value() if callable(value) else value)
    if not path.is_file():
        raise RecipeError(f"recipe '{name}' is registered, but its file is not there", where=str(path))
    return path


def validate_config(model: type[BaseModel], data: Any, path: KeyPath, source: Source) -> tuple[Any, list[SlimError]]:
    """Check ``data``, which stands at ``path``, against ``model``: the instance or ``None``, and the problems."""
    try:
        # JSON mode: a list may fill a tuple and text an enum, while nothing else is coerced
        return model.model_validate_json(json.dumps(data)), []
    except ValidationError as error:
        return None, explain(error, model, data, path, source)
    except SlimError as error:  # a technique's own validator
        return None, [at(source, path, error)]


def _check(source: Source, registry: Registry, own_workload: bool) -> Recipe:
    data: dict[str, Any] = dict(source.data)
    problems: list[SlimError] = []
    if own_workload:
        if "workload" in data:
            raise RecipeError(
                "the recipe has a workload, and another one was passed to run()",
                where=source.where(("workload",)),
                hint="leave one of the two out",
            )
        data["workload"] = {"model": OWN, "data": OWN}
    version = data.get("version")
    if isinstance(version, int) and version != RECIPE_VERSION:
        raise RecipeError(
            f"this is a recipe of version {version}; this Slim reads version {RECIPE_VERSION}",
            where=source.where(("version",)),
            hint="pip install -U slim-core" if version > RECIPE_VERSION else None,
        )
    skeleton, found = validate_config(Skeleton, data, (), source)
    problems += found
    train = _train(data.get("train"), source, problems)
    steps = _steps(data.get("steps"), source, registry, problems)
    if not own_workload:
        _names(data, source, registry, problems)
    _outputs(data, source, registry, problems)
    problems.sort(key=_line)
    raise_all(problems, source.name)
    assert isinstance(skeleton, Skeleton)  # noqa: S101  # no problem means that it was built
    return Recipe(
        name=skeleton.name or _title(source),
        description=skeleton.description,
        seed=skeleton.seed,
        workload=skeleton.workload,
        train=train,
        steps=tuple(steps),
        export=skeleton.export,
        measure=skeleton.measure,
        compare=skeleton.compare,
        source=source,
    )


def _line(problem: SlimError) -> int:
    tail = (problem.where or "").rpartition(":")[2]
    return int(tail) if tail.isdigit() else 0


def _title(source: Source) -> str:
    return Path(source.name).stem or "recipe"


def _train(data: Any, source: Source, problems: list[SlimError]) -> BaseModel | None:
    if not isinstance(data, dict):  # the skeleton complains about anything else
        return None
    from slim_core.training import FitConfig

    config, found = validate_config(FitConfig, data, ("train",), source)
    problems += found
    return config if isinstance(config, BaseModel) else None


def _steps(data: Any, source: Source, registry: Registry, problems: list[SlimError]) -> list[Step]:
    steps: list[Step] = []
    if not isinstance(data, list):
        return steps
    for position, item in enumerate(data):
        path: KeyPath = ("steps", position)
        if not isinstance(item, dict):
            continue
        kind, name = item.get("kind"), item.get("name")
        if kind is None:
            near = close_match("kind", [key for key in item if key != "name"])
            problems.append(
                RecipeError(
                    f"key 'kind' is missing at {show_path(path)}",
                    where=source.where(path),
                    hint=near or f"write a technique: {', '.join(registry.names('techniques')) or 'none is installed'}",
                )
            )
            continue
        if not isinstance(kind, str):
            problems.append(RecipeError(f"'{show_path((*path, 'kind'))}' must be text", where=source.where(path)))
            continue
        if name is not None and not (isinstance(name, str) and 0 < len(name) <= 200):
            problems.append(RecipeError(f"'{show_path((*path, 'name'))}' must be text", where=source.where(path)))
        try:
            technique = registry.get("techniques", kind)
        except SlimError as error:
            problems.append(at(source, (*path, "kind"), error))
            continue
        given = {key: value for key, value in item.items() if key not in _STEP_KEYS}
        config, found = validate_config(technique.Config, given, path, source)
        problems += found
        if config is None:
            continue
        problems += _check_step(technique, config, path, source, registry)
        label = name if isinstance(name, str) else kind
        steps.append(Step(position + 1, kind, label, config))
    return steps


def _check_step(technique: Any, config: Any, path: KeyPath, source: Source, registry: Registry) -> list[SlimError]:
    """Budgets and whatever the technique itself can check without a model."""
    problems: list[SlimError] = []
    budget = getattr(config, "budget", None)
    if isinstance(budget, Mapping):
        try:
            for bound in parse_budget(budget):
                try:
                    registry.get("cost_models", bound.cost)
                except SlimError as error:
                    problems.append(at(source, (*path, "budget", bound.cost), error))
        except SlimError as error:
            problems.append(at(source, (*path, "budget"), error))
    check: Callable[[Any, Registry], None] | None = getattr(technique, "check", None)
    if check is not None and not problems:
        try:
            check(config, registry)
        except SlimError as error:
            problems.append(at(source, path, error))
    return problems


def _names(data: Mapping[str, Any], source: Source, registry: Registry, problems: list[SlimError]) -> None:
    workload = data.get("workload")
    if not isinstance(workload, dict):
        return
    for key, kwargs_key, kind in (
        ("model", "kwargs", "models"),
        ("data", "data_kwargs", "datasets"),
        ("task", "task_kwargs", "tasks"),
    ):
        name, kwargs = workload.get(key), workload.get(kwargs_key, {})
        if not isinstance(name, str) or not isinstance(kwargs, dict):
            if name is None and kwargs and key == "task":
                problems.append(
                    RecipeError(
                        f"'workload.{kwargs_key}' is given without 'workload.{key}'",
                        where=source.where(("workload", kwargs_key)),
                    )
                )
            continue
        try:
            factory = registry.get(kind, name)
        except SlimError as error:
            problems.append(at(source, ("workload", key), error))
            continue
        problems += _check_kwargs(factory, kwargs, ("workload", kwargs_key), source, name)
    weights = workload.get("weights")
    if isinstance(weights, str):
        path = source.folder / Path(weights).expanduser()
        if not path.is_file():
            problems.append(
                RecipeError(
                    f"there is no file '{path}' for 'workload.weights'",
                    where=source.where(("workload", "weights")),
                    hint="a relative path starts at the folder of the recipe",
                )
            )


def _check_kwargs(factory: Any, kwargs: Mapping[str, Any], path: KeyPath, source: Source, name: str) -> list[SlimError]:
    known = accepted(factory)
    if known is None:
        return []
    problems: list[SlimError] = []
    for key in kwargs:
        if key not in known:
            hints = [close_match(key, known), f"it takes: {', '.join(known)}" if known else "it takes none"]
            problems.append(
                RecipeError(
                    f"'{name}' takes no argument '{key}' at {show_path(path)}",
                    where=source.where((*path, key)),
                    hint="; ".join(hint for hint in hints if hint),
                )
            )
    return problems


def _outputs(data: Mapping[str, Any], source: Source, registry: Registry, problems: list[SlimError]) -> None:
    export, measure = data.get("export"), data.get("measure")
    if isinstance(export, dict) and isinstance(export.get("format", "onnx"), str):
        try:
            registry.get("exporters", export.get("format", "onnx"))
        except SlimError as error:
            problems.append(at(source, ("export", "format") if "format" in export else ("export",), error))
    backends = measure.get("backends") if isinstance(measure, dict) else None
    for position, name in enumerate(backends if isinstance(backends, list) else ()):
        if isinstance(name, str):
            try:
                registry.get("backends", name)
            except SlimError as error:
                problems.append(at(source, ("measure", "backends", position), error))


def _set(source: Source, override: str) -> Source:
    """Return ``source`` with one value replaced, as ``--set key=value`` asks."""
    flag = f"--set {override}"
    key, equals, text = override.partition("=")
    path: list[str | int] = []
    end = 0
    for match in _SET_PART.finditer(key.strip()):
        path.append(int(match[2]) if match[2] is not None else match[1])
        end = match.end()
    if not equals or not path or end != len(key.strip()):
        raise RecipeError(
            f"cannot read '{flag}'", hint="write for example --set seed=3 or --set 'steps[0].budget.macs=0.4'"
        )
    value = read_text(text, name=flag).data
    data = json.loads(json.dumps(source.data))
    target = data
    for position, part in enumerate(path):
        inside = isinstance(target, list) and isinstance(part, int) and part < len(target)
        if not inside and not (isinstance(target, dict) and isinstance(part, str)):
            around = show_path(tuple(path[:position])) or "the recipe"
            has = f"it has {len(target)} entries" if isinstance(target, list) else f"it is a {type(target).__name__}"
            raise RecipeError(f"'{flag}' fits nothing: {around} has no '{part}'", where=source.name, hint=has)
        if position == len(path) - 1:
            target[part] = value
        else:
            if isinstance(target, dict) and target.get(part) is None:
                target[part] = {}
            target = target[part]
    lines = {**source.lines, tuple(path): flag}
    return replace(source, data=data, lines=lines)
