"""Where candidates are scored: in this process, or in spawned worker processes that may die.

A worker gets the scoring once, then one candidate at a time. One that is killed or takes too long costs one attempt,
which is made again by a new worker. How workers begin and end: ``processes.py``.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Protocol

import torch

from slim_core.errors import SlimError
from slim_prune.edits import Edits
from slim_prune.errors import PlanError
from slim_prune.processes import START_S, Worker, begin, packed, start

Figures = Mapping[str, float | None]
Scorer = Callable[[Edits], Figures]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one candidate.

    Args:
        figures: its figures; empty where it failed.
        seconds: how long the last attempt took.
        error: why it failed, or ``None``.
        attempts: how often it was tried.
        fault: the error itself, where it can be raised.
    """

    figures: Figures
    seconds: float
    error: str | None = None
    attempts: int = 1
    fault: BaseException | None = None


class Executor(Protocol):
    """Scores candidates, several at a time."""

    @property
    def free(self) -> bool:
        """Whether another candidate can be taken."""

    def submit(self, key: int, edits: Edits) -> None:
        """Take a candidate."""

    def next(self) -> tuple[int, Outcome]:
        """Wait for a candidate that was taken, and return its key and outcome."""

    def close(self) -> None:
        """End everything that runs."""


class Here:
    """Scores in this process, one after the other.

    Args:
        scorer: what scores.
        threads: PyTorch threads meanwhile; ``None``: as they are.
    """

    def __init__(self, scorer: Scorer, threads: int | None = None) -> None:
        self._scorer, self._threads = scorer, threads
        self._waiting: deque[tuple[int, Edits]] = deque()

    @property
    def free(self) -> bool:
        return not self._waiting

    def submit(self, key: int, edits: Edits) -> None:
        self._waiting.append((key, edits))

    def next(self) -> tuple[int, Outcome]:
        key, edits = self._waiting.popleft()
        began = time.perf_counter()
        with _threads(self._threads):
            try:
                return key, Outcome(self._scorer(edits), time.perf_counter() - began)
            except Exception as error:  # noqa: BLE001 - a candidate that cannot be scored is a bad one
                return key, Outcome({}, time.perf_counter() - began, _said(error), fault=error)

    def close(self) -> None:
        self._waiting.clear()


@dataclass(eq=False)
class _Worker(Worker):
    key: int | None = None


class Processes:
    """Scores in spawned processes.

    Args:
        scorer: what scores; it is pickled once.
        workers: how many processes, at least 1.
        threads: PyTorch threads of each.
        timeout: seconds that one attempt may take.
        retries: how often a candidate is tried again when its worker died or took too long.

    Raises:
        PlanError: the scorer cannot be sent to another process.
    """

    def __init__(self, scorer: Scorer, *, workers: int, threads: int, timeout: float, retries: int) -> None:
        self._payload = packed((scorer, threads))
        self._count, self._timeout, self._retries = workers, timeout, retries
        self._workers: list[_Worker] = []
        self._waiting: deque[int] = deque()
        self._edits: dict[int, Edits] = {}
        self._attempts: dict[int, int] = {}
        self._starts = 0

    @property
    def free(self) -> bool:
        return len(self._edits) < self._count

    @property
    def pids(self) -> list[int]:
        """The process ids of the workers."""
        return [worker.process.pid for worker in self._workers]

    def submit(self, key: int, edits: Edits) -> None:
        self._edits[key] = edits
        self._attempts[key] = 0
        self._waiting.append(key)
        self._hand_out()

    def next(self) -> tuple[int, Outcome]:
        while True:
            self._hand_out()
            for worker in self._ready_or_late():
                outcome = self._read(worker)
                if outcome is not None:
                    return outcome

    def close(self) -> None:
        for worker in self._workers:
            worker.end()
        self._workers.clear()

    def _hand_out(self) -> None:
        """Start workers while there is more to do than there are, and give each idle one a candidate."""
        idle = [worker for worker in self._workers if worker.key is None]
        while len(self._workers) < self._count and len(idle) < len(self._waiting):
            idle.append(self._start())
        for worker in idle:
            if worker.ready and self._waiting:
                key = self._waiting.popleft()
                worker.key, worker.since = key, time.monotonic()
                self._attempts[key] += 1
                with suppress(OSError):  # it died meanwhile: reading finds out
                    worker.pipe.send((key, self._edits[key]))

    def _ready_or_late(self) -> Iterator[_Worker]:
        now = time.monotonic()
        ends = {id(w): w.since + (self._timeout if w.ready else START_S) for w in self._workers if _busy(w)}
        left = max(0.0, min(ends.values(), default=now + 1) - now)
        ready = set(wait([worker.pipe for worker in self._workers], timeout=min(left, 60.0)))
        now = time.monotonic()
        for worker in list(self._workers):
            if worker.pipe in ready:
                yield worker
            elif id(worker) in ends and now >= ends[id(worker)]:
                worker.end()  # reading then finds the end of the pipe
                yield worker

    def _read(self, worker: _Worker) -> tuple[int, Outcome] | None:
        try:
            kind, *rest = worker.pipe.recv()
        except (EOFError, OSError):
            return self._lost(worker)
        if kind == "hello":
            with suppress(OSError):
                worker.pipe.send_bytes(self._payload)
            return None
        if kind == "unfit":
            self._workers.remove(worker)
            worker.end()
            raise PlanError(
                f"a worker process cannot take the model or its data: {rest[0]}",
                hint="define the model's classes in a module that can be imported, or set workers to 0",
            )
        self._starts = 0
        if kind == "ready":
            worker.ready, worker.since = True, time.monotonic()
            return None
        key, figures, seconds, error, fault = rest
        worker.key = None
        del self._edits[key]
        return key, Outcome(figures, seconds, error, self._attempts.pop(key), fault)

    def _lost(self, worker: _Worker) -> tuple[int, Outcome] | None:
        self._workers.remove(worker)
        took = time.monotonic() - worker.since
        worker.end()
        code, key = worker.code, worker.key
        if key is None:
            self._starts += 1
            if not worker.ready and self._starts > self._retries:
                raise PlanError(
                    f"worker processes end before they are ready (exit status {code})",
                    where="workers",
                    hint="a script that searches with workers must do so below `if __name__ == '__main__':`; "
                    "or set workers to 0",
                )
            return None
        if self._attempts[key] <= self._retries:
            self._waiting.appendleft(key)
            return None
        why = f"took more than {self._timeout:g} s" if took >= self._timeout else f"was killed (exit status {code})"
        del self._edits[key]
        return key, Outcome({}, took, f"its worker {why}", self._attempts.pop(key))

    def _start(self) -> _Worker:
        begun = start(_serve, "slim-search")
        worker = _Worker(begun.process, begun.pipe, begun.since)
        self._workers.append(worker)
        return worker


def _busy(worker: _Worker) -> bool:
    return worker.key is not None or not worker.ready


def _serve(pipe: Connection, files: Mapping[str, str]) -> None:
    """The life of a worker."""
    begin(files)
    with suppress(EOFError, OSError):
        pipe.send(("hello",))
        try:
            scorer, threads = pipe.recv()
        except EOFError:
            return
        except Exception as error:  # noqa: BLE001 - unpickling runs the user's imports
            pipe.send(("unfit", _said(error)))
            return
        torch.set_num_threads(threads)
        pipe.send(("ready",))
        while True:
            key, edits = pipe.recv()
            _, outcome = _score(scorer, key, edits)
            pipe.send(("done", key, outcome.figures, outcome.seconds, outcome.error, outcome.fault))


def _score(scorer: Scorer, key: int, edits: Edits) -> tuple[int, Outcome]:
    here = Here(scorer)
    here.submit(key, edits)
    key, outcome = here.next()
    fault = outcome.fault if isinstance(outcome.fault, SlimError) else None  # others may not survive the journey
    return key, Outcome(outcome.figures, outcome.seconds, outcome.error, fault=fault)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count is None or count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _said(error: BaseException) -> str:
    return error.what if isinstance(error, SlimError) else f"{type(error).__name__}: {error}"
