"""``inspect`` and ``verify``: what a file says, and whether its bytes are the ones that were written. No torch."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from slim_core.checkpoint.container import PathLike, located, opened, read_container
from slim_core.checkpoint.header import Header, header_of, read_header
from slim_core.errors import CheckpointError

_CHUNK = 2**20
_SHARED = 2**22  # bytes of tensors that one thread takes at a time


@dataclass(frozen=True, slots=True)
class Verification:
    """What was verified."""

    header: Header
    tensors: int
    bytes: int


def inspect(path: PathLike) -> Header:
    """Return a checkpoint's header. Reads the header and nothing else, whatever the size of the file.

    Raises:
        CheckpointError: the file is missing, foreign, damaged or not a checkpoint; names the field.
    """
    return read_header(path)


def verify(path: PathLike) -> Verification:
    """Check layout and every tensor's hash.

    Raises:
        CheckpointError: names the tensors whose bytes are not the ones that were written.
    """
    with located(path), opened(path) as handle:
        header = header_of(read_container(handle))
        workers = min(4, os.cpu_count() or 1)
        with ThreadPoolExecutor(workers) as pool:
            parts = batches(header, header.stored)
            wrong = sorted(name for names in pool.map(lambda part: _damaged(handle, header, part), parts)
                           for name in names)  # fmt: skip
        if wrong:
            raise damaged(wrong)
        return Verification(header, len(header.stored), sum(stored.nbytes for stored in header.stored.values()))


def damaged(names: list[str]) -> CheckpointError:
    """Return the error for tensors whose bytes do not have the hash of the header."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return CheckpointError(
        f"the bytes of {', '.join(names[:3])}{more} are not the ones that were written (SHA-256 differs)",
        field=f"tensors.{names[0]}",
        hint="the file is damaged or was changed; copy it again",
    )


def batches(header: Header, names: Iterable[str]) -> list[list[str]]:
    """Return the names in groups of some megabytes, the largest tensors first: work for one thread each."""
    found: list[list[str]] = []
    size = _SHARED
    for name in sorted(names, key=lambda name: -header.stored[name].nbytes):
        if size >= _SHARED:
            found.append([])
            size = 0
        found[-1].append(name)
        size += header.stored[name].nbytes
    return found


def _damaged(handle: int, header: Header, names: list[str]) -> list[str]:
    buffer = memoryview(bytearray(_CHUNK))
    return [name for name in names if _hash(handle, header, name, buffer) != header.tensors[name].sha256]


def _hash(handle: int, header: Header, name: str, buffer: memoryview) -> str:
    stored = header.stored[name]
    position, stop = header.data_start + stored.start, header.data_start + stored.stop
    digest = hashlib.sha256()
    while position < stop:
        count = os.preadv(handle, [buffer[: stop - position]], position)
        if not count:
            raise CheckpointError("the file ended while it was read", field=f"tensors.{name}")
        digest.update(buffer[:count])
        position += count
    return digest.hexdigest()
