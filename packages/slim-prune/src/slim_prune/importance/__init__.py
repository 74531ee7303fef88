"""How much each unit of a channel group matters: the contract, and finding a criterion by name.

An importance criterion is a function::

    def my_importance(group: ChannelGroup, tensors: Mapping[str, Tensor]) -> Tensor:
        ...  # one score per unit: (group.units,); the units with the lowest scores are removed

``tensors`` holds the model's parameters and buffers by state-dict name, detached. A criterion looks at **all** members
of the group, because a unit is removed from all of them: :func:`slim_prune.importance.aggregate.over_members` does
the bookkeeping. Not here: how many units to remove (``slim_prune.allocation``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from slim_core.errors import SlimError
from slim_core.graph.types import ChannelGroup
from slim_prune.costs import installed
from slim_prune.errors import PlanError
from slim_prune.plugin import IMPORTANCES

if TYPE_CHECKING:
    from slim_core.registry import Registry

Importance = Callable[[ChannelGroup, Mapping[str, Tensor]], Tensor]


def resolve(
    importance: str | Mapping[str, Any] | Importance, registry: Registry | None = None
) -> tuple[str, Importance]:
    """Return name and function of a criterion.

    Args:
        importance: a registered name, ``{"name": "l1", "normalize": "max"}`` with the criterion's own options, or a
            function.
        registry: where names are looked up; without one the built-in names are found at once, and others among all
            installed plugins.

    Raises:
        UnknownNameError: nobody registered the name.
    """
    if isinstance(importance, str):
        return importance, _by_name(importance, registry)
    if isinstance(importance, Mapping):
        options = dict(importance)
        name = options.pop("name", None)
        if not isinstance(name, str):
            raise SlimError("an importance with options needs a name", hint="write {'name': 'l1', 'normalize': 'max'}")
        label = name + "(" + ", ".join(f"{key}={value!r}" for key, value in options.items()) + ")"
        return label, partial(_by_name(name, registry), **options)
    return getattr(importance, "__name__", type(importance).__name__), importance


def score(name: str, function: Importance, group: ChannelGroup, tensors: Mapping[str, Tensor]) -> NDArray[np.float64]:
    """Run a criterion on one group and check what it returns: ``(units,)``, finite, float64.

    Raises:
        PlanError: the scores have another shape, or are not finite, or the weights hold no data.
    """
    try:
        scores = function(group, tensors)
    except NotImplementedError as error:  # what torch raises where data of a meta tensor is asked for
        if any(tensors[member.name].is_meta for member in group.members if member.name in tensors):
            raise _no_weights(name, group) from error
        raise
    if not isinstance(scores, Tensor) or tuple(scores.shape) != (group.units,):
        got = f"shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
        raise PlanError(
            f"importance '{name}' must return one score per unit, shape ({group.units},), and returned {got}",
            where=f"channel group '{group.name}'",
        )
    if scores.is_meta:
        raise _no_weights(name, group)
    values = scores.detach().double().cpu().numpy()
    if not np.isfinite(values).all():
        raise PlanError(
            f"importance '{name}' gave scores that are not finite",
            where=f"channel group '{group.name}'",
            hint="look for NaN or infinity in the weights of its members",
        )
    return values


def _no_weights(name: str, group: ChannelGroup) -> PlanError:
    return PlanError(
        f"importance '{name}' needs weights, and the model is on the meta device",
        where=f"channel group '{group.name}'",
        hint="load the weights first, or use importance='random'",
    )


def _by_name(name: str, registry: Registry | None) -> Importance:
    if registry is None:
        if name in IMPORTANCES:
            return IMPORTANCES[name].resolve()  # type: ignore[no-any-return]
        registry = installed()
    return registry.get("importances", name)  # type: ignore[no-any-return]
