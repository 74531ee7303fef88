"""Problems whose costs are closed forms, so that a search can be compared with trying everything."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from types import SimpleNamespace

from slim_core.budget import parse_budget
from slim_prune.allocation.grid import Grid
from slim_prune.allocation.problem import Choice, Problem
from slim_prune.evolution.driver import Driver
from slim_prune.evolution.journal import Journal
from slim_prune.evolution.workers import Here

Counts = Mapping[str, int]


class Hand(Problem):
    """Groups ``g0``, ``g1``, … of so many units, in steps of 8, with costs that are functions of the counts."""

    def __init__(self, units: list[int], costs: Mapping[str, Callable[[Counts], float]], budget: Mapping, ratios=None):
        self.choices = tuple(
            Choice(
                SimpleNamespace(name=f"g{i}", units=u), Grid((*range(8, u, 8), u), 1, 8), (ratios or {}).get(f"g{i}")
            )
            for i, u in enumerate(units)
        )
        self.bounds, self.remark = parse_budget(budget), ""
        self._functions, self._coupling = costs, SimpleNamespace(groups=self.choices)
        self._names = [choice.name for choice in self.choices]
        full = {choice.name: choice.group.units for choice in self.choices}
        self.original = {name: function(full) for name, function in costs.items()}
        self.limits = {bound.cost: bound.limit(self.original[bound.cost]) for bound in self.bounds}

    def costs(self, counts):
        return {name: float(function(counts)) for name, function in self._functions.items()}

    def work_out(self, choices):
        """Nothing to prepare: closed forms are quick."""

    def everywhere(self):
        """Yield every permitted choice, feasible or not."""
        for counts in itertools.product(*(choice.grid.counts for choice in self.choices)):
            yield dict(zip(self._names, counts, strict=True))


def macs(counts: Counts) -> float:
    """A chain of layers: each costs its inputs times its outputs."""
    widths = [3, *counts.values(), 10]
    return sum(a * b for a, b in itertools.pairwise(widths))


def params(counts: Counts) -> float:
    return sum((2 + i) * n for i, n in enumerate(counts.values()))


WEIGHTS = (0.2, 1.0, 0.5, 2.0, 0.1, 0.7)


def quality(counts: Counts) -> float:
    """More is better, with falling returns, different for each group; two groups need each other."""
    shares = [n / 48 for n in counts.values()]
    each = sum(w * s ** (0.3 + 0.2 * i) for i, (w, s) in enumerate(zip(WEIGHTS, shares, strict=False)))
    return each + 0.8 * min(shares[0], shares[-1])


class Counting:
    """A scorer over counts that remembers what it was asked."""

    def __init__(self, function: Callable[[Counts], float] = quality) -> None:
        self.function, self.seen = function, []

    def __call__(self, counts):
        self.seen.append(dict(counts))
        return {"score": self.function(counts)}


def drive(space, searcher, scorer, trials, *, by="test", journal=None, executor=None) -> Driver:
    """Run a searcher on a hand-made problem in this process."""
    driver = Driver(space, executor or Here(scorer), journal or Journal(None, {}), lambda counts: counts, "score", True)
    driver.run(searcher, by, trials)
    return driver
