"""The hooks that slim-prune adds. Other plugins implement them with ``slim_core.hookimpl``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from slim_core.registry import Register

hookspec = pluggy.HookspecMarker("slim")


@hookspec
def slim_register_importances(register: Register) -> None:
    """Register importance criteria by name: functions ``(group, tensors) -> scores``, one score per unit, or classes.

    Instances of a class look at data first, with ``prepare(context)``; the arguments of ``__init__`` are options. See
    :mod:`slim_prune.importance` for the contract.

    .. versionadded:: 0.1
    """


@hookspec
def slim_register_allocations(register: Register) -> None:
    """Register allocations by name: functions ``(problem, context) -> {group name: kept units}``.

    See :mod:`slim_prune.allocation` for the contract.

    .. versionadded:: 0.1
    """
