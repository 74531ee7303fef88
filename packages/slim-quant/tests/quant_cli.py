"""How the tests of the command line run ``slim``: in this process, or as a process in a group of its own."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from slim_core.cli.main import run
from slim_core.cli.output import Output

KWARGS = '{"width": 0.25}'
DATA_KWARGS = '{"size": 16, "limit": 320, "batch_size": 64}'
MODEL = ("--model", "zoo/resnet20", "--kwargs", KWARGS)
DATA = ("--data", "digits", "--data-kwargs", DATA_KWARGS)


def slim(*arguments: object, format: str = "human") -> tuple[int, str, str]:
    """Run a command in this process; return status, standard output and standard error."""
    out, err = io.StringIO(), io.StringIO()
    status = run([str(argument) for argument in arguments], output=Output(format, stdout=out, stderr=err))
    return status, out.getvalue(), err.getvalue()


@dataclass
class Done:
    """A process that ended."""

    status: int
    out: str
    err: str


def started(*arguments: object, cwd: Path, **env: str) -> subprocess.Popen[str]:
    """Start ``slim`` as a process that leads a group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "slim_core", *(str(argument) for argument in arguments)],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        restore_signals=True,
    )


def process(*arguments: object, cwd: Path, timeout: float = 120, **env: str) -> Done:
    """Run ``slim`` as a process; it and all that it started are gone afterwards."""
    child = started(*arguments, cwd=cwd, **env)
    return ended(child, timeout)


def ended(child: subprocess.Popen[str], timeout: float = 120) -> Done:
    """Wait for a process; kill its group where that takes too long."""
    try:
        out, err = child.communicate(timeout=timeout)
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    return Done(child.returncode, out, err)
