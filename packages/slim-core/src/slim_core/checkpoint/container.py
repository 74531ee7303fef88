"""The safetensors container: strict reading of its header, and its layout for writing. No torch, no Slim fields.

Stricter than the safetensors library, which accepts a name twice, any name at all, and several metadata keys.
"""

from __future__ import annotations

import errno
import math
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from slim_core.checkpoint import limits
from slim_core.checkpoint.node import Node
from slim_core.checkpoint.strict_json import canonical, parse, shown
from slim_core.errors import CheckpointError
from slim_core.tensors import DTYPE_BYTES

_ALIGNMENT = 64  # of the first tensor in the file: one cache line
PathLike = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor as it lies in the file: dtype, shape, and its bytes ``start`` to ``stop`` behind the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Container:
    """A parsed safetensors header.

    Args:
        text: the JSON under the one metadata key.
        tensors: what is stored, by name.
        data_start: where the tensors begin in the file.
        file_bytes: size of the file.
    """

    text: str
    tensors: Mapping[str, Stored]
    data_start: int
    file_bytes: int


@contextmanager
def opened(path: PathLike) -> Iterator[int]:
    """Yield a file descriptor of a regular file; every failure to open it is a ``CheckpointError``."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    try:
        handle = os.open(path, flags)
    except FileNotFoundError:
        raise CheckpointError("there is no such file", where=str(path)) from None
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"the file cannot be opened: {_reason(error)}", where=shown(str(path), 400)) from None
    try:
        mode = os.fstat(handle).st_mode
        if stat.S_ISDIR(mode):
            raise CheckpointError(
                "this is a folder", where=str(path), hint="name the .safetensors file inside it; one file is one model"
            )
        if not stat.S_ISREG(mode):
            raise CheckpointError("this is not a regular file", where=str(path))
        yield handle
    finally:
        os.close(handle)


@contextmanager
def located(path: PathLike) -> Iterator[None]:
    """Say in every ``CheckpointError`` of the block which file it is about; turn failures of the disk into one."""
    try:
        yield
    except CheckpointError as error:
        if error.where is None:
            raise CheckpointError(error.what.removeprefix(f"{error.field}: "), field=error.field, where=str(path),
                                  hint=error.hint) from error.__cause__  # fmt: skip
        raise
    except OSError as error:
        raise CheckpointError(f"the file cannot be read: {_reason(error)}", where=str(path)) from None


def read_container(handle: int) -> Container:
    """Parse the header of an open file. Reads nothing else.

    Raises:
        CheckpointError: it is not a safetensors file that Slim wrote, or its layout is damaged.
    """
    file_bytes = os.fstat(handle).st_size
    head = os.pread(handle, 8, 0)
    if len(head) < 8:
        raise CheckpointError(
            "the file is empty" if not head else f"the file ends after {len(head)} bytes, inside the header's length",
            field="header length",
            hint="it was truncated; copy it again",
        )
    length = int.from_bytes(head, "little")
    if length > limits.MAX_CONTAINER_HEADER:
        _refuse_other_formats(head)
        raise CheckpointError(
            f"the header claims {length} bytes; the most is {limits.MAX_CONTAINER_HEADER}",
            field="header length",
            hint="this is not a safetensors file, or it is damaged",
        )
    if length < 2 or 8 + length > file_bytes:
        raise CheckpointError(
            f"the header claims {length} bytes, the file has {file_bytes - 8} behind the length",
            field="header length",
            hint="it was truncated, or is not a safetensors file",
        )
    raw = _read_all(handle, length, 8)
    if not raw.startswith(b"{"):
        raise CheckpointError("a safetensors header begins with '{'", field="header")
    return _container(Node(parse(raw, "header"), ""), 8 + length, file_bytes)


def encode_header(text: str, tensors: Mapping[str, Stored]) -> bytes:
    """Return the length and header of a file, padded with blanks so that the tensors begin on a cache line."""
    header: dict[str, Any] = {"__metadata__": {limits.KEY: text}}
    for name, stored in tensors.items():
        header[name] = {
            "dtype": limits.DTYPE_CODES[stored.dtype],
            "shape": list(stored.shape),
            "data_offsets": [stored.start, stored.stop],
        }
    raw = canonical(header).encode("ascii")
    padded = raw + b" " * (-(8 + len(raw)) % _ALIGNMENT)
    return len(padded).to_bytes(8, "little") + padded


def lay_out(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> dict[str, Stored]:
    """Return where tensors of these dtypes and shapes go: widest dtype first, then by name, without gaps."""
    found: dict[str, Stored] = {}
    position = 0
    for name in sorted(tensors, key=lambda name: (-DTYPE_BYTES[tensors[name][0]], name)):
        dtype, shape = tensors[name]
        size = math.prod(shape) * DTYPE_BYTES[dtype]
        found[name] = Stored(dtype, shape, position, position + size)
        position += size
    return found


def _container(root: Node, data_start: int, file_bytes: int) -> Container:
    if type(root.value) is not dict:
        raise CheckpointError("the safetensors header is not an object", field="header")
    metadata = root.value.get("__metadata__")
    if metadata is None or (type(metadata) is dict and limits.KEY not in metadata):
        raise CheckpointError(
            f"this is a safetensors file with {len(root.value) - ('__metadata__' in root.value)} tensors that Slim did "
            f"not write: its metadata has no key '{limits.KEY}'",
            field="__metadata__",
            hint="load it with model.load_state_dict(safetensors.torch.load_file(path)), then "
            "slim_core.checkpoint.save(workload, path) writes a Slim checkpoint",
        )
    text = root.child("__metadata__").record((limits.KEY,))[limits.KEY]
    if type(text.value) is not str:
        text.fail("text was expected")
    if len(text.value) > limits.MAX_JSON:
        text.fail(f"it has {len(text.value)} characters; the most is {limits.MAX_JSON}")
    tensors: dict[str, Stored] = {}
    members = {key: value for key, value in root.value.items() if key != "__metadata__"}
    for name, node in Node(members, "header").mapping(limits.MAX_TENSORS):
        tensors[name] = _stored(node)
    _check_layout(tensors, file_bytes - data_start)
    return Container(text.value, tensors, data_start, file_bytes)


def _stored(node: Node) -> Stored:
    fields = node.record(("dtype", "shape", "data_offsets"))
    dtype = limits.STORED_DTYPES[fields["dtype"].choice(limits.STORED_DTYPES)]
    shape = fields["shape"].sizes(limits.MAX_DIMS, limits.MAX_SIZE)
    size = math.prod(shape) * DTYPE_BYTES[dtype]
    if size > limits.MAX_BYTES:
        fields["shape"].fail(f"a tensor of {size} bytes is larger than any that may be stored")
    offsets = fields["data_offsets"].sizes(2, limits.MAX_INT)
    if len(offsets) != 2:
        fields["data_offsets"].fail("two offsets were expected")
    if offsets[1] - offsets[0] != size:
        fields["data_offsets"].fail(f"it spans {offsets[1] - offsets[0]} bytes; dtype and shape make {size}")
    return Stored(dtype, shape, *offsets)


def _check_layout(tensors: Mapping[str, Stored], available: int) -> None:
    position = 0
    for name, stored in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        if stored.start != position:
            word = "overlaps the tensor before it" if stored.start < position else "leaves a hole before it"
            raise CheckpointError(word, field=f"header.{name}.data_offsets")
        position = stored.stop
        if position > available:
            raise CheckpointError(
                f"it ends {position - available} bytes behind the end of the file",
                field=f"header.{name}.data_offsets",
                hint="the file was truncated; copy it again",
            )
    if position != available:
        raise CheckpointError(
            f"{available - position} bytes behind the last tensor belong to nothing", field="file size"
        )


def _refuse_other_formats(head: bytes) -> None:
    pickled = "this is a file of torch.save, which can run code when it is loaded; Slim never does that"
    hint = "if you trust it: model.load_state_dict(torch.load(path, weights_only=True)), then slim_core.checkpoint.save"
    if head.startswith(b"PK\x03\x04"):
        raise CheckpointError(f"{pickled} (a zip archive)", field="header length", hint=hint)
    if head[:1] == b"\x80" and head[1] in (2, 3, 4, 5):
        raise CheckpointError(f"{pickled} (a pickle)", field="header length", hint=hint)
    for magic, word in ((b"\x89HDF", "an HDF5 file"), (b"GGUF", "a GGUF file"), (b"\x93NUMPY", "a numpy array")):
        if head.startswith(magic):
            raise CheckpointError(f"this is {word}, not a safetensors file", field="header length")


def _read_all(handle: int, size: int, offset: int) -> bytes:
    parts = []
    while size:
        part = os.pread(handle, min(size, 2**24), offset)
        if not part:
            raise CheckpointError("the file ended while it was read", field="file size")
        parts.append(part)
        size -= len(part)
        offset += len(part)
    return b"".join(parts)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno is not None:
        return f"{error.strerror} ({errno.errorcode.get(error.errno, error.errno)})"
    return str(error)
