"""How much each unit of a channel group matters: the contract, and finding a criterion by name.

An importance criterion is a function::

    def my_importance(group: ChannelGroup, tensors: Mapping[str, Tensor]) -> Tensor:
        ...  # one score per unit: (group.units,); the units with the lowest scores are removed

``tensors`` holds the model's parameters and buffers by state-dict name, detached. A criterion looks at **all** members
of the group, because a unit is removed from all of them: :func:`slim_prune.importance.aggregate.over_members` does
the bookkeeping.

A criterion that looks at more than weights is an object with a method ``prepare(context: Context) -> Importance``,
which is called once per plan, before anything is scored; :mod:`slim_prune.importance.passes` runs the model on the
context's data without leaving a trace in it. It is registered as a class; the keyword arguments of its ``__init__`` are
its options. Not here: how many units to remove (``slim_prune.allocation``).
"""

from __future__ import annotations

import inspect
import json
import typing
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor

from slim_core.errors import SlimError
from slim_core.graph.types import ChannelGroup
from slim_core.named import split
from slim_prune.costs import installed
from slim_prune.errors import PlanError
from slim_prune.named import label_of, with_options
from slim_prune.plugin import IMPORTANCES

if TYPE_CHECKING:
    from slim_core.registry import Registry
    from slim_core.workload import DataSource, Task
    from slim_prune.context import Context

Importance = Callable[[ChannelGroup, Mapping[str, Tensor]], Tensor]


class NeedsData(Protocol):
    """A criterion that is made ready with the surroundings of a plan.

    Attributes:
        needs: what the caller must give, of ``"task"``, ``"train"`` and ``"val"``. Optional; recipes check it before
            anything runs.
    """

    needs: tuple[str, ...]

    def prepare(self, context: Context) -> Importance:
        """Look at the model and its data, and return the function that scores groups. Called once per plan."""


def resolve(
    importance: str | Mapping[str, Any] | Importance | NeedsData, registry: Registry | None = None
) -> tuple[str, Importance]:
    """Return name and function of a criterion; of one that needs data, the object that has yet to be prepared.

    Args:
        importance: a registered name, ``{"name": "l1", "normalize": "max"}`` with the criterion's own options, a
            function, or an object with a method ``prepare``.
        registry: where names are looked up; without one the built-in names are found at once, and others among all
            installed plugins.

    Raises:
        UnknownNameError: nobody registered the name.
        SlimError: the criterion takes no such option, or not with this value; says which it takes.
    """
    if not isinstance(importance, str | Mapping):
        return label_of(importance), typing.cast(Importance, importance)
    name, options = split(importance, "an importance", "{'name': 'l1', 'normalize': 'max'}")
    registered = _by_name(name, registry)
    if options and not callable(registered):
        raise SlimError(f"importance '{name}' takes no options", hint="it was registered as an object, not as a class")
    label, function = with_options(name, registered, options, "importance")
    if options:
        _check_values(name, registered, options)
    return label, function() if inspect.isclass(registered) else function


def check(importance: str | Mapping[str, Any], registry: Registry | None = None) -> None:
    """Check name, options and values of a criterion, before there is any model.

    Raises:
        UnknownNameError: nobody registered the name.
        SlimError: the criterion takes no such option, or not with this value; says which it takes.
    """
    resolve(importance, registry)


def check_data(
    label: str,
    criterion: Any,
    *,
    task: Task | None = None,
    train: DataSource | None = None,
    val: DataSource | None = None,
) -> None:
    """Check that there is what a criterion needs, before any long work begins.

    Args:
        label: the criterion's name.
        criterion: what :func:`resolve` returned.
        task: loss and metrics, if there are any.
        train: training batches, if there are any.
        val: validation batches, if there are any.

    Raises:
        PlanError: something is missing; says what.
    """
    given = {"task": task, "train": train, "val": val}
    missing = [name for name in getattr(criterion, "needs", ()) if given.get(name) is None]
    if missing:
        raise no_data(label, missing)


def no_data(label: str, missing: list[str]) -> PlanError:
    """Return the error of a criterion that was given no ``task``, ``train`` or ``val``."""
    words = {"task": "a task", "train": "training data", "val": "validation data"}
    return PlanError(
        f"importance '{label}' needs {' and '.join(words.get(name, name) for name in missing)}: there is none",
        hint=f"pass {', '.join(f'{name}=…' for name in missing)} to slim_prune.plan; a recipe's workload, and "
        "`slim prune plan --data NAME`, bring them; 'l1' needs none",
    )


def score(name: str, function: Importance, group: ChannelGroup, tensors: Mapping[str, Tensor]) -> NDArray[np.float64]:
    """Run a criterion on one group and check what it returns: ``(units,)``, finite, float64.

    Raises:
        PlanError: the scores have another shape, or are not finite, or the weights hold no data.
    """
    try:
        scores = function(group, tensors)
    except NotImplementedError as error:  # what torch raises where data of a meta tensor is asked for
        if any(tensors[member.name].is_meta for member in group.members if member.name in tensors):
            raise no_weights(name, f"channel group '{group.name}'") from error
        raise
    if not isinstance(scores, Tensor) or tuple(scores.shape) != (group.units,):
        got = f"shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
        raise PlanError(
            f"importance '{name}' must return one score per unit, shape ({group.units},), and returned {got}",
            where=f"channel group '{group.name}'",
        )
    if scores.is_meta:
        raise no_weights(name, f"channel group '{group.name}'")
    values = scores.detach().double().cpu().numpy()
    if not np.isfinite(values).all():
        raise PlanError(
            f"importance '{name}' gave scores that are not finite",
            where=f"channel group '{group.name}'",
            hint="look for NaN or infinity in the weights of its members",
        )
    return values


def no_weights(name: str, where: str | None = None) -> PlanError:
    """Return the error of a criterion that was given a model on the meta device."""
    return PlanError(
        f"importance '{name}' needs weights, and the model is on the meta device",
        where=where,
        hint="load the weights first, or use importance='random'",
    )


def _by_name(name: str, registry: Registry | None) -> Any:
    if registry is None:
        if name in IMPORTANCES:
            return IMPORTANCES[name].resolve()
        registry = installed()
    return registry.get("importances", name)


def _check_values(name: str, registered: Any, options: Mapping[str, Any]) -> None:
    """Compare options with the annotations of a criterion; what has none, or none that can be read, is let through."""
    try:
        hints = typing.get_type_hints(registered.__init__ if inspect.isclass(registered) else registered)
    except (NameError, TypeError, AttributeError):
        return
    for key, value in options.items():
        if key not in hints:
            continue
        try:
            _check_value(TypeAdapter(hints[key], config=ConfigDict(strict=True)), value)
        except ValidationError as error:
            raise SlimError(
                f"importance '{name}': {key}={value!r} is not possible: {error.errors()[0]['msg'].lower()}",
                hint=_said_of(registered, key),
            ) from None
        except TypeError:  # an annotation that pydantic makes nothing of
            continue


def _check_value(adapter: TypeAdapter[Any], value: Any) -> None:
    try:
        adapter.validate_python(value)
    except ValidationError:
        if not isinstance(value, list):
            raise
        adapter.validate_json(json.dumps(value))  # recipes have lists only, where Python has tuples too


def _said_of(registered: Any, key: str) -> str | None:
    """Return what a criterion's docstring says of an option, if it does."""
    lines = iter((inspect.getdoc(registered) or "").splitlines())
    for line in lines:
        if line.strip().startswith(f"{key}:"):
            found = [line.strip()]
            indent = len(line) - len(line.lstrip())
            for more in lines:
                if not more.strip() or len(more) - len(more.lstrip()) <= indent:
                    break
                found.append(more.strip())
            return " ".join(found)
    return None
