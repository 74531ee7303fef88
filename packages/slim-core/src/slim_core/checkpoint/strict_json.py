"""Canonical JSON for writing, and reading of JSON from a hostile file. Every failure is a ``CheckpointError``.

Python's parser takes what JSON does not allow (NaN) and what nobody should have to think about (a key twice, numbers
beyond any range); here these are refused, before and while parsing.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from slim_core.checkpoint.limits import MAX_DEPTH, MAX_INT, MAX_VALUES
from slim_core.errors import CheckpointError

#: Control characters (a terminal would obey them) and lone surrogates (no encoding can write them).
_UNFIT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


def canonical(value: Any) -> str:
    """Return ``value`` as ASCII JSON with sorted keys and without blanks; equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)


def parse(raw: bytes, field: str) -> Any:
    """Return the value of a JSON text.

    Args:
        raw: the text, as UTF-8.
        field: what the errors call it.

    Raises:
        CheckpointError: not JSON, not UTF-8, a key twice in one object, NaN or infinity, a number out of range,
            nested deeper than ``MAX_DEPTH``, more values than ``MAX_VALUES``, or a string with control characters.
    """
    if sum(raw.count(mark) for mark in (b",", b"[", b"{")) > MAX_VALUES:
        raise CheckpointError(f"it holds more than {MAX_VALUES} values", field=field)
    reader = _Reader(field)
    try:
        text = raw.decode("utf-8")
        value = json.loads(
            text,
            object_pairs_hook=reader.mapping,
            parse_int=reader.whole,
            parse_float=reader.real,
            parse_constant=reader.constant,
        )
    except UnicodeDecodeError:
        raise CheckpointError("it is not UTF-8 text", field=field) from None
    except json.JSONDecodeError as error:
        raise CheckpointError(f"it is not JSON: {error.msg} at character {error.pos}", field=field) from None
    except RecursionError:
        raise CheckpointError(f"it is nested deeper than {MAX_DEPTH}", field=field) from None
    # Only an escape can put a control character into a string of JSON, all but those above 0x7e.
    _walk(value, field, texts="\\u" in text or not text.isascii() or "\x7f" in text)
    return value


def plain(value: Any, field: str, *, depth: int = 0) -> Any:
    """Return ``value`` as what JSON gives back for it: tuples as lists, numpy scalars as numbers.

    Raises:
        CheckpointError: it is not JSON; names the part that is not.
    """
    if depth > MAX_DEPTH:
        raise CheckpointError(f"it is nested deeper than {MAX_DEPTH}", field=field)
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, str):
        _check_text(value, field)
        return str(value)
    if isinstance(value, int):
        if abs(value) > MAX_INT:
            raise CheckpointError(f"{value} is out of range", field=field)
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise CheckpointError(f"{value} cannot be written: JSON has no such number", field=field)
        return float(value)
    if isinstance(value, Mapping):
        found = {}
        for key, item in value.items():
            if not isinstance(key, str):
                raise CheckpointError(f"keys are text, not {type(key).__name__} {key!r}", field=field)
            _check_text(key, field)
            found[str(key)] = plain(item, f"{field}.{key}", depth=depth + 1)
        return found
    if isinstance(value, list | tuple):
        return [plain(item, f"{field}[{index}]", depth=depth + 1) for index, item in enumerate(value)]
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
        return plain(value.item(), field, depth=depth)
    raise CheckpointError(
        f"a value of type {type(value).__name__} cannot be written as JSON",
        field=field,
        hint="use text, numbers, booleans, None, lists and dicts",
    )


def shown(text: str, most: int = 80) -> str:
    """Return hostile text fit for a message: ASCII, escaped, not longer than ``most``."""
    safe = ascii(text)[1:-1]
    return safe if len(safe) <= most else f"{safe[:most]}…"


class _Reader:
    """The hooks of one parse."""

    def __init__(self, field: str) -> None:
        self.field = field

    def mapping(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise CheckpointError(f"the key '{shown(twice)}' stands twice in one object", field=self.field)
        return found

    def whole(self, text: str) -> int:
        if len(text) > 20 or abs(number := int(text)) > MAX_INT:
            raise CheckpointError(f"the number {shown(text, 24)} is out of range", field=self.field)
        return number

    def real(self, text: str) -> float:
        number = float(text)
        if not math.isfinite(number):
            raise CheckpointError(f"the number {shown(text, 24)} is out of range", field=self.field)
        return number

    def constant(self, text: str) -> NoReturn:
        raise CheckpointError(f"{text} is not JSON", field=self.field)


def _walk(value: Any, field: str, *, texts: bool) -> None:
    """Check depth; with ``texts``, every string too."""
    stack = [(value, 0)]
    while stack:
        item, depth = stack.pop()
        if depth > MAX_DEPTH:
            raise CheckpointError(f"it is nested deeper than {MAX_DEPTH}", field=field)
        if isinstance(item, str):
            _check_text(item, field)
            continue
        if isinstance(item, dict):
            for key in item if texts else ():
                _check_text(key, field)
            members: Iterable[Any] = item.values()
        elif isinstance(item, list):
            members = item
        else:
            continue
        for inner in members:
            kind = type(inner)
            if kind is dict or kind is list or (texts and kind is str):
                stack.append((inner, depth + 1))


def _check_text(text: str, field: str) -> None:
    if _UNFIT.search(text):
        raise CheckpointError(f"the text '{shown(text)}' holds control characters", field=field)
