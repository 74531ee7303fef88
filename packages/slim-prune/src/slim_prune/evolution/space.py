"""What is searched: a point per way of choosing counts, and how any wish becomes a point that meets the budget.

Points are tuples of positions on the groups' grids. Every point that leaves here meets every bound, and is full where
costs grow with the counts: no single group could take one more step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from slim_core.errors import SlimError
from slim_prune.allocation.problem import Choice, Problem

#: Positions on the grids of the free groups, in the order of ``Space.free``.
Point = tuple[int, ...]

_BISECTIONS = 30
#: The longest step of a mutation, as a share of a group's grid.
_LONGEST = 0.25
#: Of all mutations, so many change two groups.
_DOUBLE = 0.3


class Space:
    """The points of a problem.

    Args:
        problem: groups, grids, bounds and costs. Groups whose ratio the user fixed are not searched.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.free: tuple[Choice, ...] = tuple(
            choice for choice in problem.choices if choice.ratio is None and len(choice.grid.counts) > 1
        )
        self._fixed = {choice.name: choice.at(1.0) for choice in problem.choices if choice not in self.free}
        self.full: Point = tuple(len(choice.grid.counts) - 1 for choice in self.free)
        self._units = np.array([choice.group.units for choice in self.free], dtype=np.float64)

    def counts(self, point: Point) -> dict[str, int]:
        """Return the kept units by group name, fixed groups included."""
        found = {choice.name: choice.grid.counts[at] for choice, at in zip(self.free, point, strict=True)}
        return {choice.name: {**self._fixed, **found}[choice.name] for choice in self.problem.choices}

    def point(self, counts: Mapping[str, int]) -> Point:
        """Return the point of a choice.

        Raises:
            SlimError: a count is not permitted.
        """
        found = []
        for choice in self.problem.choices:
            count = counts.get(choice.name, choice.group.units)
            permitted = (self._fixed[choice.name],) if choice.name in self._fixed else choice.grid.counts
            if count not in permitted:
                raise SlimError(
                    f"{count} units are not a permitted count: {', '.join(map(str, permitted))}", where=choice.name
                )
            if choice.name not in self._fixed:
                found.append(choice.grid.counts.index(count))
        return tuple(found)

    def shares(self, point: Point) -> tuple[float, ...]:
        """Return the kept share of every free group."""
        return tuple(choice.grid.counts[at] / choice.group.units for choice, at in zip(self.free, point, strict=True))

    def meets(self, point: Point) -> bool:
        """Return whether a point meets every bound."""
        return self.problem.meets(self.counts(point))

    def project(self, wishes: Sequence[float] | NDArray[np.float64]) -> Point | None:
        """Return the full point whose kept shares are as nearly as can be in the proportions of ``wishes``.

        A common factor is bisected; then single groups grow, the one furthest below its wish first.

        Args:
            wishes: one positive number per free group.
        """
        wanted = np.asarray(wishes, dtype=np.float64) * self._units
        low, high = 0.0, float(np.max(self._units / wanted)) if len(wanted) else 1.0
        best, above = self._near(wanted * low), self._near(wanted * high)
        if self.meets(above):
            return above
        for _ in range(_BISECTIONS):
            if all(over - under <= 1 for under, over in zip(best, above, strict=True)):
                break
            middle = (low + high) / 2
            point = self._near(wanted * middle)
            if self.meets(point):
                low, best = middle, point
            else:
                high, above = middle, point
        if not self.meets(best):
            return None
        wanted *= max(low, 1e-12)
        found, open_ = list(best), set(range(len(best)))
        while open_:
            at = min(open_, key=lambda i: (self.free[i].grid.counts[found[i]] / wanted[i], i))
            if not self._grow(found, at):
                open_.discard(at)
        return tuple(found)

    def draw(self, rng: np.random.Generator) -> Point | None:
        """Return a random full point: shares drawn evenly, then brought to the budget."""
        return self.project(rng.uniform(0.05, 1.0, len(self.free)))

    def mutate(self, point: Point, rng: np.random.Generator, moves: int | None = None) -> Point | None:
        """Return a neighbour of ``point``: one or two groups move some steps, and others make up for it.

        Args:
            point: a point.
            rng: what decides.
            moves: how many groups move, instead.
        """
        changed = list(point)
        count = min(moves or (2 if rng.random() < _DOUBLE else 1), len(point))
        moved = rng.choice(len(point), size=count, replace=False)
        for at in moved:
            longest = max(1, round(self.full[at] * _LONGEST))
            step = int(rng.integers(1, longest + 1)) * (1 if rng.random() < 0.5 else -1)
            if not 0 <= point[at] + step <= self.full[at]:
                step = -step
            changed[at] = min(max(point[at] + step, 0), self.full[at])
        return self.repair(tuple(changed), rng, frozenset(int(at) for at in moved))

    def repair(self, point: Point, rng: np.random.Generator, spare: frozenset[int] = frozenset()) -> Point | None:
        """Return a full point near ``point``, by random single steps, or ``None`` where all steps down end above.

        Args:
            point: any point.
            rng: what decides.
            spare: groups that are changed last, because they are what a mutation wanted.
        """
        found = list(point)
        while not self.meets(tuple(found)):
            able = [at for at in range(len(found)) if found[at] > 0]
            if not able:
                return None
            able = [at for at in able if at not in spare] or able
            found[able[int(rng.integers(len(able)))]] -= 1
        for group in (set(range(len(found))) - spare, spare):
            open_ = sorted(group)
            while open_:
                at = open_[int(rng.integers(len(open_)))]
                if not self._grow(found, at):
                    open_.remove(at)
        return tuple(found)

    def _grow(self, point: list[int], at: int) -> bool:
        """Take one step up in one group if every bound still holds."""
        if point[at] >= self.full[at]:
            return False
        point[at] += 1
        if self.meets(tuple(point)):
            return True
        point[at] -= 1
        return False

    def _near(self, units: NDArray[np.float64]) -> Point:
        return tuple(
            choice.grid.counts.index(choice.grid.nearest(float(wanted)))
            for choice, wanted in zip(self.free, units, strict=True)
        )
