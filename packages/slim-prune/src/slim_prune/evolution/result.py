"""What a search found: every trial, the best one, the Pareto front, and the curves that the report draws."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slim_prune.documents import save_json
from slim_prune.errors import PlanError
from slim_prune.evolution.searchers import WORST, Score

if TYPE_CHECKING:
    from slim_prune.prune_plan import PrunePlan


@dataclass(frozen=True, slots=True)
class Trial:
    """One candidate that was asked for.

    Args:
        by: who asked: the algorithm, or ``"random"``.
        number: which of its trials, from 0.
        origin: the allocation whose choice it is, or ``""``.
        counts: kept units by group name.
        costs: its costs by cost model.
        figures: its metrics; empty where it failed.
        score: how good it is: the metric, signed so that more is better, then minus the loss.
        seconds: how long scoring it took; 0 where it was scored before.
        repeats: whether it had been scored before.
        error: why it could not be scored, or ``None``.
    """

    by: str
    number: int
    origin: str
    counts: Mapping[str, int]
    costs: Mapping[str, float]
    figures: Mapping[str, float | None]
    score: Score = WORST
    seconds: float = 0.0
    repeats: bool = False
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the trial as JSON values."""
        return {
            "by": self.by,
            "trial": self.number,
            "origin": self.origin,
            "counts": dict(self.counts),
            "costs": dict(self.costs),
            "figures": dict(self.figures),
            "seconds": round(self.seconds, 3),
            "repeats": self.repeats,
            "error": self.error,
        }


@dataclass(frozen=True, eq=False)
class SearchResult:
    """What a search found.

    Args:
        algorithm: the algorithm.
        metric: the figure that decided.
        higher_is_better: whether more of it is better.
        trials: the algorithm's trials in order, then the random ones.
        notes: what a reader should know: the samples, what failed.
        resumed: results that an earlier, interrupted run had left.
        made: the plan, where it is made already; see :attr:`plan`.
    """

    algorithm: str
    metric: str
    higher_is_better: bool
    trials: tuple[Trial, ...]
    notes: tuple[str, ...] = ()
    resumed: int = 0
    made: PrunePlan | None = None

    @property
    def plan(self) -> PrunePlan:
        """The plan that keeps what the best trial kept.

        Raises:
            PlanError: the search belongs to a plan that is still being made.
        """
        if self.made is None:
            raise PlanError(
                "the plan of this search is not made yet", hint="slim_prune.search returns it with its plan"
            )
        return self.made

    @property
    def best(self) -> Trial:
        """The trial with the best score; the first of equals."""
        return best_of(self.trials)

    @property
    def scored(self) -> int:
        """How many candidates were scored, repeats not counted."""
        return sum(not trial.repeats for trial in self.trials)

    def by(self, name: str) -> tuple[Trial, ...]:
        """Return the trials that one searcher asked for."""
        return tuple(trial for trial in self.trials if trial.by == name)

    def pareto(self, cost: str = "macs") -> tuple[Trial, ...]:
        """Return the trials that no other one beats in both score and ``cost``, cheapest first."""
        found: list[Trial] = []
        scored = [trial for trial in self.trials if trial.score > WORST and cost in trial.costs]
        for trial in sorted(scored, key=lambda t: (t.costs[cost], -t.score[0], -t.score[1])):
            if not found or trial.score > found[-1].score:
                found.append(trial)
        return tuple(found)

    def best_so_far(self, name: str) -> list[tuple[int, float]]:
        """Return ``(trials, best figure until then)`` of one searcher."""
        curve: list[tuple[int, float]] = []
        best: Trial | None = None
        for number, trial in enumerate(self.by(name), 1):
            if trial.score > WORST and (best is None or trial.score > best.score):
                best = trial
            if best is not None:
                curve.append((number, self.figure(best)))
        return curve

    def figure(self, trial: Trial) -> float:
        """Return the figure that decides, of one trial."""
        return trial.score[0] if self.higher_is_better else -trial.score[0]

    def curves(self, original: Mapping[str, float]) -> list[dict[str, Any]]:
        """Return what the report draws: the best figure by trial, and figure against cost.

        Args:
            original: costs of the model before pruning.
        """
        names = dict.fromkeys(trial.by for trial in self.trials)
        charts = [
            _chart(f"Best {self.metric} so far", "candidates", self.metric, [(n, self.best_so_far(n)) for n in names])
        ]
        for cost in dict.fromkeys(cost for trial in self.trials for cost in trial.costs):
            if original.get(cost):
                front = [(100 * t.costs[cost] / original[cost], self.figure(t)) for t in self.pareto(cost)]
                title, label = f"{self.metric} against {cost}: the Pareto front", f"{cost} kept, %"
                charts.append(_chart(title, label, self.metric, [("best at its cost", front)]))
        return [chart for chart in charts if chart["series"]]

    def to_json(self) -> dict[str, Any]:
        """Return the search as JSON values."""
        return {
            "algorithm": self.algorithm,
            "metric": self.metric,
            "higher_is_better": self.higher_is_better,
            "best": self.best.to_json(),
            "trials": [trial.to_json() for trial in self.trials],
            "notes": list(self.notes),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write every trial to ``path`` as JSON; a kill leaves the old file or the new one.

        Raises:
            PlanError: the folder of ``path`` is not there, or the file cannot be written.
        """
        save_json(path, self.to_json(), "the search's result")


def best_of(trials: Sequence[Trial]) -> Trial:
    """Return the trial with the best score; the first of equals."""
    return max(trials, key=lambda trial: trial.score)


def _chart(
    title: str, x_label: str, y_label: str, series: Sequence[tuple[str, Sequence[tuple[float, float]]]]
) -> dict[str, Any]:
    return {
        "title": title,
        "x_label": x_label,
        "y_label": y_label,
        "series": [
            {"name": name, "x": [float(x) for x, _ in points], "y": [float(y) for _, y in points]}
            for name, points in series
            if points
        ],
    }
