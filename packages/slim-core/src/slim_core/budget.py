"""The one grammar of budgets: a cost model's name and a bound.

Relative: ``macs: 0.5`` keeps half. Absolute: ``params: 1.2M``, ``bytes: 400KB``, ``latency:onnxruntime-cpu: 4.0ms``.
A plain number of at most 1 is relative; anything else is absolute, in the cost model's unit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from slim_core.errors import BudgetError

_SCALES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9,
           "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30, "us": 1e-3, "ms": 1.0, "s": 1e3}  # fmt: skip
_NUMBER = re.compile(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z]*|%)\s*")


@dataclass(frozen=True, slots=True)
class Bound:
    """At most ``value`` of the cost model ``cost``: a share of the original, or an absolute figure.

    Absolute figures are in MACs, parameters, bytes or milliseconds.
    """

    cost: str
    value: float
    relative: bool

    def limit(self, original: float) -> float:
        """Return the absolute limit, given the cost of the uncompressed model."""
        return self.value * original if self.relative else self.value

    def __str__(self) -> str:
        return f"{self.cost} <= {self.value:.4g}" + (" of the original" if self.relative else "")


def parse_budget(budget: Mapping[str, float | int | str]) -> tuple[Bound, ...]:
    """Parse ``{"macs": 0.5, "latency:onnxruntime-cpu": "4.0ms"}``.

    Raises:
        BudgetError: it is no mapping, it is empty, or a bound is not a positive number with a known unit.
    """
    if not isinstance(budget, Mapping):
        raise BudgetError(
            f"a budget is a mapping from costs to bounds, not {budget!r}",
            hint=f"write for example {{'macs': {budget!r}}}"
            if type(budget) in (int, float)
            else "write for example {'macs': 0.5} to keep half of the MACs",
        )
    if not budget:
        raise BudgetError("the budget is empty", hint="write for example {'macs': 0.5} to keep half of the MACs")
    return tuple(_bound(cost, value) for cost, value in budget.items())


def _bound(cost: str, value: float | int | str) -> Bound:
    hint = "write a share such as 0.5 or '50%', or a figure such as '1.2M', '400KB' or '4.0ms'"
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise BudgetError(f"budget for '{cost}' is not a number: {value!r}", hint=hint)
    if isinstance(value, str):
        match = _NUMBER.fullmatch(value)
        if match is None:
            raise BudgetError(f"budget for '{cost}' cannot be read: {value!r}", hint=hint)
        number, unit = float(match[1]), match[2].lower()
        if unit == "%":
            number, relative = number / 100, True
        elif unit in _SCALES:
            number, relative = number * _SCALES[unit], unit == "" and number <= 1
        else:
            raise BudgetError(f"budget for '{cost}' has an unknown unit: {value!r}", hint=hint)
    else:
        number, relative = float(value), value <= 1
    if not 0 < number < float("inf"):
        raise BudgetError(f"budget for '{cost}' must be positive: {value!r}", hint=hint)
    if relative and number > 1:
        raise BudgetError(f"budget for '{cost}' asks for more than the original: {value!r}", hint=hint)
    return Bound(cost, number, relative)
