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
    "activation": Lazy("slim_prune.importance.activation", "Activation"),
    "apoz": Lazy("slim_prune.importance.activation", "APoZ"),
    "bn_scale": Lazy("slim_prune.importance.norms", "BNScale"),
    "fisher": Lazy("slim_prune.importance.gradients", "Fisher"),
    "fpgm": Lazy("slim_prune.importance.geometry", "fpgm"),
    "hessian": Lazy("slim_prune.importance.hessian", "Hessian"),
    "l1": Lazy("slim_prune.importance.magnitude", "l1"),
    "l2": Lazy("slim_prune.importance.magnitude", "l2"),
    "lamp": Lazy("slim_prune.importance.magnitude", "lamp"),
    "lp": Lazy("slim_prune.importance.magnitude", "Lp"),
    "random": Lazy("slim_prune.importance.random", "Random"),
    "taylor": Lazy("slim_prune.importance.gradients", "Taylor"),
}

#: slim-prune's own allocations; ``slim_prune.allocation`` reads the same table.
ALLOCATIONS = {
    "uniform": Lazy("slim_prune.allocation.uniform", "uniform"),
    "evolution": Lazy("slim_prune.allocation.evolution", "evolution"),
    "global": Lazy("slim_prune.allocation.global_", "rank_globally"),
    "latency": Lazy("slim_prune.allocation.latency", "within_latency"),
    "sensitivity": Lazy("slim_prune.allocation.sensitivity", "sensitivity"),
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
    register("prune.evolution", Lazy("slim_prune.evolution.technique", "EvolutionPruning"))
    register("prune.global", Lazy("slim_prune.techniques", "GlobalPruning"))
    register("prune.latency", Lazy("slim_prune.techniques", "LatencyPruning"))
    register("prune.sensitivity", Lazy("slim_prune.sensitivity.technique", "SensitivityPruning"))
    register("prune.slimming", Lazy("slim_prune.importance.slimming_step", "SlimmingTraining"))
    register("prune.sparsity", Lazy("slim_prune.sparsity.technique", "SparsityPruning"))


@hookimpl
def slim_register_transforms(register: Register) -> None:
    register("prune.channels", Lazy("slim_prune.record", "ChannelsReplayer"))
    register("prune.sparse", Lazy("slim_prune.sparsity.record", "SparseReplayer"))


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
