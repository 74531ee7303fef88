"""Data sets and sources of batches: what a registered data set returns, tensors in memory, and helpers over batches.

No data set lives here: those come from plugins (slim-zoo has ``digits`` and ``fashion-mnist``). Anything that yields
batches and can be iterated again and again is a source: a list, a ``torch.utils.data.DataLoader`` (over a Hugging
Face data set, say), an own class; :class:`StreamSource` makes one of a function that returns iterators.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slim_core.errors import DataError
from slim_core.workload import DataSource, Inputs, tensors_of

#: Changes a batch of inputs at random; draws only from the generator that it is given.
Augment = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True, slots=True)
class Dataset:
    """What a registered data set returns.

    Args:
        train: training batches.
        val: validation batches.
        example_inputs: inputs of one batch, for recording, export and measuring; batch first.
        num_classes: number of classes, or ``None`` where that makes no sense.
        input_shape: shape of one input without the batch, ``(C, H, W)`` for pictures: models can be built to it.
        task: registered name of the task that fits, and its JSON arguments in ``task_kwargs``.
        task_kwargs: arguments of the task.
        name: the data set's name, for reports.
        class_names: names of the classes, in order.
    """

    train: DataSource
    val: DataSource
    example_inputs: Inputs
    num_classes: int | None = None
    input_shape: tuple[int, ...] = ()
    task: str = "classification"
    task_kwargs: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    class_names: tuple[str, ...] = ()

    def calibration(self, samples: int) -> list[Any]:
        """Return exactly ``samples`` training samples without augmentation, as a list of batches."""
        return take(self.train, samples)


class TensorSource:
    """Batches ``(inputs, targets)`` cut from tensors in memory.

    The order of the samples and all augmentation are a pure function of ``seed``, the epoch (``set_epoch``) and
    the batch's number, so a run that resumes at an epoch sees what the uninterrupted one saw.

    Args:
        inputs: all inputs, ``(N, …)``. Pictures may stay ``uint8``; ``prepare`` turns a batch into floats.
        targets: all targets, ``(N, …)``.
        batch_size: samples per batch.
        shuffle: draw a new order in each epoch.
        seed: of order and augmentation.
        prepare: applied to each batch of inputs, in training and elsewhere: conversion, normalization.
        augment: applied after ``prepare``, in training only.
        drop_last: leave out a last batch that is not full.
    """

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        prepare: Callable[[Tensor], Tensor] | None = None,
        augment: Augment | None = None,
        drop_last: bool = False,
    ) -> None:
        if len(inputs) != len(targets):
            raise DataError(f"{len(inputs)} inputs, but {len(targets)} targets")
        if len(inputs) == 0:
            raise DataError("the data set is empty")
        if batch_size < 1:
            raise DataError(f"batch_size must be at least 1, not {batch_size}")
        if drop_last and len(inputs) < batch_size:
            raise DataError(
                f"{len(inputs)} samples do not fill one batch of {batch_size}",
                hint="lower batch_size or set drop_last to false",
            )
        self.inputs, self.targets = inputs, targets
        self.batch_size, self.shuffle, self.seed, self.drop_last = batch_size, shuffle, seed, drop_last
        self.prepare, self.augment = prepare, augment
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order and augmentation the next iteration has."""
        self.epoch = epoch

    @property
    def samples(self) -> int:
        """Number of samples in one epoch."""
        return len(self) * self.batch_size if self.drop_last else len(self.inputs)

    def __len__(self) -> int:
        full, rest = divmod(len(self.inputs), self.batch_size)
        return full if self.drop_last or not rest else full + 1

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch = self.epoch
        order = torch.arange(len(self.inputs))
        if self.shuffle:
            order = torch.randperm(len(self.inputs), generator=generator(self.seed, epoch))
        for number in range(len(self)):
            chosen = order[number * self.batch_size : (number + 1) * self.batch_size]
            inputs = self.inputs[chosen]
            if self.prepare is not None:
                inputs = self.prepare(inputs)
            if self.augment is not None:
                inputs = self.augment(inputs, generator(self.seed, epoch, number))
            yield inputs, self.targets[chosen]

    def plain(self) -> TensorSource:
        """Return the same samples without augmentation, in the order of epoch 0 whatever ``set_epoch`` says."""
        return TensorSource(
            self.inputs, self.targets, self.batch_size, shuffle=self.shuffle, seed=self.seed, prepare=self.prepare
        )


class StreamSource:
    """Batches from a function that makes an iterator anew for each epoch.

    Args:
        make: gets the epoch (from 0) and returns the batches of one pass.
        length: number of batches, where it is known: schedules then move with every step.
    """

    def __init__(self, make: Callable[[int], Iterable[Any]], length: int | None = None) -> None:
        self.make, self.length, self.epoch = make, length, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        if self.length is None:
            raise TypeError("the length of this stream is not known")
        return self.length

    def __iter__(self) -> Iterator[Any]:
        return iter(self.make(self.epoch))


def generators_of(source: DataSource | None) -> tuple[torch.Generator, ...]:
    """Return the random generators that a ``DataLoader`` and its sampler bring along, each once."""
    if not isinstance(source, torch.utils.data.DataLoader):
        return ()
    owners = (source, source.sampler, source.batch_sampler, getattr(source.batch_sampler, "sampler", None))
    found = (getattr(owner, "generator", None) for owner in owners)
    return tuple({id(own): own for own in found if isinstance(own, torch.Generator)}.values())


def begin_epoch(source: DataSource, epoch: int, seed: int | None = None) -> None:
    """Tell a source which epoch comes, so that its order is a function of it.

    ``set_epoch`` of the source is called, or, for a ``DataLoader``, that of its sampler and data set; the generators of
    a loader and of its sampler are seeded from ``seed`` and the epoch.
    """
    if isinstance(source, torch.utils.data.DataLoader):
        if seed is not None:
            for own in generators_of(source):
                own.manual_seed(generator(seed, epoch).initial_seed())
        parts: tuple[Any, ...] = (source.sampler, source.batch_sampler, source.dataset)
    else:
        parts = (source,)
    for part in parts:
        if hasattr(part, "set_epoch"):
            part.set_epoch(epoch)


def check_reiterable(source: DataSource, what: str) -> None:
    """Refuse an iterator that can be read only once.

    Raises:
        DataError: ``source`` is one; says how to wrap it.
    """
    if isinstance(source, Iterator):
        raise DataError(
            f"the {what} data is an iterator, which can be read only once",
            hint="pass a list, a DataLoader, or slim_core.data.StreamSource(lambda epoch: …), which makes it anew",
        )


def generator(*numbers: int) -> torch.Generator:
    """Return a CPU generator whose state is a pure function of ``numbers`` (a seed, an epoch, …)."""
    state = np.random.SeedSequence([number & 0xFFFF_FFFF_FFFF_FFFF for number in numbers]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]) >> 1)


def take(source: DataSource, samples: int, *, plain: bool = True) -> list[Any]:
    """Return exactly ``samples`` samples of ``source``, as a list of batches; the last one is cut to fit.

    Args:
        source: any re-iterable of batches.
        samples: how many samples, at least 1.
        plain: take them without augmentation where the source knows how (it has ``plain()``), as calibration wants.

    Raises:
        DataError: the source has fewer samples.
    """
    if samples < 1:
        raise DataError(f"cannot take {samples} samples")
    if plain and hasattr(source, "plain"):
        source = source.plain()
    batches: list[Any] = []
    missing = samples
    for batch in source:
        size = batch_size(batch)
        batches.append(batch if size <= missing else slice_batch(batch, 0, missing))
        missing -= min(size, missing)
        if missing == 0:
            return batches
    raise DataError(
        f"{samples} samples were asked for, but the data has {samples - missing}",
        hint=f"ask for at most {samples - missing}",
    )


def batch_size(batch: Any) -> int:
    """Return the number of samples in a batch: the first dimension of its first tensor that has one.

    Raises:
        DataError: no tensor of the batch has a dimension.
    """
    for tensor in tensors_of(batch):
        if tensor.ndim:
            return int(tensor.shape[0])
    raise DataError(f"a batch of type {type(batch).__name__} holds no tensor with a batch dimension")


def length(source: DataSource) -> int | None:
    """Return how many batches a source yields, or ``None`` if it does not know."""
    try:
        return len(source)  # type: ignore[arg-type]
    except TypeError:  # no __len__, or a DataLoader over an iterable data set
        return None


def slice_batch(batch: Any, start: int, stop: int) -> Any:
    """Return samples ``start`` to ``stop`` of a batch of any structure; tensors of another length stay whole."""
    size = batch_size(batch)
    return map_tensors(batch, lambda tensor: tensor[start:stop] if tensor.ndim and tensor.shape[0] == size else tensor)


def map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Apply ``function`` to every tensor of nested tuples, lists, mappings and dataclasses, keeping their types."""
    if isinstance(value, Tensor):
        return function(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [item.name for item in dataclasses.fields(value)]
        return type(value)(**{name: map_tensors(getattr(value, name), function) for name in names})
    if isinstance(value, Mapping):
        mapped = {key: map_tensors(item, function) for key, item in value.items()}
        return mapped if type(value) is dict else type(value)(mapped)  # type: ignore[call-arg]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(item, function) for item in value))
    if isinstance(value, tuple | list):
        return type(value)(map_tensors(item, function) for item in value)
    return value


def to_device(value: Any, device: torch.device, memory_format: torch.memory_format | None = None) -> Any:
    """Move every tensor of a nested value to ``device``; four-dimensional ones get ``memory_format`` if given."""
    ahead = device.type != "cpu"  # a copy to the CPU that is not awaited may be read too early

    def move(tensor: Tensor) -> Tensor:
        if memory_format is not None and tensor.ndim == 4:
            return tensor.to(device, memory_format=memory_format, non_blocking=ahead)
        return tensor.to(device, non_blocking=ahead)

    return map_tensors(value, move)
