"""The order of calls and what is counted, on a clock that only moves when a candidate runs."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import pytest

from slim_core.measure.rounds import LEAST_ROUNDS, Candidate, Samples, take_samples


class Machine:
    """A machine whose clock moves by the duration of what runs, times how slow it is at that moment."""

    def __init__(self, slowness: Callable[[float], float] = lambda now: 1.0) -> None:
        self.now = 0.0
        self.log: list[str] = []
        self.slowness = slowness

    def clock(self) -> float:
        return self.now

    def candidate(self, name: str, seconds: float, active: Any = None) -> Candidate:
        def call() -> None:
            self.log.append(name)
            self.now += seconds * self.slowness(self.now)

        return Candidate(call, active or nullcontext)

    def take(self, candidates: dict[str, Candidate], **settings: Any) -> Samples:
        chosen = {"rounds": 10, "warmup": 3, "min_sample_s": 0.0, "budget_s": 1e9, "seed": 0} | settings
        return take_samples(candidates, clock=self.clock, **chosen)


def test_samples_are_the_durations() -> None:
    machine = Machine()
    taken = machine.take({"a": machine.candidate("a", 0.004), "b": machine.candidate("b", 0.007)})
    assert taken.seconds["a"] == pytest.approx([0.004] * 10)
    assert taken.seconds["b"] == pytest.approx([0.007] * 10)


def test_every_candidate_warms_up_before_anything_is_timed() -> None:
    machine = Machine()
    taken = machine.take({"a": machine.candidate("a", 0.01), "b": machine.candidate("b", 0.01)}, warmup=4)
    assert machine.log[:8] == ["a"] * 4 + ["b"] * 4
    assert taken.warmup == {"a": 4, "b": 4}


def test_every_round_has_every_candidate_once_in_changing_order() -> None:
    machine = Machine()
    candidates = {name: machine.candidate(name, 0.5) for name in "abc"}  # too long for an untimed first call
    machine.take(candidates, warmup=1, rounds=20)
    rounds = [tuple(machine.log[start : start + 3]) for start in range(3, len(machine.log), 3)]
    assert len(rounds) == 20
    assert all(sorted(order) == ["a", "b", "c"] for order in rounds)
    assert len(set(rounds)) > 3


def test_the_same_seed_gives_the_same_order() -> None:
    logs = []
    for seed in (1, 1, 2):
        machine = Machine()
        machine.take({name: machine.candidate(name, 0.01) for name in "abcd"}, seed=seed)
        logs.append(machine.log)
    assert logs[0] == logs[1] != logs[2]


def test_short_calls_are_repeated_until_a_sample_is_long_enough() -> None:
    machine = Machine()
    taken = machine.take(
        {"short": machine.candidate("short", 0.0003), "long": machine.candidate("long", 0.02)}, min_sample_s=0.005
    )
    assert taken.inner == {"short": 17, "long": 1}  # 17 * 0.3 ms is the first multiple above 5 ms
    assert taken.seconds["short"] == pytest.approx([0.0003] * 10)


def test_a_sample_of_a_short_call_begins_with_one_that_is_not_timed() -> None:
    class Cold(Machine):
        def candidate(self, name: str, seconds: float, active: Any = None) -> Candidate:
            def call() -> None:
                others = [entry for entry in self.log[-1:] if entry != name]
                self.log.append(name)
                self.now += seconds * (5 if others else 1)  # another candidate ran before: the caches are cold

            return Candidate(call, nullcontext)

    machine = Cold()
    taken = machine.take({"a": machine.candidate("a", 0.01), "b": machine.candidate("b", 0.01)})
    assert taken.seconds["a"] == pytest.approx([0.01] * 10)


def test_long_calls_are_not_doubled_for_warm_caches() -> None:
    machine = Machine()
    machine.take({"a": machine.candidate("a", 0.2)}, warmup=1, rounds=5)
    assert len(machine.log) == 1 + 5


def test_the_budget_ends_it_but_not_before_the_least_rounds() -> None:
    machine = Machine()
    taken = machine.take({"a": machine.candidate("a", 1.0)}, rounds=100, budget_s=20.0, warmup=1)
    assert taken.out_of_time
    assert len(taken.seconds["a"]) == 20
    machine = Machine()
    taken = machine.take({"a": machine.candidate("a", 10.0)}, rounds=100, budget_s=20.0, warmup=1)
    assert len(taken.seconds["a"]) == LEAST_ROUNDS


def test_warming_up_takes_at_most_its_share_of_the_budget() -> None:
    machine = Machine()
    taken = machine.take({"a": machine.candidate("a", 1.0)}, warmup=1000, budget_s=20.0)
    assert taken.warmup["a"] == 5


def test_fewer_rounds_than_the_least_are_made_as_asked() -> None:
    machine = Machine()
    taken = machine.take({"a": machine.candidate("a", 1.0)}, rounds=2, budget_s=0.1)
    assert len(taken.seconds["a"]) == 2
    assert not taken.out_of_time


def test_calls_run_in_the_context_of_their_candidate_alone() -> None:
    machine, entered = Machine(), []

    class Setting(AbstractContextManager[None]):
        def __init__(self, name: str) -> None:
            self.name = name

        def __enter__(self) -> None:
            entered.append(self.name)

        def __exit__(self, *exc: object) -> None:
            entered.remove(self.name)

    def checked(name: str) -> Candidate:
        def call() -> None:
            assert entered == [name]
            machine.now += 0.01

        return Candidate(call, lambda: Setting(name))

    machine.take({"a": checked("a"), "b": checked("b")})
    assert entered == []


def test_the_collector_rests_and_is_on_again_afterwards_even_after_an_error() -> None:
    states = []

    def fails() -> None:
        states.append(gc.isenabled())
        raise RuntimeError("boom")

    assert gc.isenabled()
    with pytest.raises(RuntimeError, match="boom"):
        Machine().take({"a": Candidate(fails, nullcontext)})
    assert states == [False]
    assert gc.isenabled()


def test_a_machine_that_slows_down_spoils_one_pass_but_not_interleaved_rounds() -> None:
    def throttles(now: float) -> float:
        return 1.0 if now < 1.0 else 1.5

    together = Machine(throttles)
    taken = together.take({"a": together.candidate("a", 0.01), "b": together.candidate("b", 0.008)}, rounds=60)
    ratios = np.array(taken.seconds["b"]) / np.array(taken.seconds["a"])
    assert np.median(ratios) == pytest.approx(0.8)

    apart = Machine(throttles)
    first = apart.take({"a": apart.candidate("a", 0.01)}, rounds=60)
    second = apart.take({"b": apart.candidate("b", 0.008)}, rounds=60)
    # b, which is faster, is measured as slower
    assert np.median(second.seconds["b"]) / np.median(first.seconds["a"]) == pytest.approx(1.2)


def test_progress_is_told_of_every_round() -> None:
    machine, told = Machine(), []
    machine.take({"a": machine.candidate("a", 0.01)}, rounds=7, on_round=lambda: told.append(machine.now))
    assert len(told) == 7
