"""A search from problem and context to its result: what it begins with, on which samples, with which workers.

Not here: the loop (``driver.py``) and the public function (``search.py``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from slim_core.errors import BudgetError
from slim_core.graph.isolate import unwrap
from slim_core.training.state import digest
from slim_prune import allocation as allocations
from slim_prune.allocation.problem import Problem
from slim_prune.allocation.uniform import uniform
from slim_prune.context import Context
from slim_prune.edits import Edits, edits_of
from slim_prune.errors import PlanError
from slim_prune.evolution.config import SearchConfig
from slim_prune.evolution.driver import Driver
from slim_prune.evolution.journal import Journal
from slim_prune.evolution.result import SearchResult
from slim_prune.evolution.scoring import Judge, Parts, Scoring, direction, part
from slim_prune.evolution.searchers import Aging, Annealing, Random, Searcher
from slim_prune.evolution.space import Point, Space
from slim_prune.evolution.workers import Executor, Here, Processes
from slim_prune.importance.passes import collecting

#: Searchers that no journal keeps apart by configuration alone; also their names in results.
RANDOM = "random"


def run(problem: Problem, context: Context, config: SearchConfig, judge: Judge | None = None) -> SearchResult:
    """Search for the best choice that meets every bound.

    Args:
        problem: groups, grids, bounds, costs.
        context: model, data, seed, folder, progress.
        config: how to search.
        judge: scores pruned models instead of the task.

    Raises:
        PlanError: task or data is missing, the first candidate cannot be scored, or the journal is another search's.
        BudgetError: the bounds cannot be met.
        MissingExtraError: the algorithm's library is not installed.
    """
    if judge is None:
        context.require("task", by="a search")
    metric, higher = direction(context.task, config.metric, judge is not None)
    space = Space(problem)
    origins = first_points(problem, context, config, space)
    seeds = tuple(origins)
    searcher = searcher_of(config, space, seeds, context.seed)
    parts = _parts(context, config, judge)
    notes = [parts.said] if parts.said else []
    if not space.free:
        notes.append("there is nothing to search: no group has more than one permitted count")
    if config.algorithm in ("aging", "annealing") and config.workers > config.lag:
        notes.append(
            f"{config.workers - config.lag} of {config.workers} workers mostly had nothing to do, because lag is "
            f"{config.lag}; a larger lag keeps them busy, and each candidate is chosen knowing less"
        )
    searching = space.free and not problem.meets(problem.everything())
    trials = max(config.trials, len(seeds)) if searching else 1
    beside = config.random_trials if trials > 1 else 0
    scoring = Scoring(
        model=unwrap(context.model),
        example_inputs=context.example_inputs,
        task=context.task,
        parts=parts,
        recalibrate=config.recalibrate,
        fit=config.fit,
        seed=context.seed,
        judge=judge,
    )
    identity = identity_of(problem, context, config, parts, seeds, judge)
    with (
        collecting(),
        Journal(context.folder, identity) as journal,
        executor_of(config, scoring) as executor,
        context.progress.track(f"search ({config.algorithm})", trials + beside) as track,
    ):
        driver = Driver(
            space, executor, journal, lambda counts: _edits(context, counts), metric, higher, origins, track
        )
        driver.run(searcher, config.algorithm, trials)
        if beside:
            driver.run(Random(space, seeds, context.seed, beside=True), RANDOM, beside)
    failed = [trial for trial in driver.trials if trial.error is not None and not trial.repeats]
    if failed:
        notes.append(f"{len(failed)} candidates could not be scored and count as worst; the first: {failed[0].error}")
    return SearchResult(
        algorithm=config.algorithm,
        metric=metric,
        higher_is_better=higher,
        trials=tuple(driver.trials),
        notes=tuple(notes),
        resumed=driver.resumed,
    )


def first_points(problem: Problem, context: Context, config: SearchConfig, space: Space) -> dict[Point, str]:
    """Return what is scored first: ``uniform``'s choice, then that of each allocation that was named.

    Raises:
        BudgetError: the bounds cannot be met, or an allocation's choice breaks one.
    """
    found = {space.point(uniform(problem)): "uniform"}
    for named in config.initial:
        label, allocation = allocations.resolve(named, context.registry)
        aside = replace(context, notes=[], details={})  # what it has to say is about its own choice
        counts = dict(allocation(problem, aside))
        point = space.point(counts)
        if not space.meets(point):
            raise BudgetError(f"the choice of allocation '{label}' breaks a bound", where="initial")
        found.setdefault(point, label)
    return found


def searcher_of(config: SearchConfig, space: Space, seeds: tuple[Point, ...], seed: int) -> Searcher:
    """Return the algorithm.

    Raises:
        MissingExtraError: its library is not installed.
    """
    if config.algorithm == "aging":
        return Aging(space, seeds, seed, population=config.population, tournament=config.tournament, lag=config.lag)
    if config.algorithm == "annealing":
        return Annealing(space, seeds, seed, trials=config.trials, lag=config.lag)
    if config.algorithm == "cmaes":
        from slim_prune.evolution.cma import Cma

        return Cma(space, seeds, seed)
    return Random(space, seeds, seed)


@contextmanager
def executor_of(config: SearchConfig, scoring: Callable[[Edits], Any]) -> Iterator[Executor]:
    """Yield what scores candidates; it ends with the block."""
    executor: Executor
    if config.workers:
        threads = config.threads or max(1, torch.get_num_threads() // config.workers)
        executor = Processes(
            scoring, workers=config.workers, threads=threads, timeout=config.timeout, retries=config.retries
        )
    else:
        executor = Here(scoring, config.threads)
    try:
        yield executor
    finally:
        executor.close()


def identity_of(
    problem: Problem,
    context: Context,
    config: SearchConfig,
    parts: Parts,
    seeds: tuple[Point, ...],
    judge: Judge | None = None,
) -> dict[str, Any]:
    """Return what a result depends on. How many trials, workers and attempts there are is no part of it."""
    options = config.model_dump(mode="json", exclude={"trials", "baseline", "workers", "timeout", "retries", "initial"})
    if config.algorithm == "annealing":
        options["trials"] = config.trials  # its temperature depends on it
    ranking = hashlib.sha256()
    for choice in problem.choices:
        ranking.update(np.argsort(-context.score(choice.group), kind="stable").astype(np.int64).tobytes())
    return {
        "scored by": _scored_by(context, judge),
        "options": options,
        "seed": context.seed,
        "budget": dict(problem.limits),
        "grids": {choice.name: list(choice.grid.counts) for choice in problem.choices},
        "ratios": {choice.name: choice.ratio for choice in problem.choices if choice.ratio is not None},
        "initial": [list(point) for point in seeds],
        "model": digest(context.tensors),
        "importance": ranking.hexdigest(),
        "data": parts.digest(),
    }


def _scored_by(context: Context, judge: Judge | None) -> str:
    """Return what tells one way of scoring from another, as far as names do."""
    if judge is None:
        return f"task {context.task.name}" if context.task is not None else "nothing"
    while isinstance(judge, partial):
        judge = judge.func
    named = judge if hasattr(judge, "__qualname__") else type(judge)
    return f"function {named.__qualname__}"


def _parts(context: Context, config: SearchConfig, judge: Judge | None) -> Parts:
    if judge is not None and context.train is None:
        if config.fit is not None:
            raise PlanError("short fine-tuning needs training data", hint="pass train=… and task=…, or leave fit out")
        return Parts([], [], [], "candidates were scored by the caller's own function")
    return part(
        context.train,
        context.val,
        holdout=config.holdout,
        calibration=config.samples if config.recalibrate else 0,
        training=config.fit_samples if config.fit is not None else 0,
        seed=context.seed,
    )


def _edits(context: Context, counts: Mapping[str, int]) -> Edits:
    return edits_of(context.model, context.coupling, context.kept(counts))
