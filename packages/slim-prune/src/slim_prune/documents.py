"""JSON files of this package: plans, curves, results of a search. Not here: what stands in them."""

from __future__ import annotations

import json
import os
from typing import Any

from slim_core import files
from slim_prune.errors import PlanError


def save_json(path: str | os.PathLike[str], data: Any, what: str) -> None:
    """Write ``data`` to ``path``; a kill leaves the old file or the new one.

    Args:
        path: the file.
        data: JSON values.
        what: what it is, for errors: ``"the plan"``.

    Raises:
        PlanError: the folder of ``path`` is not there, or the file cannot be written.
    """
    files.require_folder(path, PlanError)
    try:
        files.write_json(path, data)
    except OSError as error:
        raise PlanError(f"{what} cannot be written: {error.strerror or error}", where=os.fspath(path)) from error


def load_json(path: str | os.PathLike[str], what: str, *, most: int, missing: str, hint: str) -> Any:
    """Read a JSON file that :func:`save_json` may have written.

    Args:
        path: the file.
        what: what it should be, for errors: ``"the plan"``.
        most: bytes that it may have.
        missing: what to do when it cannot be opened.
        hint: what to do when it is none.

    Raises:
        PlanError: it cannot be opened, is too large, or is not JSON.
    """
    where = os.fspath(path)
    try:
        with open(path, "rb") as file:
            raw = file.read(most + 1)
    except OSError as error:
        raise PlanError(f"{what} cannot be read: {error.strerror or error}", where=where, hint=missing) from None
    if len(raw) > most:
        raise PlanError(f"{what} cannot be read: it is larger than {most >> 20} MB", where=where, hint=hint)
    try:
        return json.loads(raw.decode("utf-8"))
    except ValueError as error:
        raise PlanError(f"{what} cannot be read: {error}", where=where, hint=hint) from None
    except RecursionError:
        raise PlanError(f"{what} cannot be read: it is nested too deeply", where=where, hint=hint) from None
