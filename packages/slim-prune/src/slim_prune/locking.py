"""One process at a time: locks on the files and folders that hold state to be resumed.

The system frees the lock of a process that ends, however it ends. Not here: what the files hold.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from slim_prune.errors import PlanError

_LOCK = ".lock"


def lock(file: int, path: Path, what: str, hint: str = "wait for it, or end it") -> None:
    """Hold a lock on an open file until it is closed.

    Args:
        file: its descriptor.
        path: where it is, for the error.
        what: what another process that has the lock is doing: ``"another process is …"``.
        hint: what to do then.

    Raises:
        PlanError: another process has it.
    """
    try:
        import fcntl
    except ImportError:  # no such locks on this system: two processes are then not noticed
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise PlanError(f"another process is {what}", where=str(path), hint=hint) from None


@contextmanager
def owned(folder: Path | None, what: str) -> Iterator[None]:
    """Be the only process that works in a folder, inside of the block; ``None``: there is none.

    Raises:
        PlanError: another process works there.
    """
    if folder is None:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    file = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
    try:
        lock(file, folder, what, "wait for it, or choose another folder")
        yield
    finally:
        os.close(file)
