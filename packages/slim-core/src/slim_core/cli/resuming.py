"""Ctrl-C in a command whose work resumes: one line that says how. Where nothing resumes, ``main`` catches it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from slim_core.errors import Interrupted

_ANEW = ("--overwrite", "--fresh")  # these begin anew


def this_command() -> str:
    """Return the command line that started this process, without what would begin anew."""
    return shlex.join(["slim", *(argument for argument in sys.argv[1:] if argument not in _ANEW)])


@contextmanager
def resumable(kept: str) -> Iterator[None]:
    """Turn Ctrl-C inside the block into one line that says what is kept and how to go on.

    Args:
        kept: what an interruption leaves behind: ``"the measured points are in curves.json.points"``.

    Raises:
        Interrupted: the user pressed Ctrl-C.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(f"stopped; {kept}", hint=f"to resume: {this_command()}") from None
