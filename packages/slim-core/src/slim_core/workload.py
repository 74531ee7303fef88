"""``Workload``: a model with everything that a technique needs to compress and judge it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

#: What a model's forward takes: positional tensors, or keyword tensors.
Inputs = tuple[Any, ...] | Mapping[str, Any]


@runtime_checkable
class DataSource(Protocol):
    """A re-iterable source of batches: a ``DataLoader``, a list, or an own class.

    ``set_epoch(epoch: int)``, where it exists, is called before each training pass, and makes the order of
    samples a function of the source's seed and the epoch: that is what lets ``fit`` resume bit for bit.
    """

    def __iter__(self) -> Iterator[Any]: ...


class Metric(Protocol):
    """An accumulator over batches."""

    higher_is_better: bool

    def update(self, outputs: Any, batch: Any) -> None: ...

    def compute(self) -> float: ...


class Task(Protocol):
    """What the model is for: how a batch splits, what is minimized, what is measured."""

    name: str
    primary: str  # the metric that decisions are made on

    def inputs(self, batch: Any) -> Inputs:
        """Return what the model's forward takes."""

    def loss(self, outputs: Any, batch: Any) -> Tensor:
        """Return the scalar training loss."""

    def metrics(self) -> dict[str, Metric]:
        """Return fresh accumulators by name."""


@dataclass(frozen=True, slots=True)
class BuilderRef:
    """How to build the uncompressed model again: a registered name and JSON arguments, never an import path."""

    name: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Transform:
    """One thing that was done to the model, in a form that can be replayed as pure shape edits.

    Args:
        kind: registered name of the replayer: ``"prune.channels"``, ``"quant.static"``.
        schema: version of ``data``'s layout.
        data: JSON values.
        tensors: index and scale tensors that belong to the record, by short name.
    """

    kind: str
    schema: int
    data: Mapping[str, Any]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


class Replayer(Protocol):
    """What a plugin registers under a transform's kind: it edits a freshly built model on the meta device."""

    def replay(self, model: nn.Module, transform: Transform, example_inputs: Inputs) -> nn.Module:
        """Return the model with the transform's shape edits; ``model`` may be edited in place.

        ``example_inputs`` are meta tensors of the signature stored in the checkpoint.
        """


@dataclass(frozen=True, slots=True)
class Workload:
    """The common model interface. Immutable: a technique takes one and returns a new one.

    Args:
        model: the model.
        example_inputs: positional inputs (batch first) or keyword inputs of ``model.forward``.
        task: loss, metrics, and how a batch splits.
        train: training batches, or ``None``.
        val: validation batches, or ``None``.
        builder: how to build the uncompressed model again, or ``None`` (then checkpoints need a factory).
        transforms: what was done to the model so far, in order.
    """

    model: nn.Module
    example_inputs: Inputs
    task: Task | None = None
    train: DataSource | None = None
    val: DataSource | None = None
    builder: BuilderRef | None = None
    transforms: tuple[Transform, ...] = ()

    def with_model(self, model: nn.Module, *transforms: Transform) -> Workload:
        """Return this workload with another model and the transforms that led to it."""
        return replace(self, model=model, transforms=(*self.transforms, *transforms))


def call(model: nn.Module, inputs: Any) -> Any:
    """Run ``model`` on positional inputs (tuple), keyword inputs (mapping) or one tensor."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, tuple | list):
        return model(*inputs)
    return model(inputs)


def tensors_of(value: Any) -> list[Tensor]:
    """Return the tensors of nested tuples, lists, mappings and dataclasses, in order.

    Hugging Face outputs, which are mappings, and plain dataclasses are taken apart alike.
    """
    return list(_walk(value))


def _walk(value: Any) -> Iterable[Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _walk(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _walk(item)
    elif hasattr(value, "__dataclass_fields__"):
        for name in value.__dataclass_fields__:
            yield from _walk(getattr(value, name))
