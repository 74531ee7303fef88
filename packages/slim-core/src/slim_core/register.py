"""Registration by decorators, for a project's own file: ``slim run recipe.yaml --load my_project.py``.

    import slim_core

    @slim_core.register.model("my/net")
    def my_net(width: int = 32) -> nn.Module: ...

A decorator only leaves a mark on what it decorates; the plugin host collects the marks when it loads the
file. Nothing is kept here, so importing the file elsewhere registers nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, TypeVar

from slim_core.errors import PluginError

T = TypeVar("T")
_MARK = "__slim_register__"


def named(kind: str, name: str) -> Callable[[T], T]:
    """Mark a function or class for registration under ``name`` as any kind, also one that a plugin added.

    Args:
        kind: a registry kind: ``"models"``, ``"importances"``, …
        name: the name that recipes will use.
    """

    def mark(value: T) -> T:
        try:
            marks = (*vars(value).get(_MARK, ()), (kind, name))
            setattr(value, _MARK, marks)
        except (TypeError, AttributeError):
            raise PluginError(
                f"cannot register {value!r} as '{name}' by a decorator", hint="decorate a function or a class"
            ) from None
        return value

    return mark


def technique(name: str) -> Callable[[T], T]:
    """Register a technique class under its recipe kind."""
    return named("techniques", name)


def model(name: str) -> Callable[[T], T]:
    """Register a model builder: JSON keyword arguments to ``nn.Module``."""
    return named("models", name)


def dataset(name: str) -> Callable[[T], T]:
    """Register a data set: JSON keyword arguments to :class:`slim_core.data.Dataset`."""
    return named("datasets", name)


def task(name: str) -> Callable[[T], T]:
    """Register a task: JSON keyword arguments to :class:`slim_core.workload.Task`."""
    return named("tasks", name)


def loss(name: str) -> Callable[[T], T]:
    """Register a loss: outputs and targets to a scalar tensor."""
    return named("losses", name)


def cost_model(name: str) -> Callable[[T], T]:
    """Register a cost model under the name that budgets use."""
    return named("cost_models", name)


def backend(name: str) -> Callable[[T], T]:
    """Register a measuring backend."""
    return named("backends", name)


def exporter(name: str) -> Callable[[T], T]:
    """Register an exporter by its format's name."""
    return named("exporters", name)


def transform(name: str) -> Callable[[T], T]:
    """Register a replayer under its transform kind."""
    return named("transforms", name)


def op_rule(name: str) -> Callable[[T], T]:
    """Register a channel-coupling rule under the operator's name."""
    return named("op_rules", name)


def marked(module: ModuleType) -> Iterator[tuple[str, str, Any]]:
    """Yield ``(kind, name, value)`` for everything in ``module``'s namespace that carries a mark."""
    seen: set[int] = set()
    for value in list(vars(module).values()):
        marks = getattr(value, "__dict__", {}).get(_MARK, ())  # __dict__: a subclass does not inherit the mark
        if id(value) in seen or not isinstance(marks, tuple):
            continue
        seen.add(id(value))
        for kind, name in marks:
            yield kind, name, value
