"""Which arguments a registered builder takes, as far as its signature tells."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from typing import Any


def accepted(factory: Callable[..., Any]) -> tuple[str, ...] | None:
    """Return the keyword arguments that ``factory`` takes, or ``None`` when it takes any or does not tell.

    ``**options: Unpack[Options]`` with a ``TypedDict`` tells its keys.
    """
    try:
        parameters = list(inspect.signature(factory).parameters.values())
    except (TypeError, ValueError):
        return None
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    for parameter in parameters:
        if parameter.kind is parameter.VAR_KEYWORD:
            keys = _unpacked_keys(factory, parameter.name)
            if keys is None:
                return None
            names += keys
    return tuple(names)


def _unpacked_keys(factory: Callable[..., Any], name: str) -> list[str] | None:
    try:
        annotation = typing.get_type_hints(factory).get(name)
    except (NameError, TypeError, AttributeError):
        return None
    if typing.get_origin(annotation) is not typing.Unpack:
        return None
    (options,) = typing.get_args(annotation)
    return list(options.__annotations__) if typing.is_typeddict(options) else None
