"""The samples that a quantization looks at: a bounded number of them, kept, so that several passes see the same."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from slim_core.errors import DataError
from slim_core.workload import tensors_of


class CalibrationData:
    """At most ``samples`` samples of what a model's forward takes, in memory, in batches as they came.

    Iterating gives batches, and can be done again and again. ``len`` is the number of samples.

    Args:
        batches: tensors, tuples of positional inputs or mappings; what comes after ``samples`` samples is not asked
            for, and a last batch is cut.
        samples: how many to keep.

    Raises:
        DataError: ``batches`` gives no batch.
    """

    def __init__(self, batches: Iterable[Any], samples: int = 256) -> None:
        self._batches: list[Any] = []
        count = 0
        for batch in batches:
            size = batch_size(batch)
            self._batches.append(_copied(first_samples(batch, samples - count) if size > samples - count else batch))
            count += min(size, samples - count)
            if count >= samples:
                break
        if not self._batches:
            raise DataError("there is nothing to calibrate on: the calibration data gives no batch")
        self._count = count

    def __iter__(self) -> Iterator[Any]:
        return iter(self._batches)

    def __len__(self) -> int:
        return self._count

    def batches(self, size: int) -> Iterator[Any]:
        """Yield the samples in batches of at most ``size``; a batch never spans two that came."""
        for batch in self._batches:
            for start in range(0, batch_size(batch), size):
                yield some_samples(batch, start, size)

    def subset(self, samples: int) -> CalibrationData:
        """Return the first ``samples`` of them, sharing memory."""
        found = CalibrationData.__new__(CalibrationData)
        found._batches, found._count = [], 0
        for batch in self._batches:
            if found._count >= samples:
                break
            found._batches.append(first_samples(batch, samples - found._count))
            found._count += batch_size(found._batches[-1])
        return found


def batch_size(batch: Any) -> int:
    """Return how many samples a batch has: the length of its first tensor that has dimensions."""
    return next((tensor.shape[0] for tensor in tensors_of(batch) if tensor.dim()), 1)


def first_samples(batch: Any, most: int) -> Any:
    """Return the first ``most`` samples, as views."""
    return some_samples(batch, 0, most)


def some_samples(batch: Any, start: int, most: int) -> Any:
    """Return ``most`` samples from ``start`` on, as views; tensors of another length are passed on whole."""
    size = batch_size(batch)

    def change(value: Any) -> Any:
        cut = isinstance(value, Tensor) and value.dim() and value.shape[0] == size
        return value[start : start + most] if cut else value

    return _mapped(batch, change)


def positional(batch: Any) -> tuple[Any, ...]:
    """Return a batch that is no mapping as positional inputs."""
    return tuple(batch) if isinstance(batch, tuple | list) else (batch,)


def _copied(batch: Any) -> Any:
    """Loaders may fill the same buffer again: what is kept must be a copy."""
    return _mapped(batch, lambda value: value.detach().clone() if isinstance(value, Tensor) else value)


def _mapped(batch: Any, change: Any) -> Any:
    with torch.no_grad():
        if isinstance(batch, Mapping):
            return {name: change(value) for name, value in batch.items()}
        if isinstance(batch, tuple | list):
            return tuple(change(value) for value in batch)
        return change(batch)
