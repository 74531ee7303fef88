"""``resize_graph``: what a graph looks like after units are gone, from the labels alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from slim_core.graph.types import Coupling, Graph, Node, Ref

Kept = Mapping[str, NDArray[np.int64]]


def resize_graph(coupling: Coupling, kept: Kept) -> Graph:
    """Return the graph with the shapes after keeping ``kept`` (kept unit numbers by group name). Nothing is run.

    Sizes that stand in arguments (``view``) are not updated; the groups of convolutions are.
    """
    sizes = new_sizes(coupling, kept)
    values = tuple(value if sizes[value.index] == value.shape else replace(value, shape=sizes[value.index])
                   for value in coupling.graph.values)  # fmt: skip
    nodes = tuple(_regrouped(node, sizes) for node in coupling.graph.nodes)
    return replace(coupling.graph, values=values, nodes=nodes)


def new_sizes(coupling: Coupling, kept: Kept) -> list[tuple[int, ...]]:
    """Return the shape of every value after keeping ``kept``."""
    from slim_core.graph.shrink import removed_classes

    gone = removed_classes(coupling, kept)
    graph = coupling.graph
    if len(gone) == 0:
        return [value.shape for value in graph.values]
    mask = np.zeros(max(_top(coupling), int(gone.max())) + 1, dtype=np.bool_)
    mask[gone] = True
    lost: dict[int, int] = {}
    shapes: list[tuple[int, ...]] = []
    for value, dims in zip(graph.values, coupling.labels, strict=True):
        shape = list(value.shape)
        for position, classes in enumerate(dims):
            if classes is not None:
                key = id(classes)
                if key not in lost:
                    lost[key] = int(np.count_nonzero(mask[classes]))
                shape[position] -= lost[key]
        shapes.append(tuple(shape))
    return shapes


def _top(coupling: Coupling) -> int:
    return max((int(c.max()) for dims in coupling.labels for c in dims if c is not None and len(c)), default=0)


def _regrouped(node: Node, sizes: list[tuple[int, ...]]) -> Node:
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
