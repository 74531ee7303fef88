"""The contracts of Slim. Importing this package imports no torch: names resolve when they are first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import pluggy

from slim_core.errors import SlimError
from slim_core.registry import Lazy, Registry

if TYPE_CHECKING:
    from slim_core import register as register
    from slim_core.plugins import PluginHost as PluginHost
    from slim_core.plugins import load_plugins as load_plugins
    from slim_core.workload import BuilderRef as BuilderRef
    from slim_core.workload import Transform as Transform
    from slim_core.workload import Workload as Workload

hookimpl = pluggy.HookimplMarker("slim")

_LAZY = {
    "Workload": "slim_core.workload",
    "BuilderRef": "slim_core.workload",
    "Transform": "slim_core.workload",
    "PluginHost": "slim_core.plugins",
    "load_plugins": "slim_core.plugins",
}

__all__ = ["Lazy", "Registry", "SlimError", "hookimpl", "register", *_LAZY]


def __getattr__(name: str) -> Any:
    if name == "register":
        return import_module("slim_core.register")
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'slim_core' has no attribute {name!r}")
