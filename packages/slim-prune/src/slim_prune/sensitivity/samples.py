"""The data that curves are measured on: read once where it fits into memory, its identity, and a fair order of samples.

Not here: what is measured (``meter.py``).
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slim_core.data import batch_size, check_reiterable, map_tensors, take
from slim_core.errors import DataError
from slim_core.workload import DataSource, tensors_of

#: samples that a batch holds at least, where batches are cut anew
_LEAST = 128
#: so many times that may be one batch
_ONE = 4


class Samples:
    """Batches to measure on, always the same ones in the same order.

    Args:
        source: a re-iterable of batches.
        limit: use the first so many samples only; ``None``: all.
        seed: put the samples in a random order that depends on it, where batches can be taken apart; ``None``: leave
            them as they come. A mean over the first batches says something about all of them only in random order.
        even: cut the samples into batches of one size, or nearly so, where they can be taken apart: a metric that is a
            mean over samples does not mind, and each shape of a batch costs an analysis.
        memory: bytes up to which batches are kept between passes.

    Raises:
        DataError: there are no samples, or the source can be read only once.
    """

    def __init__(
        self,
        source: DataSource,
        *,
        limit: int | None = None,
        seed: int | None = None,
        even: bool = False,
        memory: int = 1 << 29,
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
        if kept is not None and (even or seed is not None):
            sizes = even_sizes(self.count, max(self.sizes)) if even else self.sizes
            order = np.arange(self.count) if seed is None else np.random.default_rng(seed).permutation(self.count)
            cut = _cut_anew(kept, self.sizes, sizes, order)
            if cut is not None:
                self._kept, self.shuffled, self.sizes = cut, seed is not None, sizes

    def arranged(self, order: NDArray[np.int64]) -> Samples | None:
        """Return the samples in another order, ``(count,)`` places of now; ``None``: they cannot be taken apart."""
        cut = _cut_anew(self._kept, self.sizes, self.sizes, order) if self._kept is not None else None
        if cut is None:
            return None
        found = copy.copy(self)
        found._kept = cut
        return found

    def __iter__(self) -> Iterator[Any]:
        return iter(self._kept if self._kept is not None else self._source)

    def __len__(self) -> int:
        return len(self.sizes)


def bytes_of(tensor: Tensor) -> memoryview:
    """Return the content of a tensor, for hashing."""
    array = np.ascontiguousarray(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return array.data


def even_sizes(count: int, largest: int) -> list[int]:
    """Return the sizes of batches that hold ``count`` samples: all equal, where a number near ``largest`` divides it.

    Small batches are put together to :data:`_LEAST` samples: below that, each operator's own cost shows.
    """
    target = min(max(largest, _LEAST), count)
    if count <= _ONE * _LEAST and count <= 4 * target:
        return [count]
    fewest, most = -(-count // (target + target // 4)), max(count * 4 // (target * 3), 1)
    numbers = range(max(fewest, 1), max(most, fewest, 1) + 1)
    best = min(numbers, key=lambda number: (count % number != 0, abs(count / number - target)))
    size, rest = divmod(count, best)
    return [size + 1] * rest + [size] * (best - rest)


def _cut_anew(batches: list[Any], sizes: list[int], wanted: list[int], order: NDArray[np.int64]) -> list[Any] | None:
    """Return the same samples in another order, in batches of other sizes; ``None``: impossible."""
    first = [(tensor.shape[1:], tensor.dtype) for tensor in tensors_of(batches[0])]
    for batch, size in zip(batches, sizes, strict=True):
        tensors = tensors_of(batch)
        alike = [(tensor.shape[1:], tensor.dtype) for tensor in tensors] == first
        if not alike or any(tensor.dim() == 0 or len(tensor) != size for tensor in tensors):
            return None
    columns = [torch.cat(parts) for parts in zip(*(tensors_of(batch) for batch in batches), strict=True)]
    places = torch.split(torch.from_numpy(order), wanted)
    return [_with(batches[0], [column[chosen] for column in columns]) for chosen in places]


def _with(batch: Any, tensors: list[Tensor]) -> Any:
    """Return a batch of the same structure with other tensors, in order."""
    parts = iter(tensors)
    return map_tensors(batch, lambda _: next(parts))
