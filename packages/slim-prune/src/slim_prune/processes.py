"""What worker processes of this package share: what is sent to them, and how they begin and end.

A worker is a fresh interpreter (``spawn``) in a process group of its own, so that whatever it starts ends with it. Its
first word is ``("hello",)``: only then is it sent anything large, so that workers start side by side. Not here: what is
handed out to whom (``evolution/workers.py``, ``sensitivity/workers.py``).
"""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch

from slim_core.errors import SlimError
from slim_prune.errors import PlanError


def begin(files: Mapping[str, str]) -> None:
    """Make this process a worker: it finds the project's own modules, ignores Ctrl-C, and ends when its parent does.

    It leads a process group of its own, which ends with it.

    Args:
        files: what :func:`loaded_files` returned in the parent.
    """
    os.setpgid(0, 0)
    sys.meta_path.append(_LoadedFiles(files))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()


@dataclass(eq=False)
class Worker:
    """A worker process as its parent sees it.

    Args:
        process: the process.
        pipe: to it and from it.
        since: when it last gave a sign of life or was given something to do, by ``time.monotonic()``.
        ready: whether it was sent what it needs.
    """

    process: Any
    pipe: Connection
    since: float
    ready: bool = False

    @property
    def code(self) -> int | None:
        """The exit status of one that ended."""
        code: int | None = self.process.exitcode
        return code

    def end(self) -> None:
        """End it and everything in its process group, and wait for it."""
        self.pipe.close()
        pid = self.process.pid
        with suppress(ChildProcessError, ProcessLookupError, PermissionError):
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)  # not waited for yet: the id is its own
            os.killpg(pid, signal.SIGKILL)
        if self.process.is_alive():
            self.process.kill()
        self.process.join()


def start(serve: Callable[[Connection, Mapping[str, str]], None], name: str) -> Worker:
    """Start a worker.

    Args:
        serve: its life, a function of a module; gets the pipe and the files for :func:`begin`.
        name: of the process.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, loaded_files()), name=name)
    process.start()
    theirs.close()
    return Worker(process, ours, time.monotonic())


class _ByValue(ForkingPickler):
    """Pickles tensors by their values. PyTorch's own way shares memory through one open file per tensor."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor | torch.UntypedStorage | torch.TypedStorage):
            return value.__reduce_ex__(2)
        return NotImplemented


def packed(value: Any, *, instead: str = "set workers to 0") -> bytes:
    """Return ``value`` as bytes for a worker, tensors by their values.

    Args:
        value: what is sent.
        instead: what a user can do about a value that cannot be sent, for the error.

    Raises:
        PlanError: it cannot be sent to another process.
    """
    buffer = io.BytesIO()
    try:
        _ByValue(buffer, 4).dump(value)
    except Exception as error:  # pickling runs the user's code, and says "no" in many ways
        said = error.what if isinstance(error, SlimError) else f"{type(error).__name__}: {error}"
        raise PlanError(
            f"the model or its data cannot be sent to worker processes: {said}",
            where="workers",
            hint=f"define classes and functions at the top of a module, or {instead}",
        ) from error
    return buffer.getvalue()


class _LoadedFiles:
    """Finds the modules of a project's own files, which stand in no folder that imports look into."""

    def __init__(self, files: Mapping[str, str]) -> None:
        self._files = files

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return spec_from_file_location(name, self._files[name]) if name in self._files else None


def loaded_files() -> dict[str, str]:
    """Return the files that were loaded as plugins under names of their own (``--load``), by module name."""
    modules = {name: module for name, module in sys.modules.items() if name.startswith("slim_project_")}
    return {name: module.__file__ for name, module in modules.items() if module.__file__}


#: seconds that a worker may take to start: it imports PyTorch and the user's modules
START_S = 300.0


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        if os.getpgid(0) == os.getpid():
            os.killpg(0, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
