"""Binding the options of functions that are named with them, ``{"name": "l1", "normalize": "max"}``.

Criteria and allocations share this. Not here: looking a name up, and taking it apart (``slim_core.named``).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

from slim_core.errors import SlimError, close_match

F = TypeVar("F", bound=Callable[..., Any])


def with_options(name: str, function: F, options: Mapping[str, Any], kind: str) -> tuple[str, F]:
    """Return label and function with its options bound.

    Raises:
        SlimError: the function takes no such option; names the close ones.
    """
    if not options:
        return name, function
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        parameters = None
    if parameters is not None and not any(item.kind is item.VAR_KEYWORD for item in parameters):
        known = [item.name for item in parameters if item.kind is item.KEYWORD_ONLY]
        known = known or [item.name for item in parameters if item.default is not item.empty]
        for key in options:
            if key not in known:
                hints = [close_match(key, known), f"it takes: {', '.join(known)}" if known else "it takes no options"]
                raise SlimError(f"{kind} '{name}' takes no option '{key}'", hint="; ".join(filter(None, hints)))
    label = name + "(" + ", ".join(f"{key}={value!r}" for key, value in options.items()) + ")"
    return label, partial(function, **options)  # type: ignore[return-value]


def label_of(function: Any) -> str:
    """Return what a function that was passed is called in plans and messages."""
    return str(getattr(function, "__name__", type(function).__name__))
