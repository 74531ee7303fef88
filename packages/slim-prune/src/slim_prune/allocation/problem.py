"""What every allocation works on: groups with permitted counts, bounds, and the cost of a choice.

Costs come from the core's cost models on the resized graph, so nothing is rebuilt and nothing is counted in two ways.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, prod

import numpy as np
from numpy.typing import NDArray

from slim_core.budget import Bound
from slim_core.errors import BudgetError
from slim_core.graph.cost import CostModel
from slim_core.graph.types import ChannelGroup, Coupling
from slim_prune.allocation.grid import Grid
from slim_prune.allocation.resizing import Resizer

#: Room for the rounding of a float bound: a cost this little above the limit still meets it.
_SLACK = 1e-9
_BATCH = 64  # graphs that are held at a time


def figure(value: float) -> str:
    """Return a cost for people: whole numbers and large ones in full, others with six digits."""
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 1e6 else f"{value:,.6g}"


@dataclass(frozen=True, slots=True)
class Choice:
    """A group that an allocation decides about.

    Args:
        group: the channel group.
        grid: the counts that it may keep.
        ratio: the share of units to keep that the user fixed, or ``None``.
    """

    group: ChannelGroup
    grid: Grid
    ratio: float | None = None

    @property
    def name(self) -> str:
        return self.group.name

    def at(self, ratio: float) -> int:
        """Return the permitted count nearest to ``ratio`` (or to the ratio that the user fixed)."""
        return self.grid.nearest((self.ratio if self.ratio is not None else ratio) * self.group.units)

    @property
    def counts(self) -> tuple[int, ...]:
        """The counts to choose from, ascending: the grid's, or the one that the user's ratio fixes."""
        return self.grid.counts if self.ratio is None else (self.at(self.ratio),)

    def keeping(self, share: float) -> Choice:
        """Return this choice without the counts below ``share`` of the units; a fixed ratio stays."""
        least = min(ceil(share * self.group.units - _SLACK), self.group.units)
        counts = tuple(count for count in self.grid.counts if count >= least)
        return self if self.ratio is not None else replace(self, grid=replace(self.grid, counts=counts))


class Problem:
    """Groups to decide about, bounds to meet, and the costs of a decision.

    Args:
        coupling: the analysis.
        choices: the groups that may be pruned.
        models: cost models by name: those of the bounds, and any others to report.
        bounds: what must hold.
        remark: why the rest of the model cannot be touched, for the error of an unreachable budget.

    Raises:
        BudgetError: the model has nothing of a cost that is bounded.
    """

    def __init__(
        self,
        coupling: Coupling,
        choices: Sequence[Choice],
        models: Mapping[str, CostModel],
        bounds: Sequence[Bound],
        remark: str = "",
    ) -> None:
        self.choices = tuple(choices)
        self.bounds = tuple(bounds)
        self.remark = remark
        self._coupling = coupling
        self._models = dict(models)
        self._names = [choice.name for choice in choices]
        self._memo: dict[tuple[int, ...], dict[str, float]] = {}
        self.original = {name: float(model.total(coupling.graph)) for name, model in self._models.items()}
        self._resizer = Resizer(coupling)
        self._memo[tuple(choice.group.units for choice in choices)] = self.original
        for bound in self.bounds:
            if not self.original[bound.cost] > 0:
                raise BudgetError(
                    f"the budget {bound} means nothing here: the model has {figure(self.original[bound.cost])} "
                    f"{bound.cost}",
                    hint="bound a cost that the model has: "
                    + (", ".join(self._costly()) or "it has none of those known"),
                )
        self.limits = {bound.cost: bound.limit(self.original[bound.cost]) for bound in self.bounds}

    def _costly(self) -> list[str]:
        return [name for name, value in self.original.items() if value > 0]

    def everything(self) -> dict[str, int]:
        """Return the choice that keeps all units."""
        return {choice.name: choice.group.units for choice in self.choices}

    @property
    def free(self) -> tuple[Choice, ...]:
        """The groups that there is something to decide about: more than one count, and no ratio that the user fixed."""
        return tuple(choice for choice in self.choices if len(choice.counts) > 1)

    @property
    def space(self) -> int:
        """How many choices there are in all."""
        return prod(len(choice.counts) for choice in self.choices)

    def keeping(self, share: float) -> Problem:
        """Return this problem with every group keeping at least ``share`` of its units. Costs are remembered together.

        Groups whose ratio the user fixed keep that.
        """
        other = copy.copy(self)
        other.choices = tuple(choice.keeping(share) for choice in self.choices)
        return other

    def at(self, ratio: float) -> dict[str, int]:
        """Return the choice that keeps about ``ratio`` of every group without a fixed ratio."""
        return {choice.name: choice.at(ratio) for choice in self.choices}

    def costs(self, counts: Mapping[str, int]) -> dict[str, float]:
        """Return the cost of a choice by cost model. Remembered, because allocations come back to the same ones."""
        key = tuple(counts[name] for name in self._names)
        if key not in self._memo:
            self.work_out([counts])
        return self._memo[key]

    def work_out(self, choices: Iterable[Mapping[str, int]]) -> None:
        """Work out the costs of many choices at once: quicker for cost models with ``totals(graphs)``."""
        keys = dict.fromkeys(tuple(counts[name] for name in self._names) for counts in choices)
        new = [key for key in keys if key not in self._memo]
        for start in range(0, len(new), _BATCH):
            batch = new[start : start + _BATCH]
            graphs = [self._resizer.graph(dict(zip(self._names, key, strict=True))) for key in batch]
            totals: dict[str, list[float]] = {}
            for name, model in self._models.items():
                many = getattr(model, "totals", None)
                totals[name] = many(graphs) if many is not None else [model.total(graph) for graph in graphs]
            for position, key in enumerate(batch):
                self._memo[key] = {name: float(values[position]) for name, values in totals.items()}

    def loads(self, counts: Mapping[str, int]) -> NDArray[np.float64]:
        """Return the cost of a choice over its limit, by bound: ``(bounds,)``."""
        costs = self.costs(counts)
        return np.array([costs[name] / limit for name, limit in self.limits.items()])

    def meets(self, counts: Mapping[str, int]) -> bool:
        """Return whether a choice meets every bound."""
        costs = self.costs(counts)
        return all(costs[name] <= limit * (1 + _SLACK) for name, limit in self.limits.items())

    def tightness(self, counts: Mapping[str, int]) -> float:
        """Return the cost over its limit of the tightest bound: 1 is spot on, above 1 is too much."""
        costs = self.costs(counts)
        return max((costs[name] / limit for name, limit in self.limits.items()), default=0.0)

    def require_reachable(self) -> None:
        """Raise ``BudgetError`` when even the smallest permitted choice breaks a bound; says what is reachable."""
        smallest = self.at(0.0)
        costs = self.costs(smallest)
        for bound in self.bounds:
            least, original = costs[bound.cost], self.original[bound.cost]
            if least > self.limits[bound.cost] * (1 + _SLACK):
                if smallest == self.everything():
                    raise self._nothing_to_remove(bound)
                share = ceil(least / original * 1e4) / 1e4
                raise BudgetError(
                    f"the budget {bound} cannot be reached: the smallest model that may be made has "
                    f"{figure(least)} of {figure(original)} {bound.cost} ({least / original:.1%})",
                    where=self.remark or None,
                    hint=f"ask for at least {share:.4f}, widen include, narrow exclude, lower round_to, min_channels "
                    "or the fixed ratios",
                )

    def _nothing_to_remove(self, bound: Bound) -> BudgetError:
        if not self._coupling.groups:
            return BudgetError(
                f"the budget {bound} cannot be reached: nothing of this model can be pruned",
                where=self.remark or None,
                hint="`slim graph MODEL` lists every dimension that is frozen, why, and the line that froze it",
            )
        return BudgetError(
            f"the budget {bound} cannot be reached: nothing that may be touched can be made smaller",
            where=self.remark or None,
            hint="widen include, narrow exclude, lower round_to, min_channels or the fixed ratios",
        )
