"""Where a channel group's activations are found in the recorded forward, and reading them while the model runs.

A tap is a tensor of the recording with a dimension that carries units of a group. Taps are found by what the operators
compute and which labels their results carry, so functional activations and weights outside modules are no exception.
Not here: what is counted (``activation.py``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from slim_core.errors import ModelError, SlimError
from slim_core.graph.isolate import unwrap
from slim_core.graph.record import Attempt, Recorder
from slim_core.graph.rules.base import refs_of
from slim_core.graph.source import first_line
from slim_core.graph.types import Coupling, Graph, Node
from slim_core.workload import tensors_of

#: Operators after which a channel is on or off: what counting zeros is meant for. In-place forms have these names too.
RECTIFIERS = frozenset(
    {
        "relu", "relu6", "hardtanh", "clamp", "clamp_min", "threshold", "hardswish", "silu", "gelu", "mish", "elu",
        "celu", "selu", "leaky_relu", "prelu", "_prelu_kernel", "rrelu", "rrelu_with_noise", "softplus", "glu",
    }
)  # fmt: skip
#: Operators that squash: a gate of a squeeze-and-excitation block says how much passes, not what.
SQUASHERS = frozenset({"sigmoid", "tanh", "hardsigmoid", "log_sigmoid", "softsign"})


@dataclass(frozen=True, slots=True, eq=False)
class Tap:
    """A tensor that carries units of a group.

    Args:
        key: which operator makes it; see :func:`_Keys`.
        output: which of the operator's results it is.
        dim: the dimension that carries the units.
        size: the dimension's size.
        indices: the indices that belong to units of the group.
        units: the unit that each of them belongs to.
        op: the operator's name.
    """

    key: tuple[Any, ...]
    output: int
    dim: int
    size: int
    indices: NDArray[np.int64]
    units: NDArray[np.int64]
    op: str


class _Keys:
    """Names operators so that another run of the same forward has the same names, as far as it goes the same way.

    By module, line of the user's code, operator, and how often these came up before.
    """

    def __init__(self) -> None:
        self._seen: Counter[tuple[Any, ...]] = Counter()

    def of(self, node: Node) -> tuple[Any, ...]:
        line = (node.source.file, node.source.line) if node.source is not None else None
        place = (node.module, line, node.op)
        self._seen[place] += 1
        return (*place, self._seen[place])


def find_taps(coupling: Coupling) -> dict[str, list[Tap]]:
    """Return the taps of every group, by name: after its rectifiers, else its squashers, else where it is made.

    A group without any of these has none. Where a rectifier's result feeds another operator in place, both count.
    """
    graph = coupling.graph
    keys = _Keys()
    unit_of, group_of = _units(coupling)
    found: dict[str, list[list[Tap]]] = {group.name: [[], [], []] for group in coupling.groups}
    names = [group.name for group in coupling.groups]
    makers = {(m.name, name) for name, group in zip(names, coupling.groups, strict=True)
              for m in group.members if m.kind == "out"}  # fmt: skip
    for node in graph.nodes:
        key = keys.of(node)
        rank = 0 if is_rectifier(node.op) else 1 if _short(node.op) in SQUASHERS else 2
        weights = _weights_of(node, graph) if rank == 2 else set()
        if rank == 2 and not weights:
            continue
        for position, index in enumerate(node.outputs):
            for number, tap in _taps_of(coupling, index, unit_of, group_of, key, position, node.op):
                name = names[number]
                if rank < 2 or any((weight, name) in makers for weight in weights):
                    found[name][rank].append(tap)
    return {name: next((taps for taps in ranks if taps), []) for name, ranks in found.items()}


def is_rectifier(op: str) -> bool:
    """Return whether an operator, by its full name, is one of :data:`RECTIFIERS`."""
    return _short(op) in RECTIFIERS


def _short(op: str) -> str:
    """``"aten.relu_.default"`` -> ``"relu"``."""
    return op.split(".")[1].rstrip("_") if "." in op else op


def _units(coupling: Coupling) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return for every class its unit and the number of its group (-1: none)."""
    flat, _, _ = coupling.flat_labels
    count = int(flat.max()) + 1 if len(flat) else 0
    for units in coupling.unit_classes.values():
        count = max(count, int(units.max()) + 1)
    unit_of, group_of = np.zeros(count, dtype=np.int64), np.full(count, -1, dtype=np.int64)
    for number, group in enumerate(coupling.groups):
        classes = coupling.unit_classes[group.name]
        unit_of[classes], group_of[classes] = np.arange(len(classes)), number
    return unit_of, group_of


def _weights_of(node: Node, graph: Graph) -> set[str]:
    values = [graph.values[ref.index] for ref in refs_of(node.args.values())]
    return {name for value in values if value.kind in ("parameter", "buffer") for name in value.names}


def _taps_of(
    coupling: Coupling,
    index: int,
    unit_of: NDArray[np.int64],
    group_of: NDArray[np.int64],
    key: tuple[Any, ...],
    position: int,
    op: str,
) -> list[tuple[int, Tap]]:
    """Return the taps at one value, with their groups' numbers. A group that two dimensions carry has none there."""
    shape = coupling.graph.values[index].shape
    taps: list[tuple[int, Tap]] = []
    for dim, classes in enumerate(coupling.labels[index]):
        if classes is None or not len(classes):
            continue
        groups = group_of[classes]
        for number in np.unique(groups[groups >= 0]).tolist():
            places = (groups == number).nonzero()[0]
            taps.append((number, Tap(key, position, dim, shape[dim], places, unit_of[classes[places]], op)))
    counts = Counter(number for number, _ in taps)
    return [(number, tap) for number, tap in taps if counts[number] == 1]


Reader = Callable[[Tap, Tensor], None]


def read_taps(
    model: nn.Module, inputs: Any, taps: Mapping[tuple[Any, ...], list[Tap]], read: Reader, what: str
) -> None:
    """Run ``model`` on ``inputs`` without leaving a trace in it, and call ``read`` with each tap's tensor.

    Args:
        model: the user's model.
        inputs: of one call.
        taps: by key.
        read: called while the model runs; must not keep the tensor.
        what: for errors.

    Raises:
        ModelError: the forward fails.
    """
    keys = _Keys()

    def observe(node: Node, recorder: Recorder) -> None:
        wanted = taps.get(keys.of(node))
        if not wanted:
            return
        results = tensors_of(recorder.result)
        for tap in wanted:
            tensor = results[tap.output]
            if tensor.dim() <= tap.dim or tensor.shape[tap.dim] != tap.size:
                raise ModelError(
                    f"{what}: {tap.op} has shape {tuple(tensor.shape)} on the data, and dimension {tap.dim} had size "
                    f"{tap.size} on the example inputs",
                    where=str(node.source) if node.source else None,
                    hint="give example inputs that are like the data",
                )
            read(tap, tensor)

    attempt = Attempt(unwrap(model), inputs, "real", observer=observe)
    finished = attempt.run() is not None
    attempt.recorder = None  # the two hold each other, and many batches may follow
    if not finished:
        error = attempt.error or RuntimeError("no forward was run")
        if isinstance(error, SlimError):
            raise error
        raise ModelError(
            f"{what}: the forward of {type(model).__name__} fails on the data: {first_line(error)}",
            hint="check that the task splits batches into the inputs that the model takes",
        ) from error
