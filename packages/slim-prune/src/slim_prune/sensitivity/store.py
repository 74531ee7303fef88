"""Measured points on disk: appended one line at a time and synced, so that a kill loses the point in work at most.

``points-I-of-N.jsonl`` (``…-worker-K.jsonl`` by worker processes): the first line says what was measured (model, data,
metric, ranking), each further line is one point with a checksum. A line that a kill tore is cut off at the next start;
a line that is damaged otherwise is an error. Each process writes a file of its own; all files of a folder are read.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from slim_prune.errors import PlanError
from slim_prune.locking import lock
from slim_prune.sensitivity.curves import Base, Point
from slim_prune.sensitivity.merge import check_identity, put, same_base

FORMAT = "slim-prune.sensitivity.points"
VERSION = 1
MAX_BYTES = 256 << 20


class Store:
    """The points of one folder. Use as a context manager.

    Args:
        folder: where the files are.
        identity: what is measured.
        part: which file to write: ``(1, 4)`` for the first of four.
        worker: number of the worker process that writes, where several share a part.

    Raises:
        PlanError: the folder holds points of something else, is damaged, or another process writes this file.
    """

    def __init__(
        self, folder: Path, identity: Mapping[str, Any], part: tuple[int, int] = (1, 1), worker: int | None = None
    ) -> None:
        self._folder, self._identity = folder, dict(identity)
        self.points: dict[tuple[str, int], Point] = {}
        self.base: Base | None = None
        folder.mkdir(parents=True, exist_ok=True)
        name = f"points-{part[0]}-of-{part[1]}"
        self._path = folder / (f"{name}.jsonl" if worker is None else f"{name}-worker-{worker}.jsonl")
        self._file: BinaryIO | None = open(self._path, "ab")  # noqa: SIM115 - closed in close()
        try:
            _lock(self._file, self._path)
            self._mend()
            self.reload()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def reload(self) -> None:
        """Read the points of all processes again."""
        self.points.clear()
        for path in sorted(self._folder.glob("points-*.jsonl")):
            for number, record in enumerate(_records(path, self._identity)):
                where = f"{path}, line {number + 2}"
                if "base" in record:
                    self.base = same_base(self.base, _made(Base, record["base"], where), where)
                else:
                    put(self.points, _made(Point, record["point"], where), where)

    def add_base(self, base: Base) -> None:
        self.base = base
        self._append({"base": base.to_json()})

    def add(self, points: Iterable[Point]) -> None:
        """Write points; they are on the disk when this returns."""
        for point in points:
            put(self.points, point, str(self._path))
            self._append({"point": point.to_json()})

    def _append(self, record: Mapping[str, Any]) -> None:
        assert self._file is not None  # noqa: S101  not used after close()
        self._file.write(_line(record))
        self._file.flush()
        os.fsync(self._file.fileno())

    def _mend(self) -> None:
        """Write the head of a new file, or cut off what a kill left half written at the end."""
        assert self._file is not None  # noqa: S101
        raw = self._path.read_bytes() if self._path.stat().st_size else b""
        whole = raw[: raw.rfind(b"\n") + 1]
        if len(whole) < len(raw):
            self._file.truncate(len(whole))
        if not whole:
            self._append({"format": FORMAT, "version": VERSION, "identity": self._identity})
            handle = os.open(self._folder, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def clear(folder: Path) -> None:
    """Remove the points in ``folder``.

    Raises:
        PlanError: another process is measuring into it; nothing is removed then.
    """
    paths = list(folder.glob("points-*.jsonl"))
    with ExitStack() as stack:
        for path in paths:
            _lock(stack.enter_context(open(path, "ab")), path)
        for path in paths:
            path.unlink()


def _lock(file: BinaryIO, path: Path) -> None:
    hint = "wait for it, or give each process a shard of its own: --shard 1/2 and --shard 2/2"
    lock(file.fileno(), path, "measuring into this folder", hint)


def _line(record: Mapping[str, Any]) -> bytes:
    body = json.dumps(record, sort_keys=True, allow_nan=False, separators=(",", ":"))
    return f"{zlib.crc32(body.encode()):08x} {body}\n".encode()


def _records(path: Path, identity: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    """Yield the records after the head. A torn last line, which another process may be writing, is left out."""
    hint = "remove the file to measure its points again"
    if path.stat().st_size > MAX_BYTES:
        raise PlanError(f"the file of points is larger than {MAX_BYTES >> 20} MB", where=str(path), hint=hint)
    raw = path.read_bytes()
    lines = raw[: raw.rfind(b"\n") + 1].splitlines()
    for number, line in enumerate(lines):
        where = f"{path}, line {number + 1}"
        head, _, body = line.partition(b" ")
        try:
            if int(head, 16) != zlib.crc32(body):
                raise ValueError("its checksum is wrong")
            record = json.loads(body)
            if not isinstance(record, dict):
                raise ValueError("it is no object")
        except (ValueError, RecursionError) as error:
            raise PlanError(f"a measured point is damaged: {error}", where=where, hint=hint) from None
        if number == 0:
            if record.get("format") != FORMAT or record.get("version") != VERSION:
                raise PlanError("this is not a file of points that this version reads", where=where, hint=hint)
            check_identity(identity, record.get("identity"), str(path))
        elif "base" in record or "point" in record:
            yield record


def _made(kind: Any, data: Any, where: str) -> Any:
    try:
        return kind.from_json(data)
    except (KeyError, TypeError, ValueError) as error:
        raise PlanError(f"a measured point is damaged: {error}", where=where) from None
