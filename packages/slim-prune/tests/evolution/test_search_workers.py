"""Scoring in worker processes: results, deaths, time-outs, and what is left behind (nothing)."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import search_scorers as scorers
import torch

from slim_core.errors import DataError
from slim_prune.errors import PlanError
from slim_prune.evolution.workers import Here, Processes


def processes(scorer, **kwargs):
    return Processes(scorer, **{"workers": 2, "threads": 1, "timeout": 60.0, "retries": 2, **kwargs})


def outcomes(executor, numbers):
    found, numbers, most = {}, list(numbers), 0
    try:
        while numbers or len(found) < most:
            while numbers and executor.free:
                executor.submit(numbers[0], numbers.pop(0))
                most += 1
            key, outcome = executor.next()
            assert key not in found
            found[key] = outcome
    finally:
        executor.close()
    return found


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def until(condition, seconds=10.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def test_every_candidate_is_scored_once_and_a_kill_from_outside_does_no_harm() -> None:
    executor = processes(scorers.Double())
    executor.submit(100, 100)
    assert executor.next()[1].figures["score"] == 200.0
    (first, *_) = executor.pids
    assert os.getpgid(first) == first != os.getpgrp(), "a process group of its own"
    os.kill(first, signal.SIGKILL)
    found = outcomes(executor, range(12))
    assert {key: outcome.figures["score"] for key, outcome in found.items()} == {n: 2.0 * n for n in range(12)}
    pids = {int(outcome.figures["pid"]) for outcome in found.values()}
    assert pids.isdisjoint({os.getpid(), first})
    assert {outcome.figures["threads"] for outcome in found.values()} == {1.0}
    assert all(outcome.error is None for outcome in found.values())
    assert until(lambda: all(gone(pid) for pid in (first, *pids)))


@pytest.mark.slow
def test_a_killed_worker_costs_one_attempt_and_a_candidate_that_kills_each_is_given_up_on(tmp_path) -> None:
    scorer = scorers.DiesOnce(tmp_path, numbers=(2,), always=(1,))
    found = outcomes(processes(scorer, workers=1, retries=1), range(4))
    assert {key: outcome.attempts for key, outcome in found.items()} == {0: 1, 1: 2, 2: 2, 3: 1}
    assert [found[n].figures["score"] for n in (0, 2, 3)] == [0.0, 4.0, 6.0]
    assert found[1].error == "its worker was killed (exit status -9)"
    assert found[1].figures == {}


def test_a_worker_that_takes_too_long_is_ended_with_everything_that_it_started(tmp_path) -> None:
    found = outcomes(processes(scorers.Sleeps(tmp_path), workers=1, timeout=4, retries=0), range(3))
    assert found[1].error == "its worker took more than 4 s"
    assert [found[n].figures["score"] for n in (0, 2)] == [0.0, 4.0]
    child = int((tmp_path / "child").read_text())
    assert until(lambda: gone(child))


@pytest.mark.parametrize("where", ["here", "worker"])
def test_what_a_scorer_raises_comes_back_as_words_and_its_own_errors_whole(where) -> None:
    scorer = scorers.Fails()
    found = outcomes(processes(scorer, workers=1) if where == "worker" else Here(scorer), range(5))
    assert [key for key, outcome in sorted(found.items()) if outcome.error] == [1, 3]
    assert found[1].error == "ValueError: odd"
    assert found[3].error == "odder"
    assert isinstance(found[3].fault, DataError)
    assert found[3].fault.hint == "even"


def test_workers_that_never_get_ready_are_an_error_not_a_loop() -> None:
    with pytest.raises(PlanError, match=r"end before they are ready \(exit status 3\)") as caught:
        outcomes(processes(scorers.DiesWhenUnpacked(), workers=1, retries=0), range(2))
    assert "__main__" in caught.value.hint


def test_what_cannot_be_sent_or_unpacked_is_an_error_that_says_so() -> None:
    with pytest.raises(PlanError, match="cannot be sent to worker processes"):
        processes(lambda edits: {})
    with pytest.raises(PlanError, match="cannot take the model or its data: ImportError: no module named nowhere"):
        outcomes(processes(scorers.Unknown(), workers=1), range(2))


def test_tensors_travel_by_value_with_ties_types_and_strides() -> None:
    scorer = scorers.Holds()
    before = len(os.listdir("/proc/self/fd"))
    figures = outcomes(processes(scorer, workers=1), range(1))[0].figures
    assert figures == {
        "sum": 15.0, "tied": 1.0, "trains": 1.0, "half": 3.0, "flag": 1.0, "turned": 5.0, "shared": 0.0
    }  # fmt: skip
    assert not scorer.weight.is_shared(), "the caller's own tensors stay where they are"
    assert len(os.listdir("/proc/self/fd")) <= before


def test_scoring_here_uses_the_asked_threads_and_gives_them_back() -> None:
    before = torch.get_num_threads()
    found = outcomes(Here(scorers.Double(), threads=before + 1), range(1))
    assert found[0].figures["threads"] == before + 1
    assert torch.get_num_threads() == before
