"""The data that curves are measured on: read once where it fits into memory, its identity, and a fair order of samples.

Not here: what is measured (``meter.py``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slim_core.data import batch_size, check_reiterable, map_tensors, take
from slim_core.errors import DataError
from slim_core.workload import DataSource, tensors_of


class Samples:
    """Batches to measure on, always the same ones in the same order.

    Args:
        source: a re-iterable of batches.
        limit: use the first so many samples only; ``None``: all.
        seed: put the samples in a random order that depends on it, where batches can be taken apart; ``None``: leave
            them as they come. A mean over the first batches says something about all of them only in random order.
        memory: bytes up to which batches are kept between passes.

    Raises:
        DataError: there are no samples, or the source can be read only once.
    """

    def __init__(
        self, source: DataSource, *, limit: int | None = None, seed: int | None = None, memory: int = 1 << 29
    ) -> None:
        check_reiterable(source, "sensitivity")
        self._source: DataSource = take(source, limit) if limit is not None else source
        digest = hashlib.sha256()
        kept: list[Any] | None = []
        self.sizes: list[int] = []
        held = 0
        for batch in self._source:
            self.sizes.append(batch_size(batch))
            for tensor in tensors_of(batch):
                digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(bytes_of(tensor))
                held += tensor.nbytes
            if kept is not None:
                kept.append(batch)
                if held > memory:
                    kept = None
        if not self.sizes:
            raise DataError("there is nothing to measure on: the data yields no batch")
        self.identity = digest.hexdigest()
        self.count = sum(self.sizes)
        self._kept = kept
        self.shuffled = False
        if seed is not None and kept is not None:
            mixed = _mixed(kept, self.sizes, seed)
            if mixed is not None:
                self._kept, self.shuffled = mixed, True
                self.sizes = [batch_size(batch) for batch in mixed]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._kept if self._kept is not None else self._source)

    def __len__(self) -> int:
        return len(self.sizes)


def bytes_of(tensor: Tensor) -> memoryview:
    """Return the content of a tensor, for hashing."""
    array = np.ascontiguousarray(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return array.data


def _mixed(batches: list[Any], sizes: list[int], seed: int) -> list[Any] | None:
    """Return the same samples in random order, in batches of the same sizes; ``None`` where that is not possible."""
    first = [(tensor.shape[1:], tensor.dtype) for tensor in tensors_of(batches[0])]
    for batch, size in zip(batches, sizes, strict=True):
        tensors = tensors_of(batch)
        alike = [(tensor.shape[1:], tensor.dtype) for tensor in tensors] == first
        if not alike or any(tensor.dim() == 0 or len(tensor) != size for tensor in tensors):
            return None
    columns = [torch.cat(parts) for parts in zip(*(tensors_of(batch) for batch in batches), strict=True)]
    order = torch.from_numpy(np.random.default_rng(seed).permutation(sum(sizes)))
    mixed: list[Any] = []
    start = 0
    for size in sizes:
        chosen = order[start : start + size]
        parts = [column[chosen] for column in columns]
        mixed.append(_with(batches[0], parts))
        start += size
    return mixed


def _with(batch: Any, tensors: list[Tensor]) -> Any:
    """Return a batch of the same structure with other tensors, in order."""
    parts = iter(tensors)
    return map_tensors(batch, lambda _: next(parts))
