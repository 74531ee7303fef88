"""``TensorSpec``: the one way to describe a tensor in checkpoints, input signatures and knowledge schemas."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

#: dtype names that may appear in files, and their bytes per element. Also the allowlist for reading.
DTYPE_BYTES: dict[str, int] = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, shape, dtype and role of a tensor.

    Args:
        name: the tensor's name: a parameter's path, or an input's name.
        shape: sizes; ``None`` for a dimension of any size (the batch).
        dtype: a key of :data:`DTYPE_BYTES`.
        role: what it is for: ``"input"``, ``"output"``, ``"parameter"``, ``"buffer"``, ``"index"``, ``"scale"``, …
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str
    role: str

    def __post_init__(self) -> None:
        if self.dtype not in DTYPE_BYTES:
            raise ValueError(f"unknown dtype {self.dtype!r}; known: {', '.join(DTYPE_BYTES)}")
        if any(size is not None and size < 0 for size in self.shape):
            raise ValueError(f"negative size in shape {self.shape} of {self.name!r}")

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "shape": list(self.shape), "dtype": self.dtype, "role": self.role}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TensorSpec:
        return cls(data["name"], tuple(data["shape"]), data["dtype"], data["role"])
