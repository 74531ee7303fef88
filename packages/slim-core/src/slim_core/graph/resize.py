"""``resize_graph``: what a graph looks like after units are gone, from the labels alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from slim_core.graph.types import Coupling, Graph, Node, Ref, Value

Kept = Mapping[str, NDArray[np.int64]]


def resize_graph(coupling: Coupling, kept: Kept) -> Graph:
    """Return the graph with the shapes after keeping ``kept`` (kept unit numbers by group name). Nothing is run.

    Sizes that stand in arguments (``view``) are not updated; the groups of convolutions are.
    """
    sizes = new_sizes(coupling, kept)
    values = tuple(
        value if size is value.shape else Value(value.index, size, value.dtype, value.kind, value.names, value.storage)
        for value, size in zip(coupling.graph.values, sizes, strict=True)
    )
    nodes = tuple(regrouped(node, sizes) for node in coupling.graph.nodes)
    return replace(coupling.graph, values=values, nodes=nodes)


def new_sizes(coupling: Coupling, kept: Kept) -> list[tuple[int, ...]]:
    """Return the shape of every value after keeping ``kept``."""
    from slim_core.graph.shrink import removed_classes

    gone = removed_classes(coupling, kept)
    graph = coupling.graph
    if len(gone) == 0:
        return [value.shape for value in graph.values]
    shapes = [value.shape for value in graph.values]
    labels, starts, dimensions = coupling.flat_labels
    if len(labels) == 0:
        return shapes
    mask = np.zeros(max(int(labels.max()), int(gone.max())) + 1, dtype=np.bool_)
    mask[gone] = True
    lost = np.add.reduceat(mask[labels], starts, dtype=np.int64).tolist()
    for index, dim, number in dimensions:
        if lost[number]:
            shape = shapes[index]
            shapes[index] = (*shape[:dim], shape[dim] - lost[number], *shape[dim + 1 :])
    return shapes


def regrouped(node: Node, sizes: Sequence[tuple[int, ...]]) -> Node:
    """Return a convolution with the number of groups that it has at these sizes of values; other nodes as they are."""
    groups = node.args.get("groups", 1)
    weight = node.args.get("weight")
    if groups == 1 or not isinstance(weight, Ref) or "conv" not in node.op:
        return node
    shape = sizes[weight.index]
    if node.args.get("transposed", "transpose" in node.op):
        now = sizes[node.outputs[0]][-len(shape) + 1] // shape[1]
    else:
        x = node.args["input"] if "input" in node.args else node.args["self"]
        now = sizes[x.index][-len(shape) + 1] // shape[1]
    return node if now == groups else replace(node, args={**node.args, "groups": now})
