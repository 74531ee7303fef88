"""The contract of an observer, and the names that configurations use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from slim_core.errors import UnknownNameError, close_match
from slim_core.named import Named, split
from slim_quant.named import build
from slim_quant.schemes import Scheme

#: names of the observers, for configurations and messages
OBSERVERS = (
    "abs_max",
    "min_max",
    "moving_average",
    "average_abs_max",
    "percentile",
    "entropy",
    "mse",
    "emd",
)


class Observer(Protocol):
    """Watches one tensor, in memory that does not grow with the number of batches."""

    def update(self, values: Tensor) -> None:
        """Take in one batch.

        Raises:
            ValueError: a value is not finite.
        """

    def all_reduce(self, group: Any = None) -> None:
        """Take in what the same observer saw in the other processes of a ``torch.distributed`` group.

        All processes call it, in the same order, after their last ``update``; all have the same range then.
        """

    def range(self, scheme: Scheme) -> tuple[Tensor, Tensor]:
        """Return the lowest and highest value to represent, 0-dimensional float64.

        Raises:
            ValueError: nothing was observed.
        """


def make_observer(observer: Named) -> Observer:
    """Return a fresh observer.

    Args:
        observer: its name, or ``{"name": "percentile", "share": 0.999}``.

    Raises:
        UnknownNameError: no observer has this name.
        SlimError: it has no such option, or not with this value.
    """
    name, options = split(observer, "an observer", '{"name": "percentile", "share": 0.999}')
    makers = _makers()
    if name not in makers:
        hint = f"{close_match(name, OBSERVERS)} known: {', '.join(OBSERVERS)}".strip()
        raise UnknownNameError(f"unknown observer '{name}'", hint=hint)
    return build(name, makers[name], options, "observer")


def check_observer(observer: Named) -> None:
    """Check name and options, before there is anything to observe.

    Raises:
        UnknownNameError: no observer has this name.
        SlimError: it has no such option, or not with this value.
    """
    make_observer(observer)


def _makers() -> Mapping[str, type[Observer]]:
    from slim_quant.observers import minmax, searching

    return {
        "abs_max": minmax.AbsMaxObserver,
        "min_max": minmax.MinMaxObserver,
        "moving_average": minmax.MovingAverageObserver,
        "average_abs_max": minmax.AverageAbsMaxObserver,
        "percentile": searching.PercentileObserver,
        "entropy": searching.EntropyObserver,
        "mse": searching.MSEObserver,
        "emd": searching.EMDObserver,
    }
