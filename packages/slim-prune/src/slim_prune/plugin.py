"""The plugin: what slim-prune registers. Imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from slim_core import hookimpl
from slim_core.registry import Lazy

if TYPE_CHECKING:
    import pluggy

    from slim_core.registry import Register, Registry

#: slim-prune's own importance criteria; ``slim_prune.importance`` reads the same table.
IMPORTANCES = {
    "l1": Lazy("slim_prune.importance.magnitude", "l1"),
    "l2": Lazy("slim_prune.importance.magnitude", "l2"),
    "random": Lazy("slim_prune.importance.random", "random"),
}

#: slim-prune's own allocations; ``slim_prune.allocation`` reads the same table.
ALLOCATIONS = {
    "uniform": Lazy("slim_prune.allocation.uniform", "uniform"),
}


@hookimpl
def slim_add_hookspecs(pluginmanager: pluggy.PluginManager, registry: Registry) -> None:
    from slim_prune import hookspecs

    pluginmanager.add_hookspecs(hookspecs)
    registry.add_kind("importances", "importance criterion", {})
    registry.add_kind("allocations", "allocation", {})


@hookimpl
def slim_register_techniques(register: Register) -> None:
    register("prune.uniform", Lazy("slim_prune.technique", "UniformPruning"))


@hookimpl
def slim_register_transforms(register: Register) -> None:
    register("prune.channels", Lazy("slim_prune.record", "ChannelsReplayer"))


@hookimpl
def slim_register_importances(register: Register) -> None:
    for name, value in IMPORTANCES.items():
        register(name, value)


@hookimpl
def slim_register_allocations(register: Register) -> None:
    for name, value in ALLOCATIONS.items():
        register(name, value)


@hookimpl
def slim_register_commands(cli: Any) -> None:
    cli.add_lazy("prune", Lazy("slim_prune.cli", "prune"), "Plan which channels to remove, and look at plans.")
