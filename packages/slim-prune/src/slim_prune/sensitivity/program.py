"""What of a model must be computed again when some of its channels go: a short program over recorded operators.

The forward of the pruned model is recorded without data and laid beside the recording of the whole model, operator by
operator. What only loses channels (a convolution that makes them, its norm, its activation) is *sliced*: the whole
model's values serve, without the channels that are gone. What mixes channels (the next convolution) is computed again
from sliced values and sliced weights, and so is everything behind it. Nothing else runs.

Here: compiling and running such programs. Not here: where the whole model's values come from (``capture.py``), making
programs quick (``quicker.py``), what is measured (``engine.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slim_core.graph.shrink import removed_classes
from slim_core.graph.types import Coupling, Graph, Node, Ref
from slim_prune.sensitivity.facts import Facts, NotReplayableError
from slim_prune.sensitivity.separable import channelwise, same_arguments

Ints = NDArray[np.int64]
#: dimension -> indices that stay
Slices = Mapping[int, Ints]

_STATE = ("parameter", "buffer")
#: operators whose size argument is the shape of their result
_SHAPED = ("aten.view.default", "aten.reshape.default", "aten._unsafe_view.default")
_CONVOLUTIONS = ("aten.conv1d.default", "aten.conv2d.default", "aten.conv3d.default")


@dataclass(frozen=True, slots=True)
class Wanted:
    """A value of the whole model that a program starts from, and what stays of it."""

    value: int
    slices: Slices


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor goes in an operator's arguments."""

    value: int


@dataclass(slots=True)
class Step:
    """One operator: its function, its arguments with places for tensors, where its results go, what is done with."""

    function: Callable[..., Any]
    arguments: list[Any]
    keywords: dict[str, Any]
    outputs: tuple[int, ...]
    reads: tuple[int, ...]
    op: str
    free: tuple[int, ...] = ()


@dataclass(slots=True)
class Program:
    """What to compute for one number of kept channels.

    Args:
        steps: the operators, in order.
        wanted: values of the whole model that it starts from.
        state: sliced parameters and buffers, by number of the value.
        outputs: numbers of the values that the model returns.
        last: the operator at which the whole model has everything that is wanted; -1: its inputs are enough.
        channels_last: hold pictures with their channels last in memory.
    """

    steps: list[Step]
    wanted: tuple[Wanted, ...]
    state: dict[int, Tensor]
    outputs: tuple[int, ...]
    last: int
    channels_last: bool = False

    def run(self, whole: Mapping[int, Tensor]) -> list[Tensor]:
        """Return the pruned model's output tensors.

        Args:
            whole: the values that it starts from, by number, as the whole model computed them; they are left alone.
        """
        values: dict[int, Tensor] = dict(self.state)
        for item in self.wanted:
            tensor = taken(whole[item.value], item.slices)
            if self.channels_last and tensor.dim() == 4:
                tensor = tensor.contiguous(memory_format=torch.channels_last)
            values[item.value] = tensor
        for step in self.steps:
            arguments = [
                values[item.value] if type(item) is Place else _filled(item, values) if type(item) is list else item
                for item in step.arguments
            ]
            keywords = {name: _filled(item, values) for name, item in step.keywords.items()} if step.keywords else {}
            result = step.function(*arguments, **keywords)
            if type(result) is Tensor:
                values[step.outputs[0]] = result
            else:
                for index, tensor in zip(step.outputs, _flat(result), strict=True):
                    values[index] = tensor
            for index in step.free:
                del values[index]
        return [values[index] for index in self.outputs]


def follows_from_shapes(facts: Facts, pruned: Graph, kept: Mapping[str, Ints]) -> bool:
    """Return whether every argument that differs in a pruned recording follows from the shapes.

    Then other counts of the same group need no recording of their own.

    Raises:
        NotReplayableError: the recordings do not lie side by side.
    """
    whole = facts.graph
    check_aligned(facts, pruned)
    shapes = _shapes(whole, slices_of(facts.coupling, kept))
    if any(
        after.shape != shapes.get(after.index, before.shape)
        for before, after in zip(whole.values, pruned.values, strict=True)
    ):
        raise NotReplayableError("a tensor has another size in the pruned forward than its channels say")
    return all(
        before.args == after.args or _predicted(before, facts, shapes) == after.args
        for before, after in zip(whole.nodes, pruned.nodes, strict=True)
    )


def compile_program(
    facts: Facts, pruned: Graph | None, kept: Mapping[str, Ints], state: Mapping[str, Tensor], device: torch.device
) -> tuple[Program, dict[int, tuple[int, ...]]]:
    """Return what must run to know the output of the model that keeps ``kept``, and the shapes of all values then.

    Args:
        facts: the whole model's recording, with inputs of the very shapes that it will be run on.
        pruned: the recording of the pruned model with the same inputs; ``None`` where its arguments follow from the
            shapes (:func:`follows_from_shapes`).
        kept: kept unit numbers by group name.
        state: parameters and buffers by name.
        device: where tensors are made that the forward makes.

    Raises:
        NotReplayableError: something that must run cannot be run by itself.
    """
    whole = facts.graph
    slices = slices_of(facts.coupling, kept)
    shapes = _shapes(whole, slices)
    dirty: set[int] = set()  # values that must be computed again
    nodes: list[tuple[Node, Mapping[str, Any]]] = []
    for before, refs in zip(whole.nodes, facts.refs, strict=True):
        touched = any(index in slices for index in refs) or any(index in slices for index in before.outputs)
        spoiled = any(index in dirty for index in refs)
        if not touched and not spoiled and pruned is None:
            continue
        args = pruned.nodes[before.index].args if pruned is not None else _predicted(before, facts, shapes)
        if spoiled:
            again = True
        elif touched:
            again = not (same_arguments(before.args, args) and channelwise(before, whole, slices))
        else:
            again = not same_arguments(before.args, args, sizes=False)
        if again:
            dirty.update(before.outputs)
            nodes.append((before, args))
    nodes = _needed(nodes, facts)
    for node, _ in nodes:
        if node.index in facts.obstacles:
            raise NotReplayableError(facts.obstacles[node.index])
        if not dirty.issuperset(facts.shared.get(node.index, ())):  # some of it is the whole model's
            raise NotReplayableError(f"{node.op} changes a tensor that is also seen through another one")
    outside = [index for node, _ in nodes for index in facts.refs[node.index] if index not in dirty]
    outside += [index for index in whole.outputs if index not in dirty]
    wanted: list[Wanted] = []
    tensors: dict[int, Tensor] = {}
    for index in dict.fromkeys(outside):
        value = whole.values[index]
        if value.kind in _STATE:
            tensors[index] = taken(state[value.names[0]].detach(), slices.get(index, {}))
        else:
            wanted.append(Wanted(index, slices.get(index, {})))
    steps = [_step(node, args, facts, device) for node, args in nodes]
    last = max((facts.known[item.value] for item in wanted), default=-1)
    program = Program(steps, tuple(wanted), tensors, whole.outputs, last)
    return program, {value.index: shapes.get(value.index, value.shape) for value in whole.values}


def taken(tensor: Tensor, slices: Slices) -> Tensor:
    """Return what ``slices`` keep of ``tensor``: itself where they keep everything."""
    for dim, indices in slices.items():
        tensor = tensor.index_select(dim, torch.from_numpy(indices).to(tensor.device))
    return tensor


def slices_of(coupling: Coupling, kept: Mapping[str, Ints]) -> dict[int, dict[int, Ints]]:
    """Return what stays of every value that loses indices, by dimension."""
    gone = removed_classes(coupling, kept)
    labels, starts, dimensions = coupling.flat_labels
    found: dict[int, dict[int, Ints]] = {}
    if not len(gone) or not len(labels):
        return found
    mask = np.zeros(max(int(labels.max()), int(gone.max())) + 1, dtype=np.bool_)
    mask[gone] = True
    lost = mask[labels]
    any_lost = np.logical_or.reduceat(lost, starts)
    ends = np.append(starts[1:], len(labels))
    stays: dict[int, Ints] = {}
    for index, dim, number in dimensions:
        if any_lost[number]:
            if number not in stays:
                stays[number] = np.flatnonzero(~lost[starts[number] : ends[number]]).astype(np.int64)
            found.setdefault(index, {})[dim] = stays[number]
    return found


def check_aligned(facts: Facts, pruned: Graph) -> None:
    """Check that a pruned recording runs the operators of the whole one on the same values.

    Raises:
        NotReplayableError: it does not.
    """
    whole = facts.graph
    if len(whole.nodes) != len(pruned.nodes) or len(whole.values) != len(pruned.values):
        raise NotReplayableError("the pruned forward runs other operators")
    for before, after in zip(whole.nodes, pruned.nodes, strict=True):
        if before.op != after.op or before.outputs != after.outputs:
            raise NotReplayableError(f"the pruned forward runs {after.op} where the whole one runs {before.op}")
        if any(after.args[name] != value for name, value in before.args.items() if isinstance(value, Ref)):
            raise NotReplayableError(f"{after.op} takes other tensors in the pruned forward")


def _shapes(graph: Graph, slices: Mapping[int, Slices]) -> dict[int, tuple[int, ...]]:
    """Return the new shape of every value that loses indices."""
    shapes: dict[int, tuple[int, ...]] = {}
    for index, dims in slices.items():
        shape = list(graph.values[index].shape)
        for dim, indices in dims.items():
            shape[dim] = len(indices)
        shapes[index] = tuple(shape)
    return shapes


def _predicted(node: Node, facts: Facts, shapes: Mapping[int, tuple[int, ...]]) -> Mapping[str, Any]:
    """Return the arguments of an operator in the pruned forward, as they follow from the shapes."""
    if node.op in _SHAPED and node.outputs[0] in shapes:
        name = "size" if "size" in node.args else "shape"
        new, old, given = shapes[node.outputs[0]], facts.graph.values[node.outputs[0]].shape, node.args[name]
        size = tuple(n if g == o else g for n, o, g in zip(new, old, given, strict=True))
        return {**node.args, name: size}
    if node.op in _CONVOLUTIONS and node.args["groups"] > 1:
        x, weight = node.args["input"].index, node.args["weight"].index
        rank = len(facts.graph.values[weight].shape)
        channels = shapes.get(x, facts.graph.values[x].shape)[1 - rank]
        return {**node.args, "groups": channels // shapes.get(weight, facts.graph.values[weight].shape)[1]}
    return node.args


def _needed(nodes: Sequence[tuple[Node, Mapping[str, Any]]], facts: Facts) -> list[tuple[Node, Mapping[str, Any]]]:
    """Return the operators that the outputs depend on, and those that change what others may see."""
    needed = set(facts.graph.outputs)
    kept: list[tuple[Node, Mapping[str, Any]]] = []
    for node, args in reversed(nodes):
        if facts.changed[node.index] or any(index in needed for index in node.outputs):
            needed.update(facts.refs[node.index])
            kept.append((node, args))
    return kept[::-1]


def _step(node: Node, args: Mapping[str, Any], facts: Facts, device: torch.device) -> Step:
    """Return an operator with these arguments; those with the recorded ones are made once."""
    if args is not node.args:
        return _new_step(node, args, facts, device)
    step = facts.steps.get(node.index)
    if step is None:
        step = facts.steps[node.index] = _new_step(node, args, facts, device)
    return Step(step.function, list(step.arguments), step.keywords, step.outputs, step.reads, step.op)


def _new_step(node: Node, args: Mapping[str, Any], facts: Facts, device: torch.device) -> Step:
    function, changed = facts.functions[node.index], facts.changed[node.index]
    arguments: list[Any] = []
    keywords: dict[str, Any] = {}
    for argument in function._schema.arguments:
        value = _argument(argument.name, args[argument.name], device)
        if argument.kwarg_only:
            keywords[argument.name] = value
        else:
            arguments.append(value)
    op = node.op
    if changed and node.index not in facts.shared:
        places = [n for n, item in enumerate(arguments) if isinstance(item, Place) and item.value in changed]
        function, op = _out_of_place(function, op, places)
    elif op in _SHAPED:  # other layouts in memory than the model has may not be seen as another shape
        function = torch.ops.aten.reshape.default
    keywords = {name: value for name, value in keywords.items() if not _is_default(function, name, value)}
    return Step(function, arguments, keywords, node.outputs, facts.refs[node.index], op)


def _is_default(function: Any, name: str, value: Any) -> bool:
    schema = getattr(function, "_schema", None)
    if schema is None:
        return False
    return any(item.name == name and item.has_default_value() and item.default_value == value
               and type(item.default_value) is type(value) for item in schema.arguments)  # fmt: skip


def _out_of_place(function: Any, op: str, places: Sequence[int]) -> tuple[Callable[..., Any], str]:
    """Return an in-place operator that leaves its arguments alone: it works on a copy."""
    namespace, name, overload = op.split(".", 2)
    packet = getattr(getattr(torch.ops, namespace), name.removesuffix("_"), None) if name.endswith("_") else None
    functional = getattr(packet, overload, None) if packet is not None else None
    if functional is not None and len(functional._schema.arguments) == len(function._schema.arguments):
        return functional, f"{namespace}.{name.removesuffix('_')}.{overload}"

    def on_copy(*arguments: Any, **keywords: Any) -> Any:
        copied = [item.clone() if n in places else item for n, item in enumerate(arguments)]
        return function(*copied, **keywords)

    return on_copy, op


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


def plan_frees(program: Program) -> None:
    """Let each tensor go after its last use."""
    last: dict[int, int] = {}
    for number, step in enumerate(program.steps):
        for index in step.reads:
            last[index] = number
        for index in step.outputs:
            last[index] = number
    ends: dict[int, list[int]] = {}
    for index, number in last.items():
        if index not in program.outputs:
            ends.setdefault(number, []).append(index)
    for number, step in enumerate(program.steps):
        step.free = tuple(ends.get(number, ()))
