"""What slim-core itself registers: it enters by the same door as every plugin. Imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from slim_core import hookimpl
from slim_core.registry import Lazy

if TYPE_CHECKING:
    from slim_core.registry import Register


@hookimpl
def slim_register_techniques(register: Register) -> None:
    register("fit", Lazy("slim_core.training.technique", "FitTechnique"))


@hookimpl
def slim_register_tasks(register: Register) -> None:
    register("classification", Lazy("slim_core.tasks", "ClassificationTask"))


@hookimpl
def slim_register_cost_models(register: Register) -> None:
    for name, attribute in (
        ("macs", "MacsCost"),
        ("params", "ParamsCost"),
        ("bytes", "BytesCost"),
        ("memory", "MemoryCost"),
    ):
        register(name, Lazy("slim_core.graph.cost", attribute))


@hookimpl
def slim_register_backends(register: Register) -> None:
    register("eager", Lazy("slim_core.measure.eager", "EagerBackend"))
    register("compile", Lazy("slim_core.measure.eager", "CompileBackend"))


@hookimpl
def slim_register_exporters(register: Register) -> None:
    register("onnx", Lazy("slim_core.export", "to_onnx"))


@hookimpl
def slim_register_op_rules(register: Register) -> None:
    pass


@hookimpl
def slim_register_recipes(register: Register) -> None:
    pass


@hookimpl
def slim_register_commands(cli: Any) -> None:
    """Commands of the core: ``add_lazy(name, where the click command is, one line for ``slim --help``)``."""
    cli.add_lazy(
        "plugins",
        Lazy("slim_core.cli.plugins", "plugins"),
        "List installed plugins, what they add, and why one failed.",
    )
    cli.add_lazy(
        "new-plugin", Lazy("slim_core.cli.new_plugin", "new_plugin"), "Write a working plugin package to start from."
    )
    cli.add_lazy("run", Lazy("slim_core.cli.run", "run"), "Run a recipe: compress, export, measure, report.")
    cli.add_lazy("report", Lazy("slim_core.cli.run", "report"), "Show the report of a finished run again.")
    cli.add_lazy("recipe", Lazy("slim_core.cli.recipe", "recipe"), "Check, list and show recipes; print their schema.")
    cli.add_lazy(
        "graph",
        Lazy("slim_core.cli.graph", "graph"),
        "Show a model's costs, channel groups, and what is frozen and why.",
    )
    cli.add_lazy(
        "inspect", Lazy("slim_core.cli.checkpoint", "inspect"), "Say what a checkpoint is, from its header alone."
    )
    cli.add_lazy("verify", Lazy("slim_core.cli.checkpoint", "verify"), "Check the hashes of a checkpoint.")
    cli.add_lazy("diff", Lazy("slim_core.cli.checkpoint", "diff"), "Say what differs between two checkpoints.")
