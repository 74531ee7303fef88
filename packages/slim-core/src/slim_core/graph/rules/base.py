"""What a coupling rule is, and the context it speaks to. The rules themselves are in the files beside this one.

A label is an integer that stands for one index of one dimension. Every dimension of a tensor carries an array with one
label per index, or ``None`` where its size comes from outside (batch, space). A rule says which labels of an operator's
arguments are equal and which labels its outputs carry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from slim_core.graph.types import READS, Graph, Node, Ref, Value

Labels = NDArray[np.int64]
Dims = tuple[Labels | None, ...]
Preference = Literal["heads", "head_dim"]
Role = Literal["out", "in", "per_channel"]
Rule = Callable[[Node, "Context"], None]


class UnsupportedError(Exception):
    """Raised by a rule for arguments that it cannot handle: everything that the operator touches is frozen."""


@dataclass(frozen=True, slots=True)
class Site:
    """An operator that can be read in several ways: how many, and the labels that depend on the choice."""

    node: int
    options: int
    labels: Labels


class Context:
    """What rules read labels from and write them to.

    Args:
        graph: the recording.
        choices: for operators that can be read in several ways, which reading to take (default: the first).
        prefer: what attention loses where both would do.
    """

    def __init__(self, graph: Graph, choices: Mapping[int, int] | None = None, prefer: Preference = "heads") -> None:
        self.graph = graph
        self.prefer = prefer
        self.node: Node = graph.nodes[0] if graph.nodes else Node(0, "", {}, (), "", None)
        self.count = 0
        self.state_count = 0  # labels below it are those of parameters and buffers
        self.equal: list[tuple[Labels, Labels]] = []
        self.frozen: list[tuple[Labels, str, int]] = []  # labels, reason, node
        self.structural: list[Labels] = []
        self.statistics: list[Labels] = []
        self.sites: dict[int, Site] = {}
        self.roles: dict[tuple[int, int], Role] = {}
        self.used: set[int] = set()
        self.live = live_nodes(graph)
        self._choices = choices or {}
        self._dims: list[Dims | None] = [None] * len(graph.values)
        self._zero: list[tuple[bool, ...] | None] = [None] * len(graph.values)
        self._written: set[int] = set()  # storages that in-place operators may have made nonzero
        self._consumers: dict[int, list[Node]] | None = None
        self._makers: dict[int, Node] | None = None

    # --- reading -----------------------------------------------------------------------------------------------

    def value(self, ref: Ref) -> Value:
        return self.graph.values[ref.index]

    def shape(self, ref: Ref) -> tuple[int, ...]:
        return self.graph.values[ref.index].shape

    def dims(self, ref: Ref) -> Dims:
        """Return the labels of every dimension of an argument."""
        self.used.add(ref.index)
        dims = self._dims[ref.index]
        if dims is None:
            dims = self._dims[ref.index] = self._leaf(self.graph.values[ref.index])
        return dims

    def zero(self, ref: Ref) -> tuple[bool, ...]:
        """Return for each dimension whether the tensor is zero at indices whose class is masked."""
        flags = self._zero[ref.index]
        if flags is None:
            value = self.graph.values[ref.index]
            is_state = value.kind in ("parameter", "buffer")
            flags = self._zero[ref.index] = (is_state,) * len(value.shape)
        if self.graph.values[ref.index].storage in self._written:
            return (False,) * len(flags)
        return flags

    def consumers(self, index: int) -> Sequence[Node]:
        """Return the operators that take value ``index``."""
        if self._consumers is None:
            self._consumers = {}
            for node in self.graph.nodes:
                for ref in refs_of(node.args.values()):
                    self._consumers.setdefault(ref.index, []).append(node)
        return self._consumers.get(index, ())

    def maker(self, index: int) -> Node | None:
        """Return the operator that made value ``index``."""
        if self._makers is None:
            self._makers = {output: node for node in self.graph.nodes for output in node.outputs}
        return self._makers.get(index)

    # --- writing -----------------------------------------------------------------------------------------------

    def set(self, dims: Sequence[Labels | None], zero: Sequence[bool] | None = None, output: int = 0) -> None:
        """Give an output its labels, and say along which dimensions masked indices are zero (default: none)."""
        index = self.node.outputs[output]
        shape = self.graph.values[index].shape
        if len(dims) != len(shape) or any(d is not None and len(d) != n for d, n in zip(dims, shape, strict=True)):
            sizes = [None if d is None else len(d) for d in dims]
            raise UnsupportedError(f"rule of {self.node.op} gives sizes {sizes} to an output of shape {list(shape)}")
        self._dims[index] = tuple(dims)
        self._zero[index] = tuple(zero) if zero is not None else (False,) * len(shape)

    def wrote(self, ref: Ref, zero: bool) -> None:
        """Say that an in-place operator wrote to the storage of ``ref``."""
        if not zero:
            self._written.add(self.graph.values[ref.index].storage)

    def fresh(self, size: int) -> Labels:
        """Return new labels, for a dimension whose entries are all alike."""
        labels = np.arange(self.count, self.count + size, dtype=np.int64)
        self.count += size
        return labels

    def tie(self, first: Labels | None, second: Labels | None) -> Labels | None:
        """Say that two dimensions live and die together, index by index, and return the labels of both."""
        if first is second:
            return first
        if first is None or second is None:
            self.freeze(first if second is None else second, "meets a dimension whose size comes from outside")
            return None
        if len(first) != len(second):
            raise UnsupportedError(f"{self.node.op} meets dimensions of sizes {len(first)} and {len(second)}")
        self.equal.append((first, second))
        return first

    def tie_columns(self, labels: Labels | None, rows: int) -> Labels | None:
        """Tie equal positions of ``rows`` equal parts, and return the labels of one part."""
        if labels is None:
            return None
        table = labels.reshape(rows, -1)
        first: Labels = table[0]
        for row in table[1:]:
            self.tie(first, row)
        return first

    def tie_rows(self, labels: Labels | None, rows: int) -> Labels | None:
        """Tie everything inside each of ``rows`` equal parts, and return one label per part."""
        if labels is None:
            return None
        table = labels.reshape(rows, -1)
        if table.shape[1] > 1:
            self.equal.append((np.repeat(table[:, 0], table.shape[1] - 1), table[:, 1:].ravel()))
        return np.ascontiguousarray(table[:, 0])

    def freeze(self, labels: Labels | None, reason: str) -> None:
        """Say that these indices cannot be removed."""
        if labels is not None and len(labels):
            self.frozen.append((labels, reason, self.node.index))

    def protect(self, labels: Labels | None, reason: str) -> None:
        """Say that the result would be another without these indices: they are frozen, if anything uses the result."""
        if self.node.index in self.live:
            self.freeze(labels, reason)

    def fix(self, labels: Labels | None) -> None:
        """Freeze what is no channel at all (a kernel's height and width): it is not reported."""
        if labels is not None and len(labels):
            self.structural.append(labels)

    def takes_statistics(self, labels: Labels | None) -> None:
        """Say that removing these indices changes a statistic, so that removing is not the same as masking."""
        if labels is not None and self.node.index in self.live:
            self.statistics.append(labels)

    def contract(self, labels: Labels | None, zero: bool, what: str) -> None:
        """Say that the operator sums over these indices. That is only right where masked terms are zero."""
        if not zero:
            self.protect(labels, f"{what} over channels that are not zero when masked")

    def role(self, ref: Ref, dim: int, role: Role) -> None:
        """Say what a parameter's dimension does with channels; the first word counts."""
        self.roles.setdefault((ref.index, dim % max(len(self.shape(ref)), 1)), role)

    def choose(self, options: int, labels: Labels) -> int:
        """Return which of several readings to take. Another is tried when this one leaves ``labels`` frozen."""
        if options < 2:
            return 0
        self.sites[self.node.index] = Site(self.node.index, options, labels)
        return min(self._choices.get(self.node.index, 0), options - 1)

    def freeze_all(self, reason: str) -> None:
        """Freeze everything that the current operator touches; its outputs belong to nobody."""
        for ref in refs_of(self.node.args.values()):
            for labels in self.dims(ref):
                self.freeze(labels, reason)
        for position, index in enumerate(self.node.outputs):
            self.set((None,) * len(self.graph.values[index].shape), output=position)

    def of_state(self, labels: Labels | None) -> bool:
        """Return whether labels are those of a parameter or buffer, not of entries that the forward made."""
        return labels is not None and len(labels) > 0 and int(labels[0]) < self.state_count

    # --- for dims.py -------------------------------------------------------------------------------------------

    def labels_of(self, index: int) -> Dims:
        """Return the labels of a value, whoever made it, without counting it as used."""
        dims = self._dims[index]
        if dims is None:
            dims = self._dims[index] = self._leaf(self.graph.values[index])
        return dims

    def _leaf(self, value: Value) -> Dims:
        if value.kind in ("parameter", "buffer"):
            return tuple(self.fresh(size) if size > 1 else None for size in value.shape)
        return (None,) * len(value.shape)


def live_nodes(graph: Graph) -> set[int]:
    """Return the operators that the outputs or decisions of the forward depend on, also through in-place writes."""
    storages = {graph.values[index].storage for index in graph.outputs}
    live: set[int] = set()
    for node in reversed(graph.nodes):
        if node.op in READS or any(graph.values[index].storage in storages for index in node.outputs):
            live.add(node.index)
            storages.update(graph.values[ref.index].storage for ref in refs_of(node.args.values()))
    return live


def refs_of(value: Any) -> list[Ref]:
    """Return the tensor references inside an operator's arguments, in order."""
    if type(value) is Ref:
        return [value]
    found: list[Ref] = []
    if type(value) is not str and hasattr(value, "__iter__"):
        for item in value:
            kind = type(item)
            if kind is Ref:
                found.append(item)
            elif kind is tuple and item:
                found += refs_of(item)
    return found
