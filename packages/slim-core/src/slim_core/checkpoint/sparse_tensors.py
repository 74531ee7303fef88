"""Stored tensors to the sparse bytes that ``sparse`` describes, and back, bit for bit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slim_core.checkpoint.packing import Packing, pack4, unpack4
from slim_core.checkpoint.sparse import Bits, Sparse, choose, pack, unpack

#: What a record's ``dtype`` may be where the tensor is sparse; ``header`` checks it.
_PATTERNS = {8: (torch.int64, np.uint64), 4: (torch.int32, np.uint32), 2: (torch.int16, np.uint16),
             1: (torch.uint8, np.uint8)}  # fmt: skip

#: What a sparse record takes more in the header, at most: less than that is not worth saving.
OVERHEAD = 256


def sparse_form(stored: Tensor, packing: Packing | None, shape: Sequence[int], hint: Sparse | None) -> Sparse | None:
    """Return how a tensor is stored in fewer bytes than it is, or ``None``.

    Args:
        stored: the tensor as it would be stored dense: floats, or what :func:`quantized.to_integers` made.
        packing: how it became integers, where it did.
        shape: of the tensor in the model.
        hint: a pattern to try, see :func:`sparse.choose`.
    """
    elements, bits = _elements(stored, packing, shape)
    return choose(elements, bits, hint, stored.numel() * stored.element_size() - OVERHEAD)


def to_sparse(stored: Tensor, packing: Packing | None, shape: Sequence[int], sparse: Sparse) -> Tensor:
    """Return the bytes of a tensor, ``uint8`` of one dimension."""
    elements, bits = _elements(stored, packing, shape)
    return torch.from_numpy(pack(elements, sparse, bits))


def from_sparse(
    stored: Tensor, packing: Packing | None, shape: Sequence[int], dtype: torch.dtype, sparse: Sparse, name: str
) -> Tensor:
    """Return the tensor that :func:`to_sparse` was given.

    Args:
        stored: the bytes.
        packing: as there.
        shape: of the tensor in the model.
        dtype: of the tensor as it would be stored dense.
        sparse: how it is stored.
        name: for errors.

    Raises:
        CheckpointError: the bytes contradict themselves.
    """
    field = f"tensors.{name}"
    if packing is not None and packing.packing == "int4":
        halves = unpack(stored.numpy(), sparse, shape, np.uint8, 4, field)
        return torch.from_numpy(pack4(halves.astype(np.int64)))
    plain, unsigned = _PATTERNS[dtype.itemsize]
    elements = unpack(stored.numpy(), sparse, shape, unsigned, 8 * dtype.itemsize, field)
    signed = elements if plain is torch.uint8 else elements.view(f"i{dtype.itemsize}")
    return torch.from_numpy(signed).view(dtype)


def _elements(stored: Tensor, packing: Packing | None, shape: Sequence[int]) -> tuple[Bits, int]:
    """Return bit patterns in the tensor's shape, and the bits of each."""
    if packing is not None and packing.packing == "int4":
        halves: Any = unpack4(stored.numpy(), math.prod(shape), signed=False).astype(np.uint8)
        return halves.reshape(tuple(shape)), 4
    plain, unsigned = _PATTERNS[stored.element_size()]
    flat = stored.detach().cpu().contiguous().view(plain)
    return flat.numpy().view(unsigned), 8 * stored.element_size()
