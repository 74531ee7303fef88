"""Pydantic's complaints in a recipe's words: the key path, file and line, and the close match."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from slim_core.errors import RecipeError, SlimError, close_match
from slim_core.recipe.source import KeyPath, Source, show_path

_WORDS = {
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "dict_type": "must be a mapping of keys and values",
    "model_type": "must be a mapping of keys and values",
    "model_attributes_type": "must be a mapping of keys and values",
    "none_required": "must be empty",
    "finite_number": "must be a finite number",
}


def raise_all(problems: Sequence[SlimError], name: str) -> None:
    """Raise one error that tells every problem; do nothing when there is none."""
    if not problems:
        return
    if len(problems) == 1:
        only = problems[0]
        raise RecipeError(only.what, where=only.where, hint=only.hint, problems=problems)
    blocks = "\n".join("- " + str(problem).replace("\n", "\n  ") for problem in problems)
    raise RecipeError(f"{name} has {len(problems)} problems:\n{blocks}", problems=problems)


def at(source: Source, path: KeyPath, error: SlimError) -> RecipeError:
    """Return ``error`` as a problem of the key at ``path``."""
    place = f" at {show_path(path)}" if path else ""
    return RecipeError(f"{error.what}{place}", where=source.where(path), hint=error.hint)


def explain(
    error: ValidationError, model: type[BaseModel], data: Any, prefix: KeyPath, source: Source
) -> list[SlimError]:
    """Return one problem for each key that ``error`` complains about.

    Args:
        error: what pydantic raised for ``data``.
        model: the model that ``data`` was checked against.
        data: the values, as written.
        prefix: where ``data`` stands in the recipe.
        source: the recipe.
    """
    merged: dict[tuple[KeyPath, bool], list[Mapping[str, Any]]] = {}
    for item in error.errors(include_url=False):
        path = _real_path(item["loc"], data, missing=item["type"] == "missing")
        special = item["type"] in ("extra_forbidden", "missing")
        merged.setdefault((path, special), []).append(item)  # the branches of a union complain one by one
    problems: list[SlimError] = []
    for (path, special), items in merged.items():
        if not special and any(len(other) > len(path) and other[: len(path)] == path for other, _ in merged):
            continue  # one branch of a union refuses the whole value, the other one something inside it
        problems.append(_problem(items, model, path, (*prefix, *path), source))
    return problems


def _problem(
    items: Sequence[Mapping[str, Any]], model: type[BaseModel], path: KeyPath, full: KeyPath, source: Source
) -> RecipeError:
    kind, parent = items[0]["type"], full[:-1]
    if kind == "extra_forbidden":
        known = sorted(set(_fields_at(model, path[:-1])) | ({"kind", "name"} if _is_step(parent) else set()))
        near = close_match(str(path[-1]), known)
        listed = f"known keys: {', '.join(known)}" if known and (not near or len(known) <= 12) else ""
        hints = [near, listed]
        place = f" at {show_path(parent)}" if parent else ""
        return RecipeError(
            f"unknown key '{path[-1]}'{place}",
            where=source.where(full),
            hint="; ".join(hint for hint in hints if hint) or None,
        )
    if kind == "missing":
        place = f" at {show_path(parent)}" if parent else ""
        return RecipeError(f"key '{full[-1]}' is missing{place}", where=source.where(parent))
    texts = list(dict.fromkeys(_text(item) for item in items))
    given, hint = items[0]["input"], None
    if kind == "literal_error" and isinstance(given, str):
        expected = str(items[0].get("ctx", {}).get("expected", ""))
        hint = close_match(given, expected.replace(" or ", ", ").replace("'", "").split(", ")) or None
    elif isinstance(given, str) and kind.endswith(("_type", "_parsing")):
        hint = "remove the quotes" if given.replace(".", "", 1).lstrip("-").isdigit() else None
    shown = (
        repr(given) if not isinstance(given, dict | list) else f"a {'mapping' if isinstance(given, dict) else 'list'}"
    )
    shown = shown if len(shown) <= 80 else shown[:77] + "…"
    return RecipeError(
        f"'{show_path(full) or 'the recipe'}' {' or '.join(texts)}, not {shown}", where=source.where(full), hint=hint
    )


def _text(item: Mapping[str, Any]) -> str:
    if item["type"] in _WORDS:
        return _WORDS[item["type"]]
    message: str = item["msg"]
    message = message.removeprefix("Value error, ").removeprefix("Assertion failed, ")
    return message.replace("Input should be", "must be").replace("should have", "must have")


def _is_step(path: KeyPath) -> bool:
    return len(path) == 2 and path[0] == "steps"


def _real_path(loc: Sequence[Any], data: Any, *, missing: bool) -> KeyPath:
    """Drop what pydantic puts between the keys (names of union branches) from a location."""
    path: list[str | int] = []
    for position, part in enumerate(loc):
        last = position == len(loc) - 1
        if isinstance(data, Mapping) and (part in data or (last and missing)):
            path.append(part)
            data = data.get(part)
        elif isinstance(data, list | tuple) and isinstance(part, int) and 0 <= part < len(data):
            path.append(part)
            data = data[part]
    return tuple(path)


def _fields_at(model: Any, path: KeyPath) -> list[str]:
    """Return the keys that are allowed at ``path`` inside ``model``."""
    found: list[Any] = [model]
    for part in path:
        found = [step for annotation in found for step in _inside(annotation, part)]
    return [name for annotation in found for leaf in _models(annotation) for name in leaf.model_fields]


def _inside(annotation: Any, part: str | int) -> Iterator[Any]:
    for choice in _choices(annotation):
        if isinstance(choice, type) and issubclass(choice, BaseModel):
            if isinstance(part, str) and part in choice.model_fields:
                yield choice.model_fields[part].annotation
        elif get_origin(choice) in (list, tuple, set, frozenset):
            yield from (argument for argument in get_args(choice) if argument is not Ellipsis)
        elif len(get_args(choice)) == 2:  # a mapping
            yield get_args(choice)[1]


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    for choice in _choices(annotation):
        if isinstance(choice, type) and issubclass(choice, BaseModel):
            yield choice


def _choices(annotation: Any) -> Iterator[Any]:
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _choices(get_args(annotation)[0])
    elif origin in (Union, UnionType):
        for argument in get_args(annotation):
            yield from _choices(argument)
    else:
        yield annotation
