"""The recipe steps ``prune.global`` and ``prune.latency``: structured pruning with the allocations of these names.

Not here: what a structured step does (``technique.py``), the allocations (``allocation/``).
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from slim_core.errors import BudgetError
from slim_core.registry import Registry
from slim_prune.technique import StructuredConfig, StructuredPruning

_Normalize = Literal["mean", "max", "sum", "l2", "none"]
#: Cost models of time begin with this.
_LATENCY = "latency:"


class GlobalConfig(StructuredConfig):
    """Configuration of ``prune.global``.

    Attributes:
        normalize: what a group's scores are divided by before groups are compared.
        per: rank by importance per cost: a cost model's name, or ``budget``; ``null``: by importance alone.
        max_pruned: the largest share of its channels that a layer may lose.
    """

    normalize: _Normalize = "mean"
    per: str | None = None
    max_pruned: float = Field(0.9, gt=0, le=1)


class GlobalPruning(StructuredPruning):
    """Remove the least important channels of the whole model, wherever they are."""

    name: ClassVar[str] = "prune.global"
    Config: ClassVar[type[StructuredConfig]] = GlobalConfig

    def allocation(self, config: GlobalConfig) -> dict[str, Any]:
        return {"name": "global", "normalize": config.normalize, "per": config.per, "max_pruned": config.max_pruned}


class LatencyConfig(StructuredConfig):
    """Configuration of ``prune.latency``.

    Attributes:
        objective: what is made large: the product of the shares of importance that layers keep, or the sum.
        normalize: for the sum, what a group's scores are divided by before groups are compared.
        max_pruned: the largest share of its channels that a layer may lose.
        curves: a file of sensitivity curves, whose sum of losses is made small instead of keeping importance.
    """

    objective: Literal["product", "sum"] = "product"
    normalize: _Normalize = "sum"
    max_pruned: float = Field(0.9, gt=0, le=1)
    curves: str | None = None


class LatencyPruning(StructuredPruning):
    """Keep the most importance within milliseconds on a named device: ``budget: {"latency:DEVICE": 4.0ms}``."""

    name: ClassVar[str] = "prune.latency"
    Config: ClassVar[type[StructuredConfig]] = LatencyConfig

    @classmethod
    def check(cls, config: StructuredConfig, registry: Registry) -> None:
        """See the base; the budget must have a time, and its cost model must be registered."""
        super().check(config, registry)
        times = [name for name in config.budget or {} if name.startswith(_LATENCY)]
        if not times:
            known = [name for name in registry.names("cost_models") if name.startswith(_LATENCY)]
            raise BudgetError(
                "prune.latency needs a budget of time",
                where="budget",
                hint=f"write budget: {{'{known[0] if known else 'latency:DEVICE'}': 4.0ms}}; `slim latency devices` "
                "lists devices; prune.global serves other budgets",
            )
        for name in times:
            registry.get("cost_models", name)

    def allocation(self, config: LatencyConfig) -> dict[str, Any]:
        options: dict[str, Any] = {"curves": config.curves} if config.curves is not None else {}
        if config.objective == "sum":
            options |= {"normalize": config.normalize}
        return {"name": "latency", "objective": config.objective, "max_pruned": config.max_pruned, **options}
