"""What a graph looks like when groups keep so many units: the core's ``resize_graph``, fast for thousands of choices.

An allocation asks for one choice after another, and which units stay does not change a size. What each group takes from
each dimension is therefore counted once. Not here: costs (``problem.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from slim_core.graph import resize_graph
from slim_core.graph.resize import regrouped
from slim_core.graph.types import Coupling, Graph, Node, Value

_FEW = 2  # counting costs as much as some three choices


class Resizer:
    """Resizes one graph again and again. The first choices are resized by the core; most plans ask for no more.

    Args:
        coupling: the analysis whose graph is resized.
        few: how many choices the core resizes before counting pays.
    """

    def __init__(self, coupling: Coupling, *, few: int = _FEW) -> None:
        self._coupling = coupling
        self._graph = coupling.graph
        self._few = few
        self._values: dict[tuple[int, tuple[int, ...]], Value] = {}
        self._losses: dict[str, list[tuple[int, list[int]]]] = {}
        self._uses: dict[int, list[tuple[int, int]]] = {}
        self._convolutions = [
            node.index for node in coupling.graph.nodes if node.args.get("groups", 1) != 1 and "conv" in node.op
        ]

    def graph(self, counts: Mapping[str, int]) -> Graph:
        """Return the graph with the shapes that are left when groups keep so many units each.

        It equals ``resize_graph`` with any so many units kept. Groups that are not named stay whole.
        """
        if self._few > 0:
            self._few -= 1
            return resize_graph(self._coupling, {name: np.arange(count) for name, count in counts.items()})
        if not self._uses:
            self._losses, self._uses = _losses(self._coupling)
        lost: dict[int, int] = {}
        for name, count in counts.items():
            for number, losses in self._losses[name]:
                if losses[count]:
                    lost[number] = lost.get(number, 0) + losses[count]
        if not lost:
            return self._graph
        sizes: dict[int, list[int]] = {}
        for number, gone in lost.items():
            for index, dim in self._uses[number]:
                if index not in sizes:
                    sizes[index] = list(self._graph.values[index].shape)
                sizes[index][dim] -= gone
        values = list(self._graph.values)
        for index, size in sizes.items():
            values[index] = self._value(index, tuple(size))
        return replace(self._graph, values=tuple(values), nodes=self._nodes(values))

    def _nodes(self, values: list[Value]) -> tuple[Node, ...]:
        if not self._convolutions:
            return self._graph.nodes
        shapes = [value.shape for value in values]
        nodes = list(self._graph.nodes)
        for index in self._convolutions:
            nodes[index] = regrouped(nodes[index], shapes)
        return tuple(nodes)

    def _value(self, index: int, shape: tuple[int, ...]) -> Value:
        found = self._values.get((index, shape))
        if found is None:
            whole = self._graph.values[index]
            found = Value(index, shape, whole.dtype, whole.kind, whole.names, whole.storage)
            self._values[index, shape] = found
        return found


def _losses(coupling: Coupling) -> tuple[dict[str, list[tuple[int, list[int]]]], dict[int, list[tuple[int, int]]]]:
    """Return what each group takes from each array of labels by kept units, and the dimensions with that array."""
    labels, starts, dimensions = coupling.flat_labels
    uses: dict[int, list[tuple[int, int]]] = {}
    for index, dim, number in dimensions:
        uses.setdefault(number, []).append((index, dim))
    losses: dict[str, list[tuple[int, list[int]]]] = {name: [] for name in coupling.unit_classes}
    if len(labels) == 0:
        return losses, uses
    names = list(coupling.unit_classes)
    most = max([int(labels.max()), *(int(classes.max()) for classes in coupling.unit_classes.values() if len(classes))])
    group_of = np.full(most + 1, -1, dtype=np.int64)
    unit_of = np.zeros(most + 1, dtype=np.int64)
    for number, name in enumerate(names):
        classes = coupling.unit_classes[name]
        group_of[classes], unit_of[classes] = number, np.arange(len(classes))
    ends = [*starts[1:].tolist(), len(labels)]
    for number, (start, end) in enumerate(zip(starts.tolist(), ends, strict=True)):
        found: NDArray[np.int64] = labels[start:end]
        found = found[(found >= 0) & (found <= most)]
        found = found[group_of[found] >= 0]
        for group in np.unique(group_of[found]).tolist():
            units = len(coupling.unit_classes[names[group]])
            per_unit = np.bincount(unit_of[found[group_of[found] == group]], minlength=units)
            gone = np.concatenate([np.cumsum(per_unit[::-1])[::-1], [0]])  # by kept units: those behind them are gone
            losses[names[group]].append((number, gone.tolist()))
    return losses, uses
