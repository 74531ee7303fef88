"""Every hook of slim-core. A plugin implements the ones that it needs, with ``slim_core.hookimpl``.

Registering hooks run once, when the plugin host loads the plugin, in the order of this file. They receive a
``register(name, value)`` callback; a value that is expensive to import is registered as ``slim_core.Lazy``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from slim_core.registry import Commands, Register, Registry

hookspec = pluggy.HookspecMarker("slim")


@hookspec
def slim_add_hookspecs(pluginmanager: pluggy.PluginManager, registry: Registry) -> None:
    """Add hookspecs of the plugin's own. Called first, for all plugins, before anything is registered.

    ``registry.add_kind("importances", "importance criterion")`` declares a kind of registered things; the host then
    calls ``slim_register_importances(register)`` together with the core's own registering hooks.

    .. versionadded:: 0.1
    """


@hookspec
def slim_register_techniques(register: Register) -> None:
    """Register :class:`slim_core.technique.Technique` classes by their recipe kind (``"prune.uniform"``).

    .. versionadded:: 0.1
    """


@hookspec
def slim_register_models(register: Register) -> None:
    """Register model builders: callables that take JSON keyword arguments and return an ``nn.Module``.

    .. versionadded:: 0.1
    """


@hookspec
def slim_register_datasets(register: Register) -> None:
    """Register data sets: callables that take JSON keyword arguments and return a :class:`slim_core.data.Dataset`.

    .. versionadded:: 0.1
    """


@hookspec
def slim_register_tasks(register: Register) -> None:
    """Register tasks: callables that take JSON keyword arguments and return a :class:`slim_core.workload.Task`.

    .. versionadded:: 0.1
    """


@hookspec
def slim_register_cost_models(register: Register) -> None:
    """Register :class:`slim_core.graph.cost.CostModel` factories by the name that budgets use (``"latency:my-phone"``).

    .. versionadded:: 0.1
    """


@hookspec
def slim_register_backends(register: Register) -> None:
    """Register :class:`slim_core.measure.Backend` classes by name.

    .. versionadded:: 0.1
    """


@hookspec
def slim_register_losses(register: Register) -> None:
    """Register losses: callables that take outputs and targets and return a scalar tensor.

    .. versionadded:: 0.1
    """


@hookspec
def slim_register_exporters(register: Register) -> None:
    """Register exporters by format name (``"onnx"``).

    .. versionadded:: 0.1
    """


@hookspec
def slim_register_transforms(register: Register) -> None:
    """Register :class:`slim_core.workload.Replayer` classes (or instances) by transform kind (``"prune.channels"``).

    .. versionadded:: 0.1
    """


@hookspec
def slim_register_op_rules(register: Register) -> None:
    """Register channel-coupling rules by operator name (``"mylib.my_op.default"``).

    .. versionadded:: 0.1
    """


@hookspec
def slim_register_recipes(register: Register) -> None:
    """Register recipes that the plugin ships, by name: paths of YAML files inside the package.

    .. versionadded:: 0.1
    """


@hookspec
def slim_register_commands(cli: Commands) -> None:
    """Add commands to the ``slim`` command. Called last, when the command line starts.

    ``cli`` is a click group of the plugin's own, which is merged into ``slim`` when the hook returns; beside click's
    ``add_command`` and ``command`` it has ``add_lazy``, which imports the command's module only when it is run.

    .. versionadded:: 0.1
    """
