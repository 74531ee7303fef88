"""Making what a configuration names with options, such as ``{"name": "percentile", "share": 0.999}``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from slim_core.errors import SlimError, close_match

T = TypeVar("T")


def build(name: str, maker: Callable[..., T], options: Mapping[str, Any], kind: str) -> T:
    """Call ``maker`` with ``options``.

    Raises:
        SlimError: it takes no such option (names the close ones), or not with this value.
    """
    known = [
        parameter.name
        for parameter in inspect.signature(maker).parameters.values()
        if parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    for option in options:
        if option not in known:
            hint = f"{close_match(option, known)} it takes: {', '.join(known) or 'none'}".strip()
            raise SlimError(f"{kind} '{name}' has no option '{option}'", hint=hint)
    try:
        return maker(**options)
    except (TypeError, ValueError) as error:
        raise SlimError(f"{kind} '{name}' with {dict(options)}: {error}") from error
