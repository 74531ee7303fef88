"""CMA-ES over the groups' shares, through the library ``cmaes`` (extra ``slim-prune[search]``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from slim_core.extras import require
from slim_prune.evolution.searchers import WORST, Asking, Score
from slim_prune.evolution.space import Point, Space

EXTRA = "slim-prune[search]"
#: Smallest share that is asked for: shares are proportions, so none may be zero.
_LEAST = 0.02
_SIGMA = 0.2


class Cma(Asking):
    """Covariance matrix adaptation: a normal distribution over the shares moves towards what scores well.

    Hansen and Ostermeier 2001, "Completely Derandomized Self-Adaptation in Evolution Strategies"; the library is
    described by Nomura and Shibata 2024, arXiv:2402.01373. A sample is brought to the budget along its proportions and
    to the grid; its score is told for the sample as it was drawn, as a rank, so scores need no scale. The first mean
    is the best of the seeds. A distribution that has settled starts anew around the best point, with twice as many
    samples in each generation.

    Args:
        space: the points.
        seeds: points to begin with.
        seed: of everything random.

    Raises:
        MissingExtraError: the library is not installed.
    """

    def __init__(self, space: Space, seeds: Sequence[Point], seed: int) -> None:
        super().__init__(space, seeds, seed, 4)
        self._library = require("cmaes", EXTRA)
        self._dimensions = max(2, len(space.free))  # the library wants two at least
        self._restarts = 0
        self._best: tuple[Score, Point] = (WORST, self.seeds[0])
        self._known: dict[Point, Score] = {}
        self._start = len(self.seeds)  # first trial of the present generation
        self._cma: Any = None
        self._samples: list[np.ndarray] = []
        self._told: list[Score] = []
        self._new = 0
        self._size = int(4 + 3 * np.log(self._dimensions))

    def needs(self, trial: int) -> int:
        if trial < len(self.seeds):
            return 0
        return self._start + (trial - self._start) // self._size * self._size

    def ask(self, trial: int) -> Point:
        if trial < len(self.seeds):
            return self.first(trial)
        if self._cma is None:
            self._begin()
        sample = self._cma.ask()
        self._samples.append(sample)
        point = self.space.project(np.maximum(sample[: len(self.space.free)], _LEAST)) or self.seeds[0]
        self._new += point not in self._asked
        self._asked.add(point)
        return point

    def tell(self, trial: int, point: Point, score: Score) -> None:
        self._best = max(self._best, (score, point), key=lambda pair: pair[0])
        if trial < len(self.seeds):
            return
        self._told.append(score)
        if len(self._told) < self._size:
            return
        ranks = {score: float(rank) for rank, score in enumerate(sorted(set(self._told), reverse=True))}
        self._cma.tell([(sample, ranks[score]) for sample, score in zip(self._samples, self._told, strict=True)])
        self._start += self._size
        settled = self._new == 0 or self._cma.should_stop()
        self._samples, self._told, self._new = [], [], 0
        if settled:
            self._restarts += 1
            self._size *= 2
            self._cma = None

    def _begin(self) -> None:
        shares = np.array(self.space.shares(self._best[1]))
        mean = np.full(self._dimensions, 0.5)
        mean[: len(shares)] = shares / max(1.0, float(shares.max(initial=0.0)))
        bounds = np.tile([_LEAST, 1.0], (self._dimensions, 1))
        state = np.random.SeedSequence([self._seed, self._stream, self._restarts]).generate_state(1)
        self._cma = self._library.CMA(
            mean=np.clip(mean, _LEAST, 1.0), sigma=_SIGMA, bounds=bounds, seed=int(state[0]), population_size=self._size
        )
