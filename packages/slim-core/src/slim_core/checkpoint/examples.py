"""Example inputs: their signature, and small deterministic values for them that are stored with the model.

Floating-point inputs get values of a fixed pseudo-random sequence: multiples of 1/64 between -2 and 2, stored as int8.
Other inputs (token ids, masks) keep their first samples, since not every integer is one that the model accepts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slim_core.checkpoint.header import ROLES, InputRecord, InputsRecord
from slim_core.checkpoint.limits import NAME
from slim_core.checkpoint.strict_json import plain, shown
from slim_core.errors import CheckpointError
from slim_core.tensors import DTYPE_BYTES, TensorSpec
from slim_core.workload import Inputs

SCALE = 1 / 64
#: Two samples are stored where both together have at most this many elements, else one.
MAX_PAIR = 2**16


@dataclass(frozen=True, slots=True)
class Example:
    """Example inputs taken apart.

    Args:
        names: of the tensors.
        tensors: the given tensors, on the CPU.
        structure: see :class:`slim_core.checkpoint.header.InputsRecord`.
        batch: size of dimension 0 of the first tensor, or ``None`` when it has no dimension.
    """

    names: tuple[str, ...]
    tensors: tuple[Tensor, ...]
    structure: Any
    batch: int | None

    def batched(self, index: int) -> bool:
        tensor = self.tensors[index]
        return self.batch is not None and tensor.dim() > 0 and tensor.shape[0] == self.batch

    def sizes(self) -> tuple[int, ...]:
        """Return the batch sizes to store an example of, the wanted one first."""
        if self.batch is None:
            return (0,)
        if self.batch <= 1:
            return (self.batch,)
        elements = sum(tensor.numel() // self.batch for i, tensor in enumerate(self.tensors) if self.batched(i))
        return tuple(dict.fromkeys((2 if 2 * elements <= MAX_PAIR else 1, self.batch)))


@dataclass(frozen=True, slots=True)
class Values:
    """Values for an example: what is stored for each tensor, with the scale of those that are stored as int8."""

    stored: tuple[Tensor, ...]
    scales: tuple[float | None, ...]


def take_apart(inputs: Any) -> Example:
    """Return example inputs as named tensors and their structure.

    Raises:
        CheckpointError: there is something in them that is neither a tensor nor JSON.
    """
    if isinstance(inputs, Tensor):
        inputs = (inputs,)
    if not isinstance(inputs, tuple | list | Mapping):
        raise CheckpointError(f"a tuple or a mapping was expected, not {type(inputs).__name__}", field="example_inputs")
    names: list[str] = []
    tensors: list[Tensor] = []
    top = tuple(inputs) if isinstance(inputs, list) else inputs
    structure = _structure(top, "", names, tensors)
    batch = int(tensors[0].shape[0]) if tensors and tensors[0].dim() else None
    return Example(tuple(names), tuple(tensors), structure, batch or None)


def values_for(example: Example, size: int, *, random: bool = True) -> Values:
    """Return values for a batch of ``size``; ``random`` is off where the model needs the given ones."""
    stored: list[Tensor] = []
    scales: list[float | None] = []
    for index, tensor in enumerate(example.tensors):
        part = tensor[:size] if example.batched(index) else tensor
        if random and part.dtype.is_floating_point:
            stored.append(torch.from_numpy(_sequence(part.numel(), index)).reshape(part.shape))
            scales.append(SCALE)
        else:
            stored.append(part.detach().clone().contiguous())
            scales.append(None)
    return Values(tuple(stored), tuple(scales))


def record_of(example: Example, values: Values, size: int) -> InputsRecord:
    """Return the header's record of an example and its stored values."""
    records = []
    for index, (name, tensor) in enumerate(zip(example.names, example.tensors, strict=True)):
        dtype = dtype_name(tensor, f"example_inputs.{name}")
        batched = example.batched(index)
        shape = (None, *tensor.shape[1:]) if batched else tuple(tensor.shape)
        spec = TensorSpec(name, shape, dtype, "input")
        records.append(InputRecord(spec, f"{ROLES['input']}{name}", values.scales[index]))
    batch = size if any(example.batched(index) for index in range(len(records))) else None
    return InputsRecord(tuple(records), example.structure, batch)


def put_together(record: InputsRecord, tensors: Mapping[str, Tensor]) -> Inputs:
    """Return example inputs again; ``tensors`` are the stored ones, by stored name."""
    values = []
    for item in record.tensors:
        tensor = tensors[item.tensor]
        if item.scale is not None:
            tensor = (tensor.to(torch.float32) * item.scale).to(getattr(torch, item.spec.dtype))
        values.append(tensor)
    return build(record.structure, lambda index: values[index])  # type: ignore[no-any-return]


def on_meta(record: InputsRecord) -> Inputs:
    """Return meta tensors of the stored signature, with the example's batch."""
    with torch.device("meta"):
        tensors = [
            torch.empty(
                [(record.batch or 0) if size is None else size for size in item.spec.shape],
                dtype=getattr(torch, item.spec.dtype),
            )
            for item in record.tensors
        ]
    return build(record.structure, lambda index: tensors[index])  # type: ignore[no-any-return]


def build(structure: Any, leaf: Callable[[int], Any]) -> Any:
    """Return what a checked structure describes."""
    if isinstance(structure, int):
        return leaf(structure)
    ((key, inner),) = structure.items()
    if key == "tuple":
        return tuple(build(item, leaf) for item in inner)
    if key == "list":
        return [build(item, leaf) for item in inner]
    if key == "mapping":
        return {name: build(item, leaf) for name, item in inner}
    return inner


def dtype_name(tensor: Tensor, field: str) -> str:
    """Return the dtype's name.

    Raises:
        CheckpointError: a checkpoint cannot hold it.
    """
    name = str(tensor.dtype).removeprefix("torch.")
    if name not in DTYPE_BYTES:
        raise CheckpointError(f"dtype {name} cannot be stored", field=field, hint=f"known: {', '.join(DTYPE_BYTES)}")
    return name


def _structure(value: Any, path: str, names: list[str], tensors: list[Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = path or "input"
        if not NAME.match(name) or name in names:
            name = f"input_{len(names)}"
        names.append(name)
        tensors.append(value.detach().cpu())
        return len(names) - 1
    if isinstance(value, Mapping):
        pairs = []
        for key, item in value.items():
            if not isinstance(key, str):
                raise CheckpointError(f"keys are text, not {shown(repr(key))}", field=f"example_inputs.{path}")
            pairs.append([key, _structure(item, f"{path}.{key}" if path else key, names, tensors)])
        return {"mapping": pairs}
    if isinstance(value, tuple | list):
        items = [_structure(item, f"{path}.{i}" if path else str(i), names, tensors) for i, item in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": items}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": plain(value, f"example_inputs.{path}")}
    raise CheckpointError(
        f"an input of type {type(value).__name__} cannot be stored",
        field=f"example_inputs.{path}",
        hint="pass tensors, text, numbers, None, and tuples, lists and dicts of them",
    )


def _sequence(count: int, stream: int) -> Any:
    """Return ``count`` int8 values: the top bytes of splitmix64 (Steele, Lea & Flood 2014), seeded by ``stream``."""
    with np.errstate(over="ignore"):
        state = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(stream)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return (state >> np.uint64(56)).astype(np.uint8).view(np.int8)
