"""How many units each channel group keeps: one small file per way of deciding, and finding one by name.

``problem.py`` holds what they share: the groups with the counts that rounding and floors permit, and the costs of a
choice. An allocation is a function::

    def my_allocation(problem: Problem, context: Context) -> Mapping[str, int]:
        ...  # kept units by group name; a group that is left out keeps everything

Its result must be of permitted counts and meet every bound; :func:`slim_prune.plan` checks both. Options are keyword
arguments. Which units stay is then decided by importance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from slim_core.named import split
from slim_prune.costs import installed
from slim_prune.named import label_of, with_options
from slim_prune.plugin import ALLOCATIONS

if TYPE_CHECKING:
    from slim_core.registry import Registry
    from slim_prune.allocation.problem import Problem
    from slim_prune.context import Context

    Allocation = Callable[[Problem, Context], Mapping[str, int]]


def resolve(
    allocation: str | Mapping[str, Any] | Allocation, registry: Registry | None = None
) -> tuple[str, Allocation]:
    """Return label and function of an allocation.

    Args:
        allocation: a registered name, ``{"name": "global", "normalize": "max"}`` with the allocation's options, or a
            function ``(problem, context) -> {group name: kept units}``.
        registry: where names are looked up; without one the built-in names are found at once, and others among all
            installed plugins.

    Raises:
        UnknownNameError: nobody registered the name.
        SlimError: it has no such option.
    """
    if callable(allocation):
        return label_of(allocation), allocation
    name, options = split(allocation, "an allocation", "{'name': 'global', 'normalize': 'max'}")
    function = _by_name(name, registry)
    return with_options(name, function, options, "allocation")


def _by_name(name: str, registry: Registry | None) -> Any:
    if registry is None:
        if name in ALLOCATIONS:
            return ALLOCATIONS[name].resolve()
        registry = installed()
    return registry.get("allocations", name)
