"""Worker processes on this machine: each measures a part of the points and writes a file of its own.

Model, task and data are sent to a worker once. One that dies, or says nothing for too long, is started again, and goes
on where it stopped. How workers begin and end: ``processes.py``.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from slim_core.errors import SlimError
from slim_core.progress import Progress, Track
from slim_prune.errors import PlanError
from slim_prune.processes import START_S, Worker, begin, packed, start
from slim_prune.sensitivity.curves import Base, Point
from slim_prune.sensitivity.samples import Samples
from slim_prune.sensitivity.shards import Shard, share_of
from slim_prune.sensitivity.store import Store

if TYPE_CHECKING:
    from slim_prune.sensitivity.analysis import Job

Key = tuple[str, int]
_RETRIES = 2


@dataclass(frozen=True)
class Errand:
    """What one worker is told."""

    job: Job
    identity: Mapping[str, Any]
    keys: tuple[Key, ...]
    folder: Path
    part: Shard
    worker: int
    base: Base
    threads: int


@dataclass(eq=False)
class _Running:
    """A worker at work, and what it was told."""

    errand: Errand
    payload: bytes
    worker: Worker
    timeout: float
    tries: int = 1
    late: bool = False

    @property
    def ends(self) -> float:
        """When it will have been silent for too long."""
        return self.worker.since + (self.timeout if self.worker.ready else START_S)


def measure_in_processes(
    job: Job,
    data: Samples,
    identity: Mapping[str, Any],
    keys: Sequence[Key],
    folder: Path | None,
    part: Shard,
    workers: int,
    timeout: float,
    progress: Progress,
) -> tuple[Base, dict[Key, Point], list[str]]:
    """Measure ``keys`` with ``workers`` processes; returns the whole model, all points that are known, and notes.

    Raises:
        PlanError: the model or its data cannot be sent to another process, or workers keep dying.
    """
    with ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slim-sensitivity-")))
        store = stack.enter_context(Store(folder, identity, part))
        missing = [key for key in keys if key not in store.points]
        if len(missing) < len(keys):
            progress.note(f"sensitivity: {len(keys) - len(missing)} of {len(keys)} points are there already")
        if store.base is None:
            store.add_base(job.engine(data).base())
        assert store.base is not None  # noqa: S101  just added
        threads = max(1, torch.get_num_threads() // workers)
        errands = [
            Errand(job, identity, tuple(share), folder, part, number, store.base, threads)
            for number in range(1, workers + 1)
            if (share := share_of(missing, job.coupling, (number, workers)))
        ]
        with progress.track("sensitivity", len(missing)) as track:
            notes = _oversee(errands, timeout, track)
        store.reload()
        return store.base, dict(store.points), notes


def _oversee(errands: Sequence[Errand], timeout: float, track: Track) -> list[str]:
    """Start a process for each errand and wait for all of them."""
    running: list[_Running] = []
    notes: dict[str, None] = {}
    payloads = [packed(errand, instead="start several processes with --shard") for errand in errands]
    try:
        for errand, payload in zip(errands, payloads, strict=True):
            running.append(_begun(errand, payload, timeout))
        while running:
            for item in _ready_or_late(running):
                told = _heard(item)
                if told is None:
                    running.remove(item)
                    running.append(_again(item))
                    continue
                kind, value = told
                if kind == "hello":
                    with suppress(OSError):  # it died meanwhile: reading finds out
                        item.worker.pipe.send_bytes(item.payload)
                        item.worker.ready = True
                elif kind == "advance":
                    track.advance(value)
                elif kind == "done":
                    notes |= dict.fromkeys(value)
                    running.remove(item)
                    item.worker.end()
                else:
                    raise value
                item.worker.since = time.monotonic()
    finally:
        for item in running:
            item.worker.end()
    return list(notes)


def _ready_or_late(running: Sequence[_Running]) -> list[_Running]:
    """Wait until workers say something, or one has been silent for too long."""
    left = max(0.0, min(item.ends for item in running) - time.monotonic())
    ready = set(wait([item.worker.pipe for item in running], timeout=min(left, 60.0)))
    now = time.monotonic()
    found = []
    for item in running:
        item.late = item.worker.pipe not in ready and now >= item.ends
        if item.late or item.worker.pipe in ready:
            found.append(item)
    return found


def _heard(item: _Running) -> tuple[str, Any] | None:
    """Return what a worker says; ``None``: it is lost."""
    if item.late:
        return None
    try:
        kind, value = item.worker.pipe.recv()
    except (EOFError, OSError):
        return None
    return kind, value


def _begun(errand: Errand, payload: bytes, timeout: float, tries: int = 1) -> _Running:
    return _Running(errand, payload, start(_serve, "slim-sensitivity"), timeout, tries)


def _again(item: _Running) -> _Running:
    """Give a lost worker's errand to a new one."""
    item.worker.end()
    if item.tries > _RETRIES:
        why = f"was silent for {item.timeout:g} s" if item.late else "ended"
        raise PlanError(
            f"a worker process {why} {item.tries} times before its points were measured (exit status "
            f"{item.worker.code})",
            where="workers",
            hint="a script that measures with workers must do so below `if __name__ == '__main__':`; "
            "look for lack of memory, raise timeout where batches take long, or set workers to 0",
        )
    return _begun(item.errand, item.payload, item.timeout, item.tries + 1)


class _Telling:
    """Tells the parent how far one is."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def __call__(self, amount: float) -> None:
        self._pipe.send(("advance", amount))


def _serve(pipe: Connection, files: Mapping[str, str]) -> None:
    """The life of a worker."""
    begin(files)
    with suppress(EOFError, OSError):
        pipe.send(("hello", None))
        try:
            errand: Errand = pipe.recv()
            torch.set_num_threads(errand.threads)
            pipe.send(("done", _measure(errand, _Telling(pipe))))
        except (EOFError, OSError):
            raise
        except SlimError as error:
            pipe.send(("error", error))
        except Exception as error:  # noqa: BLE001  whatever a user's model raises: the parent says it
            pipe.send(("error", PlanError(f"a worker process failed: {type(error).__name__}: {error}")))


def _measure(errand: Errand, advance: _Telling) -> list[str]:
    data = errand.job.read()
    if data.identity != errand.identity["data"]:
        raise PlanError(
            "a worker process read other samples than its parent, or the same ones in another order",
            where="workers",
            hint="give data that come the same way each time (shuffle=False, no random augmentation), or set workers "
            "to 0",
        )
    with Store(errand.folder, errand.identity, errand.part, errand.worker) as store:
        engine = errand.job.engine(data)
        engine.remember(errand.base)
        missing = [key for key in errand.keys if key not in store.points]
        for points in engine.measure(missing, advance):
            store.add(points)
    return engine.notes
