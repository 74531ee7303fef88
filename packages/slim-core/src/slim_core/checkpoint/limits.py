"""What a checkpoint may hold at most, and which names it may use. Reading treats every file as hostile."""

from __future__ import annotations

import re

FORMAT_VERSION = 1

#: The one metadata key of the safetensors header.
KEY = "slim"

#: Stored tensors that are not the model's own state begin with this; a model's own names must not.
RESERVED = "slim:"

MAX_CONTAINER_HEADER = 48 * 2**20  # bytes of the safetensors header; it holds the JSON below, with quotes escaped
MAX_JSON = 16 * 2**20  # bytes of the JSON under the metadata key
MAX_VALUES = 2_000_000  # commas and opening brackets of a JSON text: bounds the memory that parsing takes
MAX_DEPTH = 32
MAX_TENSORS = 100_000
MAX_NAME = 512
MAX_DIMS = 16
MAX_SIZE = 2**48  # of one dimension
MAX_BYTES = 2**60  # of one tensor
MAX_TRANSFORMS = 256
MAX_INT = 2**63 - 1

#: Model paths, fx call names (``conv@1``) and the reserved names. No blanks, quotes or control characters, and nothing
#: that would leave a folder if someone took it for a path.
NAME = re.compile(r"(?![./])(?!.*\.\.)[A-Za-z0-9_.:/@+\-]{1,512}\Z")
#: Stands for a SHA-256 that is not known yet.
PENDING = "0" * 64
SHA256 = re.compile(r"[0-9a-f]{64}\Z")
PACKAGE = re.compile(r"[A-Za-z0-9_.\-]{1,128}\Z")
VERSION = re.compile(r"[A-Za-z0-9_.+!\-]{1,128}\Z")

#: safetensors' names of the dtypes that may appear.
STORED_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
DTYPE_CODES = {name: code for code, name in STORED_DTYPES.items()}
