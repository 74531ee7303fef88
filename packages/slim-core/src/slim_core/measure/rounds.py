"""The order of things: warm-up, then shuffled rounds in which every candidate gives one sample.

Candidates that are timed one after the other meet different machines: another clock, another neighbour. In
interleaved rounds they meet the same one. Nothing here knows what is timed.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import repeat
from math import ceil

import numpy as np

Clock = Callable[[], float]

#: A sample begins with a call that is not timed when a call is shorter than this: it fills the caches that the
#: candidate before it used, and outlasts the threads that the candidate before it left spinning.
SETTLE_BELOW_S = 0.1
#: rounds that are made even when the time is up: fewer give no 95 % interval
LEAST_ROUNDS = 6


@dataclass(frozen=True, slots=True)
class Candidate:
    """One thing to time.

    Args:
        call: runs once.
        active: returns the context that calls run in.
    """

    call: Callable[[], object]
    active: Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True, slots=True)
class Samples:
    """What was timed.

    Args:
        seconds: per candidate and round, the seconds of one call.
        inner: per candidate, how many calls a sample is the mean of.
        warmup: per candidate, how many calls were made before.
        out_of_time: whether rounds were left out.
    """

    seconds: Mapping[str, tuple[float, ...]]
    inner: Mapping[str, int]
    warmup: Mapping[str, int]
    out_of_time: bool


def take_samples(
    candidates: Mapping[str, Candidate],
    *,
    rounds: int,
    warmup: int,
    min_sample_s: float,
    budget_s: float,
    seed: int,
    clock: Clock = time.perf_counter,
    on_round: Callable[[], None] = lambda: None,
) -> Samples:
    """Time all candidates, interleaved.

    Args:
        candidates: what to time, by name.
        rounds: samples per candidate.
        warmup: calls per candidate before anything is timed.
        min_sample_s: calls are repeated within a sample until it takes this long.
        budget_s: stop after this many seconds, but not before :data:`LEAST_ROUNDS` rounds.
        seed: of the order inside the rounds.
        clock: returns seconds.
        on_round: called after each round.
    """
    generator = np.random.default_rng(seed)
    names = list(candidates)
    start = clock()
    with _without_collector():
        single, warmed = {}, {}
        for name in names:
            single[name], warmed[name] = _warm(candidates[name], warmup, budget_s / (4 * len(names)), clock)
        inner = {name: max(1, ceil(min_sample_s / max(single[name], 1e-9))) for name in names}
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for done in range(rounds):
            if done >= min(LEAST_ROUNDS, rounds) and clock() - start > budget_s:
                break
            for position in generator.permutation(len(names)):
                name = names[position]
                settle = single[name] < SETTLE_BELOW_S
                seconds[name].append(_sample(candidates[name], inner[name], settle, clock))
            on_round()
    taken = {name: tuple(values) for name, values in seconds.items()}
    return Samples(taken, inner, warmed, out_of_time=len(taken[names[0]]) < rounds)


def _warm(candidate: Candidate, calls: int, limit_s: float, clock: Clock) -> tuple[float, int]:
    """Return the shortest call and how many there were: one at least, and no more than fit ``limit_s``."""
    shortest, done, start = float("inf"), 0, clock()
    with candidate.active():
        while done < max(calls, 1) and (done == 0 or clock() - start < limit_s):
            before = clock()
            candidate.call()
            shortest = min(shortest, clock() - before)
            done += 1
    return shortest, done


def _sample(candidate: Candidate, inner: int, settle: bool, clock: Clock) -> float:
    call = candidate.call
    with candidate.active():
        if settle:
            call()
        before = clock()
        for _ in repeat(None, inner):
            call()
        return (clock() - before) / inner


@contextmanager
def _without_collector() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
