"""``search()``: the public function, and the allocation that it is made of."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import nn

from slim_core.graph.rules.base import Preference
from slim_core.progress import Progress
from slim_core.workload import DataSource, Inputs, Task
from slim_prune.allocation.problem import Problem
from slim_prune.context import Context
from slim_prune.evolution import engine
from slim_prune.evolution.config import SearchConfig
from slim_prune.evolution.result import SearchResult
from slim_prune.evolution.scoring import Judge
from slim_prune.planning import plan

if TYPE_CHECKING:
    from slim_core.graph.types import Coupling
    from slim_core.registry import Registry


class Evolution:
    """The allocation ``evolution``, as an object that keeps its result.

    Args:
        config: how to search.
        judge: scores pruned models instead of task and held-out data: ``(model) -> float``, more is better.
    """

    __name__ = "evolution"

    def __init__(self, config: SearchConfig, judge: Judge | None = None) -> None:
        self.config, self.judge = config, judge
        self.result: SearchResult | None = None

    def __call__(self, problem: Problem, context: Context) -> dict[str, int]:
        """Return the best choice that was found."""
        self.result = engine.run(problem, context, self.config, self.judge)
        report(self.result, context, problem.original)
        return dict(self.result.best.counts)


def report(result: SearchResult, context: Context, original: Mapping[str, float]) -> None:
    """Put a search's notes and curves into the plan."""
    best = result.best
    names = dict.fromkeys([result.metric, *best.figures])
    figures = ", ".join(f"{name} {best.figures[name]:.4g}" for name in names if best.figures.get(name) is not None)
    context.note(f"best of {result.scored} candidates (trial {best.number} of {best.by}): {figures}")
    random = [trial for trial in result.by(engine.RANDOM) if not trial.repeats]
    if random and result.algorithm != engine.RANDOM:
        beaten = max(random, key=lambda trial: trial.score)
        context.note(f"best of {len(random)} random candidates beside: {result.metric} {result.figure(beaten):.4g}")
    uniform = next((trial for trial in result.trials if trial.origin == "uniform"), None)
    if uniform is not None:
        context.note(f"uniform on the same samples: {result.metric} {result.figure(uniform):.4g}")
    for line in result.notes:
        context.note(line)
    context.details["search"] = {
        "algorithm": result.algorithm,
        "metric": result.metric,
        "candidates scored": result.scored,
        "best": {key: value for key, value in best.to_json().items() if key not in ("seconds", "repeats")},
    }
    context.details.setdefault("curves", []).extend(result.curves(original))


def search(
    model: nn.Module,
    example_inputs: Inputs,
    budget: Mapping[str, float | int | str] | None = None,
    *,
    task: Task | None = None,
    train: DataSource | None = None,
    val: DataSource | None = None,
    score: Judge | None = None,
    algorithm: str = "aging",
    trials: int = 100,
    importance: Any = "l1",
    include: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    ratios: Mapping[str, float] | None = None,
    round_to: int = 8,
    min_channels: int | Mapping[str, int] = 1,
    prefer: Preference = "heads",
    folder: str | os.PathLike[str] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    coupling: Coupling | None = None,
    registry: Registry | None = None,
    **options: Any,
) -> SearchResult:
    """Search for how many channels each group keeps, by scoring pruned copies of ``model``. The model is not changed.

    Every candidate meets every bound of the budget; none that breaks one is ever scored. ``uniform``'s choice is scored
    first, so the result is at least as good on the samples that candidates are scored on. With the same seed the result
    is the same, however many workers there are, and whether or not the search was interrupted: with a ``folder``,
    every result is in its journal ``search.jsonl`` before the next one is waited for.

    Args:
        model: any model whose forward runs on ``example_inputs``.
        example_inputs: as for :func:`slim_prune.plan`.
        budget: as for :func:`slim_prune.plan`.
        task: loss and metrics.
        train: training data; the samples that candidates are scored on are held out of it.
        val: validation data; it is not looked at where there is training data.
        score: an own way of scoring instead: gets the pruned model in evaluation mode, more is better. With workers it
            must be a function of a module.
        algorithm: ``aging``, ``annealing``, ``cmaes`` (needs ``slim-prune[search]``) or ``random``.
        trials: how many candidates the algorithm may ask for.
        importance: decides which channels stay; and the following, as for :func:`slim_prune.plan`.
        include: globs over module paths.
        exclude: globs over module paths.
        ratios: fixed shares by glob.
        round_to: kept channels are a multiple of this.
        min_channels: the least that any layer keeps.
        prefer: what attention loses first.
        folder: where the journal lies; a search that finds its own one goes on from there.
        seed: of everything random.
        progress: where to report.
        coupling: the analysis, when it has been made already.
        registry: what plugins registered.
        **options: the fields of :class:`slim_prune.evolution.config.SearchConfig`: ``population``, ``holdout``,
            ``samples``, ``recalibrate``, ``fit``, ``workers``, ``initial``, …

    Raises:
        PlanError: task or data is missing, or the first candidate cannot be scored; and what ``plan`` raises.
    """
    config = SearchConfig.of({"algorithm": algorithm, "trials": trials, **options})
    evolution = Evolution(config, score)
    planned = plan(
        model,
        example_inputs,
        budget,
        importance=importance,
        allocation=evolution,
        include=include,
        exclude=exclude,
        ratios=ratios,
        round_to=round_to,
        min_channels=min_channels,
        prefer=prefer,
        task=task,
        train=train,
        val=val,
        folder=folder,
        seed=seed,
        progress=progress,
        coupling=coupling,
        registry=registry,
    )
    assert evolution.result is not None  # noqa: S101 - plan called it
    return replace(evolution.result, made=planned)
