"""Worker processes on this machine: each measures a part of the points and writes a file of its own.

A worker is a fresh interpreter (``spawn``), so that threads and accelerators work in it; model, task and data are sent
to it once. One that dies is started again, and goes on where it stopped. Workers end when their parent does.
"""

from __future__ import annotations

import multiprocessing
import tempfile
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
from slim_prune.processes import begin, loaded_files, packed
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
class _Worker:
    errand: Errand
    process: Any
    pipe: Connection
    tries: int = 1


def measure_in_processes(
    job: Job,
    data: Samples,
    identity: Mapping[str, Any],
    keys: Sequence[Key],
    folder: Path | None,
    part: Shard,
    workers: int,
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
            notes = _oversee(errands, track)
        store.reload()
        return store.base, dict(store.points), notes


def _oversee(errands: Sequence[Errand], track: Track) -> list[str]:
    """Start a process for each errand and wait for all of them."""
    running: list[_Worker] = []
    notes: dict[str, None] = {}
    try:
        running += [_start(errand) for errand in errands]
        while running:
            ready = set(wait([worker.pipe for worker in running]))
            for worker in [worker for worker in running if worker.pipe in ready]:
                try:
                    kind, told = worker.pipe.recv()
                except (EOFError, OSError):
                    running.remove(worker)
                    running.append(_again(worker))
                    continue
                if kind == "advance":
                    track.advance(told)
                elif kind == "done":
                    notes |= dict.fromkeys(told)
                    running.remove(worker)
                    _end(worker)
                else:
                    raise told
    finally:
        for worker in running:
            worker.process.kill()
            _end(worker)
    return list(notes)


def _start(errand: Errand, tries: int = 1) -> _Worker:
    payload = packed(errand, instead="start several processes with --shard")
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, loaded_files()), name="slim-sensitivity")
    process.start()
    theirs.close()
    with suppress(OSError):  # it died: reading finds out
        ours.send_bytes(payload)
    return _Worker(errand, process, ours, tries)


def _again(worker: _Worker) -> _Worker:
    _end(worker)
    if worker.tries > _RETRIES:
        raise PlanError(
            f"a worker process ended {worker.tries} times before its points were measured (exit status "
            f"{worker.process.exitcode})",
            where="workers",
            hint="a script that measures with workers must do so below `if __name__ == '__main__':`; "
            "look for lack of memory, or set workers to 1",
        )
    return _start(worker.errand, worker.tries + 1)


def _end(worker: _Worker) -> None:
    worker.pipe.close()
    worker.process.join()


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
            "to 1",
        )
    with Store(errand.folder, errand.identity, errand.part, errand.worker) as store:
        engine = errand.job.engine(data)
        engine.remember(errand.base)
        missing = [key for key in errand.keys if key not in store.points]
        for points in engine.measure(missing, advance):
            store.add(points)
    return engine.notes
