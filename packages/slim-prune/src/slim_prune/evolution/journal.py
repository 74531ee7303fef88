"""The search's memory: one line of JSON per scored candidate, written and synced before the next thing happens.

A killed search leaves whole lines and perhaps one torn one at the end, which is dropped. A search that starts again
asks the same questions and finds the answers here. Not here: what the answers mean (``driver.py``).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slim_prune.errors import PlanError
from slim_prune.locking import lock

NAME = "search.jsonl"
FORMAT, VERSION = "slim-prune.search", 1
#: A result is some hundred bytes for each group; nothing larger than this is read.
MAX_BYTES = 256 << 20


class Journal:
    """An append-only file of results, owned by one process at a time.

    Args:
        folder: where it lies; it is made. ``None``: nothing is kept.
        identity: what the results depend on, as JSON values by name; an older journal must have the same.

    Raises:
        PlanError: the journal is another search's or damaged, or another process is writing to it.
    """

    def __init__(self, folder: Path | None, identity: Mapping[str, Any]) -> None:
        self.path = folder / NAME if folder is not None else None
        #: results of an earlier run by searcher and trial
        self.known: dict[tuple[str, int], dict[str, Any]] = {}
        self._file: int | None = None
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            lock(self._file, self.path, "searching with this journal")
            self._open(json.loads(json.dumps(identity)))
        except BaseException:
            self.close()
            raise

    def append(self, by: str, trial: int, result: Mapping[str, Any]) -> None:
        """Write one result; it is on the disk when this returns."""
        self._write({"by": by, "trial": trial, **result})

    def close(self) -> None:
        """Give the file back."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _open(self, identity: dict[str, Any]) -> None:
        assert self._file is not None  # noqa: S101
        size = os.fstat(self._file).st_size
        if size > MAX_BYTES:
            raise PlanError(
                f"the journal is larger than {MAX_BYTES >> 20} MB", where=str(self.path), hint="choose another folder"
            )
        data = os.pread(self._file, size, 0)
        whole = data.rfind(b"\n") + 1
        lines = data[:whole].splitlines()
        if not lines:
            os.ftruncate(self._file, 0)
            self._write({"format": FORMAT, "version": VERSION, "identity": identity})
            return
        rows = [self._read(number, line) for number, line in enumerate(lines, 1)]
        self._check(rows[0], identity)
        for number, row in enumerate(rows[1:], 2):
            if not _is_result(row):
                raise self._damaged(number)
            self.known[row["by"], row["trial"]] = row
        os.ftruncate(self._file, whole)

    def _read(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise self._damaged(number) from None
        if not isinstance(row, dict):
            raise self._damaged(number)
        return row

    def _check(self, header: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
        if header.get("format") != FORMAT or header.get("version") != VERSION:
            raise PlanError(
                "this is no journal that this version reads", where=f"{self.path}:1", hint="choose another folder"
            )
        theirs = header.get("identity")
        theirs = theirs if isinstance(theirs, dict) else {}
        different = [key for key in {**theirs, **identity} if theirs.get(key) != identity.get(key)]
        if different:
            key = different[0]
            raise PlanError(
                f"the journal belongs to another search: {key} is {_short(identity.get(key))}, and there it is "
                f"{_short(theirs.get(key))}" + (f" ({len(different) - 1} more differ)" if len(different) > 1 else ""),
                where=str(self.path),
                hint="choose another folder, or delete the journal to begin again",
            )

    def _write(self, row: Mapping[str, Any]) -> None:
        if self._file is None:
            return
        line = json.dumps(row, sort_keys=True, allow_nan=False).encode() + b"\n"
        os.lseek(self._file, 0, os.SEEK_END)
        view = memoryview(line)
        while view:
            view = view[os.write(self._file, view) :]
        os.fsync(self._file)

    def _damaged(self, number: int) -> PlanError:
        return PlanError(
            "the journal is damaged: this line is no result",
            where=f"{self.path}:{number}",
            hint="delete the journal to begin again",
        )


def _is_result(row: Mapping[str, Any]) -> bool:
    """Return whether a line has what :class:`slim_prune.evolution.driver.Driver` reads of it, in the right kinds."""
    counts, figures, error = row.get("counts", {}), row.get("figures", {}), row.get("error")
    return (
        type(row.get("by")) is str
        and type(row.get("trial")) is int
        and isinstance(counts, dict)
        and all(type(count) is int for count in counts.values())
        and isinstance(figures, dict)
        and all(value is None or _is_number(value) for value in figures.values())
        and _is_number(row.get("seconds", 0.0))
        and (error is None or type(error) is str)
    )


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "…"
