"""Writing files so that a kill leaves the old file or the new one, never a torn one."""

from __future__ import annotations

import json
import os
import secrets
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from slim_core.errors import OutputFolderError, SlimError

STAGING_SUFFIX = ".slim-tmp"


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a staging path beside ``path``; on success it is fsynced and renamed over ``path``.

    On an exception the staging file is removed and ``path`` is as it was. Staging files that a killed
    process left behind for the same target are swept when their process no longer lives.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    _sweep(target)
    # Two threads may write to one target: each has a file of its own, and the last to finish wins.
    staging = target.parent / f".{target.name}.{secrets.token_hex(8)}.{os.getpid()}{STAGING_SUFFIX}"
    try:
        yield staging
        with open(staging, "rb+") as handle:
            os.fchmod(handle.fileno(), 0o666 & ~_umask())
            os.fsync(handle.fileno())
        os.replace(staging, target)
        _fsync_folder(target.parent)
    finally:
        staging.unlink(missing_ok=True)


def require_folder(path: str | os.PathLike[str], error: type[SlimError] = OutputFolderError) -> None:
    """Check that the folder of a file that a user named is there: a slip of the pen must not make folders.

    Args:
        path: the file that is to be written.
        error: what to raise.

    Raises:
        SlimError: ``error``: the folder is missing, or is no folder.
    """
    folder = Path(path).parent
    if os.path.isdir(folder):
        return
    there = os.path.lexists(folder)
    raise error(
        f"the file cannot be written: '{folder}' is no folder"
        if there
        else f"the file cannot be written: there is no folder '{folder}'",
        where=os.fspath(path),
        hint=None if there else f"check the path, or create the folder: mkdir -p {shlex.quote(str(folder))}",
    )


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write ``data`` to ``path`` atomically."""
    with atomic_path(path) as staging:
        staging.write_bytes(data)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` to ``path`` as UTF-8, atomically."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | os.PathLike[str], data: Any) -> None:
    """Write ``data`` as readable JSON (sorted keys, no NaN) to ``path``, atomically."""
    write_text(path, json.dumps(data, indent=2, sort_keys=True, allow_nan=False) + "\n")


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sweep(target: Path) -> None:
    for stray in target.parent.glob(f".{target.name}.*{STAGING_SUFFIX}"):
        pid = stray.name.removesuffix(STAGING_SUFFIX).rsplit(".", 1)[-1]
        if pid.isdigit() and int(pid) != os.getpid() and not Path(f"/proc/{pid}").exists():
            stray.unlink(missing_ok=True)
