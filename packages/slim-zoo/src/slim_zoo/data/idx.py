"""Reading IDX files, the format of MNIST and Fashion-MNIST, strictly. Plain or gzipped.

The format: two zero bytes, one byte for the type (8: unsigned byte), one for the number of dimensions, each
dimension as a big-endian 32-bit number, then the values in row-major order.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from slim_core.errors import DataError

GZIP_MAGIC = b"\x1f\x8b"
UNSIGNED_BYTE = 8
#: no IDX file that is read here is larger; a gzip bomb stops at this many bytes
MAX_BYTES = 1 << 28

#: what to do about a damaged file
AGAIN = "the file is damaged or another one: delete it and fetch it again"


def read_idx(path: Path) -> np.ndarray:
    """Return the array in ``path``, as unsigned bytes.

    Raises:
        DataError: the file cannot be read or is not exactly an IDX file of unsigned bytes.
    """
    return parse_idx(uncompressed(path), str(path))


def uncompressed(path: Path) -> bytes:
    """Return the bytes of a plain or gzipped file, at most :data:`MAX_BYTES` of them.

    Raises:
        DataError: the file cannot be read, is damaged, or holds more.
    """
    try:
        with open(path, "rb") as handle:
            zipped = handle.read(2) == GZIP_MAGIC
        with gzip.open(path, "rb") if zipped else open(path, "rb") as handle:
            data: bytes = handle.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"the file cannot be read: {error}", where=str(path), hint=AGAIN) from error
    if len(data) > MAX_BYTES:
        raise DataError(f"the file holds more than {MAX_BYTES:,} bytes", where=str(path), hint=AGAIN)
    return data


def parse_idx(data: bytes, where: str) -> np.ndarray:
    """Return the array in the bytes of an IDX file.

    Args:
        data: the bytes, uncompressed.
        where: what messages call the file.

    Raises:
        DataError: it is not an IDX file of unsigned bytes, or its header and its size disagree.
    """
    if len(data) < 4 or data[:2] != b"\0\0":
        raise DataError("the file is not an IDX file: it does not begin with two zero bytes", where=where, hint=AGAIN)
    if data[2] != UNSIGNED_BYTE:
        raise DataError(
            f"the file holds values of IDX type 0x{data[2]:02x}; only unsigned bytes (0x08) are read",
            where=where,
            hint=AGAIN,
        )
    dimensions = data[3]
    header = 4 + 4 * dimensions
    if not 1 <= dimensions <= 4 or len(data) < header:
        raise DataError(f"the file has a damaged IDX header ({dimensions} dimensions)", where=where, hint=AGAIN)
    shape = struct.unpack(f">{dimensions}I", data[4:header])
    if len(data) - header != math.prod(shape):
        raise DataError(
            f"the file has {len(data) - header:,} values, but its header says {' x '.join(map(str, shape))}",
            where=where,
            hint=AGAIN,
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)
