"""What a recorded forward pass costs: multiply-accumulates, parameters, bytes and peak activation memory.

Everything is read from the graph alone, for the batch that it was recorded with; nothing runs. How an operator's
multiply-accumulates are counted is in ``macs.py``; time is not here (``slim_core.measure``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import Any, ClassVar, Protocol, runtime_checkable

from slim_core.graph.light import is_light
from slim_core.graph.macs import COUNTERS, macs_of
from slim_core.graph.types import Graph, Node, Ref, SourceLine, Value
from slim_core.tensors import DTYPE_BYTES

_OTHER_BYTES = {"complex32": 4, "complex64": 8, "complex128": 16, "uint16": 2, "uint32": 4, "uint64": 8}
_STORED = ("parameter", "buffer", "constant")


@runtime_checkable
class CostModel(Protocol):
    """What a budget bounds. Registered by the name that budgets use."""

    unit: str

    def total(self, graph: Graph) -> float:
        """Return the cost of one forward pass, in ``unit``."""


@dataclass(frozen=True, slots=True)
class NodeCost:
    """One operator.

    Args:
        index: position in ``Graph.nodes``.
        op: the operator's full name.
        module: path of the module that ran it.
        inputs: shapes of the tensors that it takes, in the order of its arguments; parameters and buffers too.
        shape: shape of its first output.
        macs: multiply-accumulates, 0 for operators that are not counted.
        params: parameters that no operator before this one has read.
        param_names: (first) state-dict names of all parameters that it reads.
        activation_bytes: bytes of the new tensors that it makes; 0 for views and in-place operators.
        live_bytes: bytes of the inputs and intermediate tensors that are alive while it runs; see
            ``CostReport.peak_activation_bytes``.
        source: the user's line.
    """

    index: int
    op: str
    module: str
    inputs: tuple[tuple[int, ...], ...]
    shape: tuple[int, ...]
    macs: int
    params: int
    param_names: tuple[str, ...]
    activation_bytes: int
    live_bytes: int
    source: SourceLine | None


@dataclass(frozen=True, slots=True)
class ModuleCost:
    """One module: figures with everything inside it, and its own without its children's.

    Args:
        path: module path; ``""`` is the model.
        depth: how deep it is nested; the model has 0.
        shape: shape of the last tensor that was made inside.
        ops: operators.
        macs: multiply-accumulates.
        params: parameters by their (first) state-dict name; tied ones count once.
        param_bytes: bytes of these parameters.
        activation_bytes: bytes of the tensors made inside.
        peak_activation_bytes: most bytes alive in the whole model while an operator inside runs.
        own_ops: operators that the module runs itself.
        own_macs: multiply-accumulates of these.
        own_params: parameters of the module itself.
    """

    path: str
    depth: int
    shape: tuple[int, ...]
    ops: int
    macs: int
    params: int
    param_bytes: int
    activation_bytes: int
    peak_activation_bytes: int
    own_ops: int
    own_macs: int
    own_params: int


@dataclass(frozen=True, slots=True)
class Uncounted:
    """An operator whose work is unknown to the count and may be large.

    Args:
        op: the operator's full name.
        count: how often it runs.
        modules: where.
        source: the first line that runs it.
    """

    op: str
    count: int
    modules: tuple[str, ...]
    source: SourceLine | None


@dataclass(frozen=True, slots=True)
class CostReport:
    """The cost of one forward pass, for the batch that the graph was recorded with.

    Args:
        macs: multiply-accumulates of convolutions and matrix products; biases, element-wise work, normalization,
            pooling and interpolation are not counted.
        params: parameters; tied ones count once, unused ones count too.
        bytes: bytes of the parameters.
        buffer_bytes: bytes of the buffers.
        peak_activation_bytes: most bytes of inputs and intermediate tensors alive at once, when each is freed
            after its last use; views share their base's memory. Parameters, buffers and scratch memory of kernels are
            not in it.
        nodes: one row per operator, in execution order.
        modules: one row per module, parents before children, in execution order.
        uncounted: operators that may do work which ``macs`` does not contain.
    """

    macs: int
    params: int
    bytes: int
    buffer_bytes: int
    peak_activation_bytes: int
    nodes: tuple[NodeCost, ...]
    modules: tuple[ModuleCost, ...]
    uncounted: tuple[Uncounted, ...]

    def module(self, path: str) -> ModuleCost:
        """Return the row of a module.

        Raises:
            KeyError: no operator ran in it and it owns no parameter.
        """
        for row in self.modules:
            if row.path == path:
                return row
        raise KeyError(path)

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {
            "macs": self.macs,
            "params": self.params,
            "bytes": self.bytes,
            "buffer_bytes": self.buffer_bytes,
            "peak_activation_bytes": self.peak_activation_bytes,
            "nodes": [_plain(row) for row in self.nodes],
            "modules": [_plain(row) for row in self.modules],
            "uncounted": [_plain(row) for row in self.uncounted],
        }


class MacsCost:
    """Multiply-accumulates of the recorded batch."""

    name: ClassVar[str] = "macs"
    unit = "MACs"

    def total(self, graph: Graph) -> float:
        return count_macs(graph)


class ParamsCost:
    """Parameters; tied ones count once."""

    name: ClassVar[str] = "params"
    unit = "parameters"

    def total(self, graph: Graph) -> float:
        return sum(prod(value.shape) for value in graph.values if value.kind == "parameter")


class BytesCost:
    """Bytes of the parameters."""

    name: ClassVar[str] = "bytes"
    unit = "bytes"

    def total(self, graph: Graph) -> float:
        return sum(nbytes(value) for value in graph.values if value.kind == "parameter")


class MemoryCost:
    """Peak bytes of activations for the recorded batch."""

    name: ClassVar[str] = "memory"
    unit = "bytes"

    def total(self, graph: Graph) -> float:
        return peak_activation_bytes(graph)


def cost(graph: Graph) -> CostReport:
    """Count what one forward pass costs, in total, per operator and per module."""
    nodes = tuple(_node_rows(graph))
    return CostReport(
        macs=sum(row.macs for row in nodes),
        params=sum(prod(value.shape) for value in graph.values if value.kind == "parameter"),
        bytes=sum(nbytes(value) for value in graph.values if value.kind == "parameter"),
        buffer_bytes=sum(nbytes(value) for value in graph.values if value.kind == "buffer"),
        peak_activation_bytes=peak_activation_bytes(graph),
        nodes=nodes,
        modules=_module_rows(graph, nodes),
        uncounted=_uncounted(graph),
    )


def count_macs(graph: Graph) -> int:
    """Return the multiply-accumulates of the whole graph: what :func:`cost` gives, without the rows."""
    values = graph.values
    total = 0
    for node in graph.nodes:
        counter = COUNTERS.get(node.op.rsplit(".", 1)[0])
        if counter is not None:
            total += counter(node, values)
    return total


def nbytes(value: Value) -> int:
    """Return the bytes of a tensor's elements."""
    size = DTYPE_BYTES.get(value.dtype) or _OTHER_BYTES.get(value.dtype, 1)  # the 8-bit floats have many names
    return prod(value.shape) * size


def peak_activation_bytes(graph: Graph) -> int:
    """Return the most bytes of inputs and intermediate tensors that are alive at once.

    Inputs belong to the caller and outputs are returned: both live to the end. Everything else dies after its last
    use, however long a variable of the user's forward would keep it.
    """
    return max(_live(graph))


def _live(graph: Graph) -> list[int]:
    """Return the bytes that are alive while each operator runs, and at last those that are left after all of them."""
    values, end = graph.values, len(graph.nodes)
    size, born, dies = _storages(graph), dict.fromkeys(map(_key, _inputs(graph)), 0), dict[int, int]()
    for node in graph.nodes:
        for index in node.outputs:
            key = _key(values[index])
            if key in size:
                born.setdefault(key, node.index)
                dies[key] = node.index
        for ref in refs(node):
            dies[_key(values[ref.index])] = node.index
    for value in (*_inputs(graph), *(values[index] for index in graph.outputs)):
        dies[_key(value)] = end
    change = [0] * (end + 2)
    for key, start in born.items():
        change[start] += size[key]
        change[dies[key] + 1] -= size[key]
    return list(accumulate(change[:-1]))


def refs(node: Node) -> Iterator[Ref]:
    """Yield the tensors among a node's arguments."""
    for argument in node.args.values():
        if isinstance(argument, Ref):
            yield argument
        elif isinstance(argument, tuple):
            yield from _nested(argument)


def _nested(items: Iterable[Any]) -> Iterator[Ref]:
    for item in items:
        if isinstance(item, Ref):
            yield item
        elif isinstance(item, tuple):
            yield from _nested(item)


def _inputs(graph: Graph) -> list[Value]:
    return [graph.values[index] for index in graph.inputs]


def _key(value: Value) -> int:
    # a graph made by hand may leave storages out: then every value has one of its own
    return value.storage if value.storage >= 0 else -1 - value.index


def _storages(graph: Graph) -> dict[int, int]:
    """Return the bytes of every storage of inputs and intermediates: what its first value takes, since views follow."""
    sizes: dict[int, int] = {}
    stored: set[int] = set()
    for value in graph.values:
        key = _key(value)
        if value.kind in _STORED:
            stored.add(key)
        elif key not in sizes and key not in stored:
            sizes[key] = nbytes(value)
    return sizes


def _node_rows(graph: Graph) -> Iterator[NodeCost]:
    values = graph.values
    parameters = {_key(value): prod(value.shape) for value in values if value.kind == "parameter"}
    names = {_key(value): value.names[0] for value in values if value.kind == "parameter" and value.names}
    live = _live(graph)
    sizes, made = _storages(graph), {_key(value) for value in _inputs(graph)}
    unread = dict(parameters)
    for node in graph.nodes:
        outputs = {_key(values[index]) for index in node.outputs}
        taken = [values[ref.index] for ref in refs(node)]
        read = [
            key for key in dict.fromkeys(map(_key, taken)) if key not in outputs
        ]  # a view of a weight reads nothing
        new = [key for key in outputs if key in sizes and key not in made]
        made.update(outputs)
        yield NodeCost(
            index=node.index,
            op=node.op,
            module=node.module,
            inputs=tuple(value.shape for value in taken),
            shape=values[node.outputs[0]].shape if node.outputs else (),
            macs=macs_of(node, values) or 0,
            params=sum(unread.pop(key, 0) for key in read),
            param_names=tuple(names[key] for key in read if key in names),
            activation_bytes=sum(sizes[key] for key in new),
            live_bytes=live[node.index],
            source=node.source,
        )


def _module_rows(graph: Graph, nodes: tuple[NodeCost, ...]) -> tuple[ModuleCost, ...]:
    rows: dict[str, dict[str, Any]] = {}

    def row(path: str) -> dict[str, Any]:
        if path not in rows:
            for parent in _parents(path):
                row(parent)
            rows[path] = dict.fromkeys(
                ("ops", "macs", "params", "param_bytes", "activation_bytes", "own_ops", "own_macs", "own_params"), 0
            ) | {"shape": (), "peak_activation_bytes": 0}
        return rows[path]

    def add(path: str, **amounts: int) -> None:
        for name, amount in amounts.items():
            if f"own_{name}" in row(path):
                rows[path][f"own_{name}"] += amount
            for owner in (*_parents(path), path):
                rows[owner][name] += amount

    row("")
    for node in nodes:
        add(node.module, ops=1, macs=node.macs, activation_bytes=node.activation_bytes)
        for owner in (*_parents(node.module), node.module):
            rows[owner]["shape"] = node.shape
            rows[owner]["peak_activation_bytes"] = max(rows[owner]["peak_activation_bytes"], node.live_bytes)
    for value in graph.values:
        if value.kind == "parameter":
            path = value.names[0].rpartition(".")[0] if value.names else ""
            add(path, params=prod(value.shape), param_bytes=nbytes(value))
    order = sorted(rows, key=_execution_order(rows))
    return tuple(ModuleCost(path=path, depth=_depth(path), **rows[path]) for path in order)


def _parents(path: str) -> list[str]:
    """Return the paths above ``path``, the model first."""
    if not path:
        return []
    parts = path.split(".")
    return ["", *(".".join(parts[:count]) for count in range(1, len(parts)))]


def _depth(path: str) -> int:
    return path.count(".") + 1 if path else 0


def _execution_order(rows: Mapping[str, Any]) -> Any:
    first = {path: position for position, path in enumerate(rows)}
    return lambda path: [first[part] for part in (*_parents(path), path)]


def _uncounted(graph: Graph) -> tuple[Uncounted, ...]:
    found: dict[str, list[Node]] = {}
    for node in graph.nodes:
        if node.op.rsplit(".", 1)[0] not in COUNTERS and not is_light(node.op):
            found.setdefault(node.op, []).append(node)
    return tuple(
        Uncounted(op, len(nodes), tuple(dict.fromkeys(node.module for node in nodes)), nodes[0].source)
        for op, nodes in found.items()
    )


def _plain(row: NodeCost | ModuleCost | Uncounted) -> dict[str, Any]:
    data = {name: getattr(row, name) for name in row.__dataclass_fields__}
    if "source" in data:
        data["source"] = str(data["source"]) if data["source"] else None
    for name in ("shape", "modules", "param_names"):
        if name in data:
            data[name] = list(data[name])
    if "inputs" in data:
        data["inputs"] = [list(shape) for shape in data["inputs"]]
    return data
