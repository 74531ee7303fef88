"""Which candidate comes next: random search, aging evolution, simulated annealing. CMA-ES lives in ``cma.py``.

A searcher is asked for trial 0, 1, 2, … in order, and before trial ``t`` it is told the results of exactly the first
``needs(t)`` trials, in order. So what it asks for depends on the seed and the scores alone: not on how many workers
there are, nor on which of them is faster.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from slim_prune.evolution.space import Point, Space

#: How good a candidate is: the metric, signed so that more is better, and minus the loss to tell equals apart.
Score = tuple[float, float]
WORST: Score = (-math.inf, -math.inf)

#: How often a new candidate is tried for before one that was scored already is taken.
_ATTEMPTS = 40
#: Probability of accepting the typical loss at the start of annealing, and the temperature's last share of its first.
_ACCEPTED, _COOLEST = 0.5, 0.01
#: Neighbours of the first point that tell annealing how much scores differ.
_WARM_UP = 8


class Searcher(Protocol):
    """Asks for candidates."""

    def needs(self, trial: int) -> int:
        """Return how many trials must be told before ``trial`` may be asked for."""

    def ask(self, trial: int) -> Point:
        """Return the candidate of a trial: a point that meets every bound."""

    def tell(self, trial: int, point: Point, score: Score) -> None:
        """Take the score of a trial."""


class Asking:
    """What searchers share: the first points, a generator per trial, and the wish for new candidates.

    Args:
        space: the points.
        seeds: points to begin with; at least one.
        seed: of everything random.
        stream: tells searchers with one seed apart.
    """

    def __init__(self, space: Space, seeds: Sequence[Point], seed: int, stream: int) -> None:
        self.space, self.seeds = space, tuple(seeds)
        self._seed, self._stream = seed & 0xFFFF_FFFF_FFFF_FFFF, stream
        self._asked: set[Point] = set()

    def rng(self, trial: int) -> np.random.Generator:
        """Return the generator of a trial, a function of the seed and the trial's number."""
        return np.random.default_rng([self._seed, self._stream, trial])

    def first(self, trial: int) -> Point:
        """Return the seed of a trial."""
        self._asked.add(self.seeds[trial])
        return self.seeds[trial]

    def fresh(self, make: Callable[[], Point | None], otherwise: Point) -> Point:
        """Return a point of ``make`` that was not asked for yet; after many attempts, one that was."""
        found = otherwise
        for _ in range(_ATTEMPTS):
            point = make()
            if point is not None:
                found = point
                if point not in self._asked:
                    break
        self._asked.add(found)
        return found


class Random(Asking):
    """Independent draws: what every search has to beat.

    Args:
        space: the points.
        seeds: points to begin with.
        seed: of everything random.
        beside: it runs beside another searcher, which asks for the seeds.
    """

    def __init__(self, space: Space, seeds: Sequence[Point], seed: int, *, beside: bool = False) -> None:
        super().__init__(space, seeds, seed, 5)
        self._beside = beside

    def needs(self, trial: int) -> int:
        return 0

    def ask(self, trial: int) -> Point:
        if trial < len(self.seeds) and not self._beside:
            return self.first(trial)
        rng = self.rng(trial)
        return self.fresh(lambda: self.space.draw(rng), self.seeds[0])

    def tell(self, trial: int, point: Point, score: Score) -> None:
        pass


class Aging(Asking):
    """Aging evolution: the child of a tournament's winner joins the population, and the oldest member leaves.

    Real et al. 2019, "Regularized Evolution for Image Classifier Architecture Search", arXiv:1802.01548.

    Args:
        space: the points.
        seeds: points to begin with.
        seed: of everything random.
        population: how many are alive.
        tournament: how many are drawn, with replacement, for each parent.
        lag: how many trials may be under way.
    """

    def __init__(
        self, space: Space, seeds: Sequence[Point], seed: int, *, population: int, tournament: int, lag: int
    ) -> None:
        super().__init__(space, seeds, seed, 1)
        self._size, self._tournament, self._lag = population, tournament, min(lag, population)
        self._alive: deque[tuple[Point, Score]] = deque(maxlen=population)

    def needs(self, trial: int) -> int:
        return 0 if trial < max(self._size, len(self.seeds)) else trial - self._lag + 1

    def ask(self, trial: int) -> Point:
        if trial < len(self.seeds):
            return self.first(trial)
        rng, space = self.rng(trial), self.space
        if trial < self._size:  # half of the first ones are drawn evenly, half lie around the seeds
            around = self.seeds[trial % len(self.seeds)]
            if (trial - len(self.seeds)) % 2:
                return self.fresh(lambda: space.mutate(around, rng, max(1, len(space.free) // 2)), around)
            return self.fresh(lambda: space.draw(rng), around)
        drawn = [self._alive[int(rng.integers(len(self._alive)))] for _ in range(self._tournament)]
        parent = max(drawn, key=lambda member: member[1])[0]
        return self.fresh(lambda: space.mutate(parent, rng), parent)

    def tell(self, trial: int, point: Point, score: Score) -> None:
        self._alive.append((point, score))


class Annealing(Asking):
    """Simulated annealing: a neighbour that is worse is accepted with a probability that falls as the search goes on.

    Kirkpatrick, Gelatt and Vecchi 1983, "Optimization by Simulated Annealing". The first temperature comes from how
    much the scores of a few neighbours differ; it then falls geometrically. With a lag, proposals start at the point
    that is known when they are made.

    Args:
        space: the points.
        seeds: points to begin with; the best is where annealing starts.
        seed: of everything random.
        trials: how many there will be, for the temperature.
        lag: how many may be under way.
    """

    def __init__(self, space: Space, seeds: Sequence[Point], seed: int, *, trials: int, lag: int) -> None:
        super().__init__(space, seeds, seed, 2)
        self._trials, self._lag = trials, lag
        self._warm = len(self.seeds) + _WARM_UP
        self._now: tuple[Point, Score] = (self.seeds[0], WORST)
        self._differences: list[float] = []

    def needs(self, trial: int) -> int:
        if trial < len(self.seeds):
            return 0
        return len(self.seeds) if trial < self._warm else max(trial - self._lag + 1, len(self.seeds))

    def ask(self, trial: int) -> Point:
        if trial < len(self.seeds):
            return self.first(trial)
        rng, start = self.rng(trial), self._now[0]
        return self.fresh(lambda: self.space.mutate(start, rng), start)

    def tell(self, trial: int, point: Point, score: Score) -> None:
        now = self._now[1]
        if trial < len(self.seeds):
            self._now = max(self._now, (point, score), key=lambda member: member[1])
            return
        if trial < self._warm and math.isfinite(score[0] - now[0]):
            self._differences.append(abs(score[0] - now[0]))
        if score >= now or self._accepts(trial, now[0] - score[0]):
            self._now = (point, score)

    def temperature(self, trial: int) -> float:
        """Return the temperature at a trial, in units of the score."""
        typical = sum(self._differences) / len(self._differences) if self._differences else 0.0
        done = min(1.0, max(0, trial - self._warm) / max(1, self._trials - self._warm))
        return float(typical / -math.log(_ACCEPTED) * _COOLEST**done)

    def _accepts(self, trial: int, loss: float) -> bool:
        temperature = self.temperature(trial)
        if not (math.isfinite(loss) and temperature > 0):
            return False
        # the generator of the trial made the candidate; another stream decides
        return bool(np.random.default_rng([self._seed, 3, trial]).random() < math.exp(-loss / temperature))
