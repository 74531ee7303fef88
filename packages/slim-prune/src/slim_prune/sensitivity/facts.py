"""What is known of a recording before any channels go: functions, arguments, who uses what, what cannot be run alone.

Worked out once for inputs of one shape; every program for them is compiled from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from slim_core.graph.rules.base import refs_of
from slim_core.graph.types import Coupling, Graph, Node, Ref


class NotReplayableError(Exception):
    """A model, or a group of it, cannot be computed in part; the text says why."""


@dataclass(frozen=True)
class Facts:
    """A recording with what programs need to know of it.

    Args:
        coupling: the analysis.
        refs: of each operator, the values that it takes.
        functions: of each operator, what is called; ``None`` where there is none.
        changed: of each operator, the values that it changes in place.
        users: of each value, the operators that take it; the end of the forward counts as one.
        made: of each value that an operator makes, which one.
        known: of each value, the operator at which the whole model has it (-1: from the start).
        obstacles: operators that cannot be run by themselves, and why.
        shared: operators that change a tensor which is later seen through another one: all values that live there.
        steps: operators made ready to run, as programs come to need them.
    """

    coupling: Coupling
    refs: tuple[tuple[int, ...], ...]
    functions: tuple[Any, ...]
    changed: tuple[tuple[int, ...], ...]
    users: Mapping[int, tuple[int, ...]]
    made: Mapping[int, int]
    known: Mapping[int, int]
    obstacles: Mapping[int, str] = field(default_factory=dict)
    shared: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    steps: dict[int, Any] = field(default_factory=dict)

    @property
    def graph(self) -> Graph:
        return self.coupling.graph


def facts_of(coupling: Coupling) -> Facts:
    """Return what is known of a coupling's recording."""
    graph = coupling.graph
    refs = tuple(tuple(ref.index for ref in refs_of(node.args.values())) for node in graph.nodes)
    functions = tuple(function_of(node.op) for node in graph.nodes)
    changed = tuple(_changed(node, function) for node, function in zip(graph.nodes, functions, strict=True))
    users: dict[int, list[int]] = {}
    for node, taken in zip(graph.nodes, refs, strict=True):
        for index in taken:
            users.setdefault(index, []).append(node.index)
    for index in graph.outputs:
        users.setdefault(index, []).append(len(graph.nodes))
    made = {index: node.index for node in graph.nodes for index in node.outputs}
    known = {value.index: made.get(value.index, -1) for value in graph.values}
    for value in graph.values:
        if value.kind == "constant" and value.index in users:
            known[value.index] = users[value.index][0]
    frozen = {index: tuple(numbers) for index, numbers in users.items()}
    storages: dict[int, list[int]] = {}
    for value in graph.values:
        storages.setdefault(value.storage, []).append(value.index)
    obstacles: dict[int, str] = {}
    shared: dict[int, tuple[int, ...]] = {}
    for node, function, changes in zip(graph.nodes, functions, changed, strict=True):
        reason = _obstacle(node, function)
        for index in changes:
            there = storages[graph.values[index].storage]
            others = (other for other in there if other != index)
            if any(frozen.get(o, (-1,))[-1] > node.index and made.get(o, -1) < node.index for o in others):
                shared[node.index] = tuple(there)
        if reason:
            obstacles[node.index] = reason
    return Facts(coupling, refs, functions, changed, frozen, made, known, obstacles, shared)


def function_of(op: str) -> Any:
    """Return the operator of a recorded name, ``aten.conv2d.default``; ``None`` where there is none."""
    target: Any = torch.ops
    for part in op.split("."):
        target = getattr(target, part, None)
        if target is None:
            return None
    return target


def _changed(node: Node, function: Any) -> tuple[int, ...]:
    """Return the values that an operator changes in place."""
    found: list[int] = []
    for argument in function._schema.arguments if function is not None else ():
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = node.args.get(argument.name)
            found += [item.index for item in (value if isinstance(value, tuple) else (value,)) if isinstance(item, Ref)]
    return tuple(found)


def _obstacle(node: Node, function: Any) -> str:
    if function is None:
        return f"operator {node.op} cannot be called by its name"
    if "out" in node.args:
        return f"{node.op} writes into a tensor that it is given"
    if torch.Tag.nondeterministic_seeded in function.tags and not _silent(node.args):
        return f"{node.op} is random"
    return ""


def _silent(args: Mapping[str, Any]) -> bool:
    """Return whether an operator that may be random is not, here."""
    off = args.get("train") is False or args.get("training") is False
    return off or args.get("dropout_p") == 0.0 or args.get("p") == 0.0
