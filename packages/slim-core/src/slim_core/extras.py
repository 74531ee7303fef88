"""Optional dependencies: imported when needed, and named with their install command when absent."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from slim_core.errors import MissingExtraError


def require(module: str, extra: str) -> ModuleType:
    """Import and return ``module``, which ``pip install 'extra'`` brings.

    Args:
        module: dotted module name, e.g. ``"onnxruntime"``.
        extra: the requirement that brings it, e.g. ``"slim-latency[onnxruntime]"``.

    Raises:
        MissingExtraError: the module is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or module.split(".")[0] != error.name.split(".")[0]:
            raise  # something inside the module is broken: that is another error
        raise MissingExtraError(f"{module.split('.')[0]} is not installed", hint=f"pip install '{extra}'") from None
