"""The data of a recorded graph and of its channel coupling. Values only: no recording, no rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

#: operators that hand a value to Python, which may decide by it
READS = frozenset({"aten._local_scalar_dense.default", "aten.item.default", "aten.is_nonzero.default"})

ValueKind = Literal["input", "parameter", "buffer", "constant", "intermediate"]


@dataclass(frozen=True, slots=True)
class SourceLine:
    """The line of the user's model that an operator came from."""

    file: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.text}"


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor of the graph. An in-place operator makes a new value of the same storage.

    Args:
        index: position in ``Graph.values``.
        shape: sizes.
        dtype: name as in ``tensors.DTYPE_BYTES``.
        kind: where it comes from.
        names: all state-dict names of a parameter or buffer (several when tied), or the input's name.
        storage: number of the storage that it lives in: views and in-place results share their base's.
    """

    index: int
    shape: tuple[int, ...]
    dtype: str
    kind: ValueKind
    names: tuple[str, ...] = ()
    storage: int = -1


@dataclass(frozen=True, slots=True)
class Node:
    """One ATen operator.

    Args:
        index: position in ``Graph.nodes``.
        op: full name, e.g. ``"aten.convolution.default"``.
        args: the operator's arguments by its schema's names, defaults filled in; tensors stand as ``Ref``.
        outputs: indices of the values that it made.
        module: path of the innermost module that ran it (``""``: the model itself).
        source: the user's line.
    """

    index: int
    op: str
    args: Mapping[str, Any]
    outputs: tuple[int, ...]
    module: str
    source: SourceLine | None


@dataclass(frozen=True, slots=True)
class Ref:
    """A reference to ``Graph.values[index]`` inside a node's arguments."""

    index: int


@dataclass(frozen=True)
class Graph:
    """A recording of one forward pass, in execution order.

    Args:
        nodes: the operators.
        values: all tensors.
        inputs: indices of the example inputs.
        outputs: indices of the tensors that the model returned.
        device_kind: how it was recorded: ``"meta"``, ``"fake"`` or ``"real"``.
        model_class: the recorded model's class name.
        notes: what a reader should know (why meta was not possible, say).
        contents: the numbers in small constant tensors that the forward made, by value.
    """

    nodes: tuple[Node, ...]
    values: tuple[Value, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    device_kind: Literal["meta", "fake", "real"]
    model_class: str
    notes: tuple[str, ...] = ()
    contents: Mapping[int, Any] = field(default_factory=dict, repr=False)

    def value_of(self, name: str) -> Value:
        """Return the value of the parameter or buffer ``name``."""
        for value in self.values:
            if name in value.names:
                return value
        raise KeyError(name)


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """A dimension of a parameter or buffer that a channel group covers.

    Args:
        name: state-dict name (the first, when tied).
        dim: the dimension.
        indices: which indices of the dimension belong to which unit: ``(units, multiplicity)``, int64.
        kind: ``"out"`` when the dimension makes the channels (weight dim 0 of a convolution), ``"in"`` when it consumes
            them, ``"per_channel"`` for biases, norms and gates.
        module: path of the module that owns it.
    """

    name: str
    dim: int
    indices: NDArray[np.int64]
    kind: Literal["out", "in", "per_channel"]
    module: str


@dataclass(frozen=True, slots=True, eq=False)
class ChannelGroup:
    """Units that may be removed independently of each other; each unit spans all members.

    Args:
        name: stable name: the module path of the first member that makes the channels.
        units: how many units there are.
        members: every dimension that shrinks when a unit is removed.
        exact: whether removing units equals masking them; not where a layer or group norm takes statistics over them.
    """

    name: str
    units: int
    members: tuple[Member, ...]
    exact: bool = True


@dataclass(frozen=True, slots=True)
class Frozen:
    """A dimension (or a part of one) that cannot be touched, and why."""

    name: str
    dim: int
    count: int
    reason: str
    source: SourceLine | None


@dataclass(frozen=True)
class Coupling:
    """What belongs together.

    Args:
        graph: the recording that it was derived from.
        groups: the prunable channel groups.
        frozen: what cannot be touched, with reasons.
        labels: for every value, one array of class numbers per dimension, or ``None`` for a dimension that no
            parameter owns (batch, space). Equal numbers live and die together.
        unit_classes: per group name, the class number of each unit: ``(units,)``.
        also: further example inputs that the recording ran on, one after the other.
        prefer: what attention was to lose where the forward leaves the choice, see ``analyse``.
    """

    graph: Graph
    groups: tuple[ChannelGroup, ...]
    frozen: tuple[Frozen, ...]
    labels: tuple[tuple[NDArray[np.int64] | None, ...], ...] = field(repr=False)
    unit_classes: Mapping[str, NDArray[np.int64]] = field(repr=False)
    also: tuple[Any, ...] = field(default=(), repr=False)
    prefer: Literal["heads", "head_dim"] = "heads"

    def group(self, name: str) -> ChannelGroup:
        return self._by_name[name]

    @cached_property
    def flat_labels(self) -> tuple[NDArray[np.int64], NDArray[np.int64], tuple[tuple[int, int, int], ...]]:
        """All different arrays of ``labels`` end to end, where each starts, and which one each dimension has.

        The last is ``(value, dimension, number of the array)``; dimensions without labels or of size 0 are left out.
        """
        numbers: dict[int, int] = {}
        arrays: list[NDArray[np.int64]] = []
        dimensions: list[tuple[int, int, int]] = []
        for index, dims in enumerate(self.labels):
            for dim, classes in enumerate(dims):
                if classes is not None and len(classes):
                    number = numbers.setdefault(id(classes), len(arrays))
                    if number == len(arrays):
                        arrays.append(classes)
                    dimensions.append((index, dim, number))
        lengths = [len(classes) for classes in arrays]
        starts = np.cumsum([0, *lengths[:-1]], dtype=np.int64)
        return np.concatenate(arrays or [np.zeros(0, dtype=np.int64)]), starts, tuple(dimensions)

    @cached_property
    def _by_name(self) -> dict[str, ChannelGroup]:
        return {group.name: group for group in self.groups}
