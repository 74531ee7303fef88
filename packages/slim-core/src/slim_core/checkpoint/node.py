"""``Node``: a value of parsed JSON with its path, and the checks that the header is read with."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Any, NoReturn

from slim_core.checkpoint.limits import MAX_INT, MAX_NAME, NAME
from slim_core.checkpoint.strict_json import shown
from slim_core.errors import CheckpointError


class Node:
    """One JSON value and where it stands. Every check that fails raises ``CheckpointError`` with that path."""

    __slots__ = ("_key", "_parent", "value")

    def __init__(self, value: Any, key: str | int, parent: Node | None = None) -> None:
        self.value = value
        self._key = key
        self._parent = parent

    @property
    def path(self) -> str:
        """Return where the value stands, fit for a message. Made only when it is asked for: most values are right."""
        before = self._parent.path if self._parent is not None else ""
        if isinstance(self._key, int):
            return f"{before}[{self._key}]"
        return f"{before}.{shown(self._key)}" if before else shown(self._key)

    def fail(self, what: str, *, hint: str | None = None) -> NoReturn:
        raise CheckpointError(what, field=self.path, hint=hint)

    def child(self, key: str | int) -> Node:
        return Node(self.value[key], key, self)

    def record(self, required: Collection[str], optional: Collection[str] = ()) -> dict[str, Node]:
        """Return the members of an object that has exactly these keys."""
        self._expect(dict, "an object")
        for key in required:
            if key not in self.value:
                self.fail(f"the key '{key}' is missing")
        if len(self.value) > len(required):
            for key in self.value:
                if key not in required and key not in optional:
                    self.fail(f"the key '{shown(key)}' is not known to this format version")
        return {key: Node(value, key, self) for key, value in self.value.items()}

    def mapping(self, most: int) -> Iterator[tuple[str, Node]]:
        """Yield the members of an object whose keys are names."""
        self._expect(dict, "an object")
        if len(self.value) > most:
            self.fail(f"it has {len(self.value)} entries, more than {most}")
        for key in self.value:
            if not NAME.match(key):
                self.fail(f"'{shown(key)}' is not a name (letters, digits and _ . : / @ + -, at most {MAX_NAME})")
            yield key, self.child(key)

    def items(self, most: int) -> list[Node]:
        self._expect(list, "a list")
        if len(self.value) > most:
            self.fail(f"it has {len(self.value)} items, more than {most}")
        return [Node(value, index, self) for index, value in enumerate(self.value)]

    def anything(self, kind: type) -> Any:
        """Return an object or list as it is."""
        self._expect(kind, "an object" if kind is dict else "a list")
        return self.value

    def name(self) -> str:
        return self.text(NAME, f"a name (letters, digits and _ . : / @ + -, at most {MAX_NAME})")

    def text(self, pattern: re.Pattern[str], what: str) -> str:
        self._expect(str, "text")
        if not pattern.match(self.value):
            self.fail(f"'{shown(self.value)}' is not {what}")
        return str(self.value)

    def choice(self, options: Collection[str]) -> str:
        self._expect(str, "text")
        if self.value not in options:
            self.fail(f"'{shown(self.value)}' is not one of {', '.join(options)}")
        return str(self.value)

    def whole(self, low: int = 0, high: int = MAX_INT) -> int:
        if type(self.value) is not int:
            self.fail(f"a whole number was expected, not {_kind(self.value)}")
        if not low <= self.value <= high:
            self.fail(f"{self.value} is not between {low} and {high}")
        return int(self.value)

    def number(self, low: float, high: float) -> float:
        """Return a number as it is: a whole one stays whole, so that it is written again as it was."""
        if type(self.value) not in (int, float):
            self.fail(f"a number was expected, not {_kind(self.value)}")
        if not low <= self.value <= high:
            self.fail(f"{self.value} is not between {low} and {high}")
        number: float = self.value
        return number

    def truth(self) -> bool:
        if type(self.value) is not bool:
            self.fail(f"true or false was expected, not {_kind(self.value)}")
        return bool(self.value)

    def sizes(self, most: int, high: int) -> tuple[int, ...]:
        if type(self.value) is list and len(self.value) <= most:
            sizes = tuple(self.value)
            if all(type(size) is int and 0 <= size <= high for size in sizes):
                return sizes
        return tuple(item.whole(0, high) for item in self.items(most))  # says what is wrong

    def _expect(self, kind: type, word: str) -> None:
        if type(self.value) is not kind:
            self.fail(f"{word} was expected, not {_kind(self.value)}")


def _kind(value: Any) -> str:
    words = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return words.get(type(value), "a number")
