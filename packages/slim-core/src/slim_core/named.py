"""Things that are named with options, ``{"name": "l1", "normalize": "max"}``: taking them apart.

Not here: looking a name up, and handing the options over, which each kind of thing does its own way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slim_core.errors import SlimError

#: A registered name, alone or with options.
Named = str | Mapping[str, Any]


def split(value: Named, what: str, example: str) -> tuple[str, dict[str, Any]]:
    """Return name and options of ``"name"`` or ``{"name": …, **options}``.

    Args:
        value: the name, alone or with options.
        what: for the error: ``"an allocation"``.
        example: for the error.

    Raises:
        SlimError: there is no name.
    """
    if isinstance(value, str):
        return value, {}
    options = dict(value) if isinstance(value, Mapping) else {}
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise SlimError(f"{what} with options needs a name", hint=f"write {example}")
    return name, options
