"""What of a model must be computed again when some of its channels go: a short program over recorded operators.

The forward of the pruned model is recorded without data and laid beside the recording of the whole model, operator by
operator. What only loses channels (a convolution that makes them, its norm, its activation) is *sliced*: the whole
model's values serve, without the channels that are gone. What mixes channels (the next convolution) is computed again
from sliced values and sliced weights, and so is everything behind it. Nothing else runs.

Here: compiling and running such programs. Not here: where the whole model's values come from (``capture.py``), what is
measured (``engine.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slim_core.graph.rules.base import refs_of
from slim_core.graph.shrink import removed_classes
from slim_core.graph.types import Coupling, Graph, Node, Ref
from slim_prune.sensitivity.separable import channelwise, same_arguments

Ints = NDArray[np.int64]
#: dimension -> indices that stay
Slices = Mapping[int, Ints]

_STATE = ("parameter", "buffer")


class NotReplayableError(Exception):
    """A model, or a group of it, cannot be computed in part; the text says why."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A value of the whole model that a program starts from, and what stays of it."""

    value: int
    slices: Slices

    def bytes(self, graph: Graph) -> int:
        """Return the size of the whole value."""
        value = graph.values[self.value]
        return int(np.prod(value.shape, dtype=np.int64)) * int(getattr(torch, value.dtype).itemsize)


@dataclass(slots=True)
class Step:
    """One operator: its function, its arguments with places for tensors, where its results go, what is done with."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    outputs: tuple[int, ...]
    free: tuple[int, ...] = ()


@dataclass(slots=True)
class Program:
    """What to compute for one number of kept channels.

    Args:
        steps: the operators, in order.
        wanted: values of the whole model that it starts from.
        state: sliced parameters and buffers, by number of the value.
        outputs: numbers of the values that the model returns.
        share: how much of the recorded operators it runs, from 0 to 1.
    """

    steps: list[Step]
    wanted: tuple[Wanted, ...]
    state: dict[int, Tensor]
    outputs: tuple[int, ...]
    share: float
    last: int = field(default=-1)

    def run(self, whole: Mapping[int, Tensor]) -> list[Tensor]:
        """Return the pruned model's output tensors.

        Args:
            whole: the values that it starts from, by number, as the whole model computed them.
        """
        values: dict[int, Tensor] = dict(self.state)
        for item in self.wanted:
            values[item.value] = taken(whole[item.value], item.slices)
        for step in self.steps:
            arguments = [_filled(item, values) for item in step.arguments]
            keywords = {name: _filled(item, values) for name, item in step.keywords.items()}
            result = step.function(*arguments, **keywords)
            if isinstance(result, Tensor):
                values[step.outputs[0]] = result
            else:
                for index, tensor in zip(step.outputs, _flat(result), strict=True):
                    values[index] = tensor
            for index in step.free:
                del values[index]
        return [values[index] for index in self.outputs]


def compile_program(
    coupling: Coupling, pruned: Graph, kept: Mapping[str, Ints], state: Mapping[str, Tensor], device: torch.device
) -> Program:
    """Return what must run to know the output of the model that keeps ``kept``.

    Args:
        coupling: the analysis of the whole model, with inputs of the very shapes that it will be run on.
        pruned: the recording of the pruned model with the same inputs.
        kept: kept unit numbers by group name.
        state: parameters and buffers by name.
        device: where tensors are made that the forward makes.

    Raises:
        NotReplayableError: the recordings do not lie side by side, or hold something that cannot be run by itself.
    """
    whole = coupling.graph
    _check_aligned(whole, pruned)
    slices = _slices(coupling, removed_classes(coupling, kept))
    _check_sizes(whole, pruned, slices)
    dirty: set[int] = set()  # values that must be computed again
    nodes: list[Node] = []
    for before, after in zip(whole.nodes, pruned.nodes, strict=True):
        refs = [ref.index for ref in refs_of(before.args.values())]
        touched = any(index in slices for index in (*refs, *before.outputs))
        if any(index in dirty for index in refs):
            again = True
        elif touched:
            again = not (same_arguments(before, after) and channelwise(before, whole, slices))
        else:
            again = not same_arguments(before, after, sizes=False)
        if again:
            dirty.update(before.outputs)
            nodes.append(after)
    nodes = _needed(nodes, whole.outputs)
    check_replayable(whole, nodes)
    outside = [
        index for node in nodes for index in (ref.index for ref in refs_of(node.args.values())) if index not in dirty
    ]
    outside += [index for index in whole.outputs if index not in dirty]
    wanted: list[Wanted] = []
    tensors: dict[int, Tensor] = {}
    for index in dict.fromkeys(outside):
        value = whole.values[index]
        if value.kind in _STATE:
            tensors[index] = taken(state[value.names[0]].detach(), slices.get(index, {}))
        else:
            wanted.append(Wanted(index, slices.get(index, {})))
    steps = [_step(node, device) for node in nodes]
    made = {index: node.index for node in whole.nodes for index in node.outputs}
    last = max((_source(whole, item.value, made) for item in wanted), default=-1)
    program = Program(steps, tuple(wanted), tensors, whole.outputs, len(nodes) / max(len(whole.nodes), 1), last)
    _plan_frees(program)
    return program


def taken(tensor: Tensor, slices: Slices) -> Tensor:
    """Return what ``slices`` keep of ``tensor``: itself where they keep everything."""
    for dim, indices in slices.items():
        tensor = tensor.index_select(dim, torch.from_numpy(indices).to(tensor.device))
    return tensor


def check_replayable(graph: Graph, nodes: Sequence[Node]) -> None:
    """Check that operators can be run one by one, out of the forward that they were recorded in.

    Raises:
        NotReplayableError: an operator is random, writes to a given tensor, or changes one that is seen elsewhere.
    """
    users: dict[int, int] = {}
    for node in graph.nodes:
        for ref in refs_of(node.args.values()):
            users[ref.index] = node.index
    for index in graph.outputs:
        users[index] = len(graph.nodes)
    storages: dict[int, list[int]] = {}
    for value in graph.values:
        storages.setdefault(value.storage, []).append(value.index)
    for node in nodes:
        if "out" in node.args:
            raise NotReplayableError(f"{node.op} writes into a tensor that it is given")
        function = function_of(node.op)
        if torch.Tag.nondeterministic_seeded in function.tags and not _silent(node):
            raise NotReplayableError(f"{node.op} is random")
        for ref in mutated(node, function):
            value = graph.values[ref.index]
            for other in storages[value.storage]:
                if other != ref.index and other not in node.outputs and users.get(other, -1) > node.index:
                    born = _born(graph, other)
                    if born < node.index:
                        raise NotReplayableError(f"{node.op} changes a tensor that is also seen through another one")


def mutated(node: Node, function: Any) -> list[Ref]:
    """Return the arguments that an operator changes in place."""
    found: list[Ref] = []
    for argument in function._schema.arguments:
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = node.args.get(argument.name)
            found += [item for item in (value if isinstance(value, tuple) else (value,)) if isinstance(item, Ref)]
    return found


def function_of(op: str) -> Any:
    """Return the operator of a recorded name, ``aten.conv2d.default``.

    Raises:
        NotReplayableError: there is none.
    """
    target: Any = torch.ops
    try:
        for part in op.split("."):
            target = getattr(target, part)
    except AttributeError:
        raise NotReplayableError(f"operator {op} cannot be called by its name") from None
    return target


def _born(graph: Graph, index: int) -> int:
    return next((node.index for node in graph.nodes if index in node.outputs), -1)


def _silent(node: Node) -> bool:
    """Return whether an operator that may be random is not, here."""
    args = node.args
    return args.get("train") is False or args.get("dropout_p") == 0.0 or args.get("p") == 0.0 or (
        args.get("training") is False
    )  # fmt: skip


def _check_aligned(whole: Graph, pruned: Graph) -> None:
    if len(whole.nodes) != len(pruned.nodes) or len(whole.values) != len(pruned.values):
        raise NotReplayableError("the pruned forward runs other operators")
    for before, after in zip(whole.nodes, pruned.nodes, strict=True):
        if before.op != after.op or before.outputs != after.outputs:
            raise NotReplayableError(f"the pruned forward runs {after.op} where the whole one runs {before.op}")
        if [ref.index for ref in refs_of(before.args.values())] != [ref.index for ref in refs_of(after.args.values())]:
            raise NotReplayableError(f"{after.op} takes other tensors in the pruned forward")


def _slices(coupling: Coupling, gone: Ints) -> dict[int, dict[int, Ints]]:
    """Return what stays of every value that loses indices, by dimension."""
    labels, starts, dimensions = coupling.flat_labels
    found: dict[int, dict[int, Ints]] = {}
    if not len(gone) or not len(labels):
        return found
    mask = np.zeros(max(int(labels.max()), int(gone.max())) + 1, dtype=np.bool_)
    mask[gone] = True
    lost = mask[labels]
    ends = np.append(starts[1:], len(labels))
    stays: dict[int, Ints | None] = {}
    for index, dim, number in dimensions:
        if number not in stays:
            part = lost[starts[number] : ends[number]]
            stays[number] = np.flatnonzero(~part).astype(np.int64) if part.any() else None
        indices = stays[number]
        if indices is not None:
            found.setdefault(index, {})[dim] = indices
    return found


def _check_sizes(whole: Graph, pruned: Graph, slices: Mapping[int, Slices]) -> None:
    for before, after in zip(whole.values, pruned.values, strict=True):
        shape = list(before.shape)
        for dim, indices in slices.get(before.index, {}).items():
            shape[dim] = len(indices)
        if tuple(shape) != after.shape:
            raise NotReplayableError(f"a tensor of shape {before.shape} becomes {after.shape}, not {tuple(shape)}")


def _needed(nodes: Sequence[Node], outputs: Sequence[int]) -> list[Node]:
    """Return the operators that the outputs depend on, and those that change what these read."""
    needed = set(outputs)
    kept: list[Node] = []
    for node in reversed(nodes):
        if any(index in needed for index in node.outputs):
            needed.update(ref.index for ref in refs_of(node.args.values()))
            kept.append(node)
    return kept[::-1]


def _source(graph: Graph, index: int, made: Mapping[int, int]) -> int:
    """Return the number of the operator at which a value of the whole model is known."""
    if index in made:
        return made[index]
    if graph.values[index].kind == "input":
        return -1
    return next(
        (node.index for node in graph.nodes if any(ref.index == index for ref in refs_of(node.args.values()))), -1
    )


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor goes in an operator's arguments."""

    value: int


def _step(node: Node, device: torch.device) -> Step:
    function = function_of(node.op)
    changed = mutated(node, function)
    arguments: list[Any] = []
    keywords: dict[str, Any] = {}
    for argument in function._schema.arguments:
        value = _argument(argument.name, node.args[argument.name], device)
        if argument.kwarg_only:
            keywords[argument.name] = value
        else:
            arguments.append(value)
    if changed:
        function = _out_of_place(function, [place for place, item in enumerate(arguments) if _holds(item, changed)])
    return Step(function, tuple(arguments), keywords, node.outputs)


def _holds(item: Any, refs: Sequence[Ref]) -> bool:
    return isinstance(item, Place) and any(item.value == ref.index for ref in refs)


def _out_of_place(function: Any, places: Sequence[int]) -> Callable[..., Any]:
    """Return an in-place operator that leaves its arguments alone: it works on a copy."""
    name = function._schema.name.partition("::")[2]
    packet = getattr(torch.ops.aten, name.removesuffix("_"), None) if name.endswith("_") else None
    functional = getattr(packet, function._overloadname, None) if packet is not None else None
    if functional is not None and len(functional._schema.arguments) == len(function._schema.arguments):
        return functional  # type: ignore[no-any-return]

    def on_copy(*arguments: Any, **keywords: Any) -> Any:
        copied = [item.clone() if n in places else item for n, item in enumerate(arguments)]
        return function(*copied, **keywords)

    return on_copy


def _argument(name: str, value: Any, device: torch.device) -> Any:
    """Return a recorded argument as the operator takes it."""
    if isinstance(value, Ref):
        return Place(value.index)
    if isinstance(value, tuple):
        return [_argument(name, item, device) for item in value]
    if isinstance(value, str):
        if name in ("dtype", "layout", "memory_format"):
            return getattr(torch, value)
        if name == "device":
            return device
    return value


def _filled(item: Any, values: Mapping[int, Tensor]) -> Any:
    if type(item) is Place:
        return values[item.value]
    if type(item) is list:
        return [_filled(part, values) for part in item]
    return item


def _flat(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, tuple | list):
        return [tensor for item in result for tensor in _flat(item)]
    return []


def _places(item: Any) -> list[int]:
    if isinstance(item, Place):
        return [item.value]
    if isinstance(item, list | tuple):
        return [index for part in item for index in _places(part)]
    return []


def _plan_frees(program: Program) -> None:
    """Let each tensor go after its last use."""
    last: dict[int, int] = {}
    for number, step in enumerate(program.steps):
        for index in (*_places(step.arguments), *_places(list(step.keywords.values())), *step.outputs):
            last[index] = number
    ends: dict[int, list[int]] = {}
    for index, number in last.items():
        if index not in program.outputs:
            ends.setdefault(number, []).append(index)
    for number, step in enumerate(program.steps):
        step.free = tuple(ends.get(number, ()))
