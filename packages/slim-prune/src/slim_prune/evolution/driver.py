"""The loop of a search: ask, score what is new, write it down, tell; in the same order whatever happens meanwhile.

Trials are asked for in order, each after exactly the results that its searcher needs. So results that workers bring
early wait, and a journal of an earlier run gives its answers to the same questions. Not here: which candidate comes
next (``searchers.py``), how it is scored (``scoring.py``), where (``workers.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from slim_core.progress import Track
from slim_prune.edits import Edits
from slim_prune.errors import PlanError
from slim_prune.evolution.journal import Journal
from slim_prune.evolution.result import Trial, best_of
from slim_prune.evolution.searchers import WORST, Score, Searcher
from slim_prune.evolution.space import Point, Space
from slim_prune.evolution.workers import Executor, Outcome


@dataclass
class Driver:
    """Runs searchers one after the other on one space; they share what was scored.

    Args:
        space: the points.
        executor: scores candidates.
        journal: keeps results.
        edits: ``counts -> edits``: what scoring a choice needs.
        metric: the figure that decides.
        higher_is_better: whether more of it is better.
        origins: names of the points that allocations chose.
        track: where progress is reported.
    """

    space: Space
    executor: Executor
    journal: Journal
    edits: Callable[[Mapping[str, int]], Edits]
    metric: str
    higher_is_better: bool
    origins: Mapping[Point, str] = field(default_factory=dict)
    track: Track | None = None
    trials: list[Trial] = field(default_factory=list)
    resumed: int = 0
    _scored: dict[Point, Trial] = field(default_factory=dict)

    def run(self, searcher: Searcher, by: str, count: int) -> None:
        """Ask ``searcher`` for ``count`` trials and score them.

        Args:
            searcher: who asks.
            by: its name.
            count: how many trials.
        """
        results: list[Trial | None] = [None] * count
        points: list[Point] = []
        under_way: dict[Point, list[int]] = {}
        told = asked = 0
        while told < count:
            while asked < count and self.executor.free:
                needed = min(searcher.needs(asked), asked)
                if any(trial is None for trial in results[told:needed]):
                    break
                told = self._tell(searcher, points, results, told, needed)
                point = searcher.ask(asked)
                points.append(point)
                self._take(point, by, asked, results, under_way)
                asked += 1
            if under_way:
                number, outcome = self.executor.next()
                self._finish(points[number], by, number, outcome, results, under_way)
            elif asked == count:
                told = self._tell(searcher, points, results, told, count)
        self.trials += [trial for trial in results if trial is not None]

    def _tell(
        self, searcher: Searcher, points: list[Point], results: list[Trial | None], told: int, needed: int
    ) -> int:
        for number in range(told, needed):
            trial = results[number]
            assert trial is not None  # noqa: S101 - the caller waited for it
            searcher.tell(number, points[number], trial.score)
        return max(told, needed)

    def _take(
        self,
        point: Point,
        by: str,
        number: int,
        results: list[Trial | None],
        under_way: dict[Point, list[int]],
    ) -> None:
        """Find the result of a candidate that was asked for, or have it scored."""
        if point in self._scored:
            results[number] = replace(self._scored[point], by=by, number=number, seconds=0.0, repeats=True)
            self._report(results[number])
        elif point in under_way:
            under_way[point].append(number)
        elif (by, number) in self.journal.known:
            row = self.journal.known[by, number]
            counts = self.space.counts(point)
            if row.get("counts") != counts:
                raise PlanError(
                    f"trial {number} of '{by}' is another candidate in the journal than now",
                    where=str(self.journal.path),
                    hint="other versions wrote it; delete it, or choose another folder",
                )
            trial = self._trial(point, by, number, row.get("figures") or {}, row.get("seconds", 0.0), row.get("error"))
            self._scored[point] = results[number] = trial
            self.resumed += 1
            self._report(trial)
        else:
            if not self.space.meets(point):  # no searcher may ask for one; nothing that breaks a bound is ever scored
                raise AssertionError(f"a candidate breaks a bound: {self.space.counts(point)}")
            under_way[point] = [number]
            self.executor.submit(number, self.edits(self.space.counts(point)))

    def _finish(
        self,
        point: Point,
        by: str,
        number: int,
        outcome: Outcome,
        results: list[Trial | None],
        under_way: dict[Point, list[int]],
    ) -> None:
        if outcome.error is not None and not self._scored and number == 0:
            # the very first candidate is the uniform one: whatever ails it ails them all
            raise outcome.fault or PlanError(
                f"the first candidate cannot be scored: {outcome.error}", hint="look at task, data and time-out"
            )
        trial = self._trial(point, by, number, outcome.figures, outcome.seconds, outcome.error)
        self.journal.append(
            by,
            number,
            {
                "counts": dict(trial.counts),
                "figures": dict(trial.figures),
                "seconds": round(trial.seconds, 3),
                "error": trial.error,
            },
        )
        self._scored[point] = trial
        for other in under_way.pop(point):
            results[other] = trial if other == number else replace(trial, number=other, seconds=0.0, repeats=True)
            self._report(results[other])

    def _trial(
        self, point: Point, by: str, number: int, figures: Mapping[str, Any], seconds: float, error: str | None
    ) -> Trial:
        counts = self.space.counts(point)
        return Trial(
            by=by,
            number=number,
            origin=self.origins.get(point, ""),
            counts=counts,
            costs=self.space.problem.costs(counts),
            figures=dict(sorted(figures.items())),  # as the journal gives them back
            score=score_of(figures, self.metric, self.higher_is_better),
            seconds=seconds,
            error=error,
        )

    def _report(self, trial: Trial | None) -> None:
        if self.track is None or trial is None:
            return
        best = best_of(list(self._scored.values()))
        shown: dict[str, float | str] = {}
        if best.score > WORST:
            shown[f"best {self.metric}"] = best.score[0] if self.higher_is_better else -best.score[0]
        self.track.advance(1, **shown)


def score_of(figures: Mapping[str, float | None], metric: str, higher_is_better: bool) -> Score:
    """Return how good a candidate is, from its figures."""
    value, loss = figures.get(metric), figures.get("loss")
    if value is None:
        return WORST
    return (value if higher_is_better else -value), (-loss if loss is not None else WORST[1])
