"""Finding cost models by name: the core's own without loading any plugin, others through the registry."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from slim_core import builtin
from slim_core.registry import Lazy

if TYPE_CHECKING:
    from slim_core.graph.cost import CostModel
    from slim_core.registry import Registry


def cost_models(names: Iterable[str], registry: Registry | None = None) -> dict[str, CostModel]:
    """Return cost models by name, each once, in the order given.

    Raises:
        UnknownNameError: nobody registered a name; says which package would bring it.
    """
    own: dict[str, Any] = {}

    def register(name: str, value: Any) -> None:
        own[name] = value

    builtin.slim_register_cost_models(register)
    found: dict[str, CostModel] = {}
    for name in dict.fromkeys(names):
        if registry is None and name not in own:
            registry = installed()
        value = own[name] if registry is None or name in own else registry.get("cost_models", name)
        value = value.resolve() if isinstance(value, Lazy) else value
        found[name] = value() if isinstance(value, type) or not hasattr(value, "total") else value
    return found


def installed() -> Registry:
    """Return what all installed plugins registered. Takes a moment, so only for names that are not built in."""
    from slim_core.plugins import load_plugins

    return load_plugins().registry
