"""Recipe text -> plain JSON values, with the line of every key. Nothing here knows what the keys mean.

YAML is read by the rules of YAML 1.2's core schema: ``1e-3`` is a number, ``on`` and ``no`` are words, dates are text.
Tags, duplicate keys, keys that are not text, and documents that unfold into more than :data:`MAX_VALUES` values are
refused, so that a hostile file costs neither memory nor time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from slim_core.errors import RecipeError

MAX_BYTES = 1 << 20
MAX_DEPTH = 24
MAX_VALUES = 20_000

#: Where a value stands in a recipe: keys and list positions from the top.
KeyPath = tuple[str | int, ...]

_NULL = re.compile(r"(?:~|null|Null|NULL|)")
_BOOL = re.compile(r"(?:true|True|TRUE|false|False|FALSE)")
_INT = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")


@dataclass(frozen=True, slots=True)
class Source:
    """A recipe as plain values, and where each key was written.

    Args:
        data: the values: mappings, lists, text, numbers, booleans and ``None``.
        name: what messages call the file.
        lines: line numbers (from 1) by key path, or the option that set the key; empty for a recipe that was given as
            a mapping.
        folder: the folder that relative paths in the recipe start from.
    """

    data: Any
    name: str = "recipe"
    lines: Mapping[KeyPath, int | str] = field(default_factory=dict)
    folder: Path = field(default_factory=Path)

    def where(self, path: KeyPath = ()) -> str:
        """Return ``file:line`` of the key at ``path``, or of the nearest key around it that was written down."""
        for length in range(len(path), -1, -1):
            line = self.lines.get(path[:length])
            if line is not None:
                return line if isinstance(line, str) else f"{self.name}:{line}"
        return self.name


def read_file(path: Path) -> Source:
    """Read the recipe file ``path``.

    Raises:
        RecipeError: it is not there, too large, not UTF-8, or not YAML as described above.
    """
    try:
        with open(path, "rb") as handle:
            raw = handle.read(MAX_BYTES + 1)
    except OSError as error:
        raise RecipeError(
            f"the recipe cannot be read: {error.strerror}",
            where=str(path),
            hint="`slim recipe list` shows the recipes that are installed",
        ) from None
    if len(raw) > MAX_BYTES:
        raise RecipeError(f"the recipe is larger than {MAX_BYTES} bytes", where=str(path))
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(f"the recipe is not UTF-8 text: {error}", where=str(path)) from None
    return read_text(text, name=str(path), folder=path.parent)


def read_text(text: str, *, name: str = "recipe", folder: Path | None = None) -> Source:
    """Read a recipe from YAML text.

    Raises:
        RecipeError: it is not YAML as described above; says the line.
    """
    if len(text) > MAX_BYTES:
        raise RecipeError(f"the recipe is larger than {MAX_BYTES} bytes", where=name)
    try:
        _check_events(text, name)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = " ".join(part for part in (error.context, error.problem) if part)
        raise RecipeError(
            f"not valid YAML: {problem}",
            where=f"{name}:{mark.line + 1}" if mark else name,
            hint="check indentation, colons and quotes on this line and the one before",
        ) from None
    except (yaml.YAMLError, ValueError) as error:
        raise RecipeError(f"not valid YAML: {error}", where=name) from None
    builder = _Builder(name)
    data = builder.value(root, (), 0) if root is not None else None
    return Source(data, name, builder.lines, folder or Path())


def from_mapping(data: Mapping[str, Any], *, name: str = "recipe", folder: Path | None = None) -> Source:
    """Wrap a recipe that a program made. Tuples become lists; other objects are refused."""
    return Source(_plain(data, (), name), name, {}, folder or Path())


def show_path(path: KeyPath) -> str:
    """Return ``steps[1].fit.epochs`` for ``("steps", 1, "fit", "epochs")``."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part}" if text else part
    return text


def parse_scalar(text: str) -> Any:
    """Return the value of an unquoted scalar by the rules of YAML 1.2's core schema."""
    if _NULL.fullmatch(text):
        return None
    if _BOOL.fullmatch(text):
        return text.lower() == "true"
    if _INT.fullmatch(text) and len(text) < 64:
        return int(text)
    if _FLOAT.fullmatch(text):
        number = float(text)
        return number if abs(number) != float("inf") else text
    return text


def _check_events(text: str, name: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        where = f"{name}:{event.start_mark.line + 1}" if event.start_mark else name
        if getattr(event, "tag", None) is not None:
            raise RecipeError(f"tags are not allowed in recipes: {event.tag}", where=where, hint="remove the tag")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise RecipeError(f"values are nested deeper than {MAX_DEPTH} levels", where=where)
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


class _Builder:
    """Turns composed nodes into plain values, and notes the lines."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lines: dict[KeyPath, int | str] = {}
        self.count = 0

    def value(self, node: yaml.Node, path: KeyPath, depth: int) -> Any:
        self.count += 1
        where = f"{self.name}:{node.start_mark.line + 1}"
        if self.count > MAX_VALUES or depth > MAX_DEPTH:  # aliases unfold: a small file can hold many values
            raise RecipeError(f"the recipe unfolds into more than {MAX_VALUES} values", where=where)
        self.lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path, depth)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*path, index), depth + 1) for index, item in enumerate(node.value)]
        text: str = node.value
        return text if node.style in ("'", '"', "|", ">") else parse_scalar(text)

    def _mapping(self, node: yaml.MappingNode, path: KeyPath, depth: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise RecipeError("a key must be text", where=f"{self.name}:{line}")
            key: str = key_node.value
            if key in result:
                first = self.lines[(*path, key)]
                raise RecipeError(
                    f"key '{show_path((*path, key))}' is written twice",
                    where=f"{self.name}:{line}",
                    hint=f"remove one of the two; the first is on line {first}",
                )
            self.lines[(*path, key)] = line
            result[key] = self.value(value_node, (*path, key), depth + 1)
        return result


def _plain(value: Any, path: KeyPath, name: str) -> Any:
    if len(path) > MAX_DEPTH:
        raise RecipeError(f"values are nested deeper than {MAX_DEPTH} levels", where=f"{name}: {show_path(path[:3])}…")
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            raise RecipeError(f"'{show_path(path)}' is {value}, which a recipe cannot hold", where=name)
        return value
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise RecipeError(f"a key must be text: {key!r}", where=f"{name}: {show_path(path)}")
        return {key: _plain(item, (*path, key), name) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, (*path, index), name) for index, item in enumerate(value)]
    raise RecipeError(
        f"'{show_path(path)}' is a {type(value).__name__}; a recipe holds text, numbers, lists and mappings",
        where=name,
        hint="register models, data and tasks by name, or pass them as run(…, workload=Workload(…))",
    )
