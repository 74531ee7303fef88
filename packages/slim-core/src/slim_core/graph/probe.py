"""The proof of a coupling: the user's own forward, run on a smaller model without data.

The smaller forward must run the same operators, give every tensor the size that the labels predict, cut and select at
the predicted places, and compute with the same numbers (a scale that is taken from a size would change). Many groups
share one forward; a failure is traced to the groups that cause it.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from slim_core.graph.attributes import attribute_edits, attribute_uses
from slim_core.graph.isolate import unwrap
from slim_core.graph.record import Attempt, Recorder, Several, StopRecordingError
from slim_core.graph.resize import resize_graph
from slim_core.graph.rules.base import Rule, refs_of
from slim_core.graph.shrink import cuts_of, removed_classes
from slim_core.graph.source import first_line
from slim_core.graph.types import Coupling, Graph, Node, Ref, SourceLine
from slim_core.workload import Inputs

Ints = NDArray[np.int64]
Kept = Mapping[str, Ints]

#: arguments that say sizes: what they must be follows from the shapes, which are compared
_SIZES = frozenset({
    "size", "shape", "sizes", "split_size", "split_sizes", "normalized_shape", "HxW", "N", "C", "repeats", "dims",
    "output_size", "start", "end", "index", "pad", "num_groups", "group",
})  # fmt: skip
#: operators that cut or shape at numbers which the forward computes
_HAZARDS = (
    "aten.slice", "aten.split", "aten.chunk", "aten.view", "aten.reshape", "aten._unsafe_view", "aten.unflatten",
    "aten.expand", "aten.constant_pad", "aten.select", "aten.zeros", "aten.new_", "aten.full", "aten.ones",
    "aten.repeat", "aten.group_norm",
)  # fmt: skip
_PLACES = ("dim", "start", "end", "step", "index")
_LAYOUT = ("aten.contiguous.default",)
_ANOTHER_WAY = "the forward takes another way with fewer channels"
_MOST_RUNS = 200


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a smaller model does not work.

    Args:
        reason: what went wrong.
        source: the user's line.
        node: number of the operator that it went wrong at, in the original recording.
    """

    reason: str
    source: SourceLine | None
    node: int


def check(model: nn.Module, example_inputs: Inputs, coupling: Coupling, kept: Kept) -> Failure | None:
    """Run the forward as it would be after ``shrink(model, coupling, kept)``, without data or any change to ``model``.

    Args:
        model: the model that ``coupling`` was derived from.
        example_inputs: its example inputs.
        coupling: what ``analyse`` returned.
        kept: kept unit numbers by group name.

    Returns:
        ``None`` where everything is as predicted, else what went wrong first.
    """
    inputs = Several((example_inputs, *coupling.also)) if coupling.also else example_inputs
    return _run(unwrap(model), inputs, coupling, kept, None)


def find_failures(
    model: nn.Module,
    example_inputs: Inputs | Several,
    coupling: Coupling,
    rules: Mapping[str, Rule] | None = None,
    *,
    first: bool = False,
) -> dict[str, Failure]:
    """Return the groups whose units cannot be removed, with the reason; with ``first`` only those found first."""
    return _Search(unwrap(model), example_inputs, coupling, rules, first).failures()


class _Search:
    """Narrows failures of a common forward down to groups."""

    def __init__(
        self,
        model: nn.Module,
        inputs: Inputs | Several,
        coupling: Coupling,
        rules: Mapping[str, Rule] | None,
        first: bool,
    ) -> None:
        self.model, self.inputs, self.coupling, self.rules, self.first = model, inputs, coupling, rules, first
        self.runs = 0
        self.number = {group.name: number for number, group in enumerate(coupling.groups)}

    def failures(self) -> dict[str, Failure]:
        bad: dict[str, Failure] = {}
        every = [group.name for group in self.coupling.groups if group.units > 1]
        self._narrow(every, bad, most=False)
        for name in self._sharing():
            done = name in bad or name not in every or (self.first and bad)
            failure = None if done else self._test([name], False)
            if failure is not None:
                bad[name] = failure
        cut = self._hazardous()
        names = [name for name in every if name in cut and name not in bad]
        for bit in range(len(names).bit_length()):  # of any two groups, some test takes one and leaves the other
            chosen = [name for code, name in enumerate(names, 1) if code >> bit & 1 and name not in bad]
            self._narrow(chosen, bad, most=True)
        return bad

    def _narrow(self, names: list[str], bad: dict[str, Failure], *, most: bool) -> None:
        while names and not (self.first and bad):
            failure = self._test(names, most)
            if failure is None:
                return
            suspects = self._touched(failure.node, names) or names
            found = self._blame(suspects, failure, most) if len(suspects) > 1 else {suspects[0]: failure}
            bad |= found
            names = [name for name in names if name not in found]

    def _blame(self, names: Sequence[str], failure: Failure, most: bool) -> dict[str, Failure]:
        """Return which of ``names``, which fail together, fail alone; all of them where none does."""
        if len(names) == 1 or self.runs > _MOST_RUNS:
            return dict.fromkeys(names, failure)
        middle = len(names) // 2
        found: dict[str, Failure] = {}
        for half in (names[:middle], names[middle:]):
            own = self._test(half, most)
            if own is not None:
                found |= self._blame(half, own, most)
        return found or dict.fromkeys(names, failure)

    def _test(self, names: Iterable[str], most: bool) -> Failure | None:
        self.runs += 1
        kept = {name: _kept_units(name, units, self.number[name], most) for name in names
                for units in (len(self.coupling.unit_classes[name]),)}  # fmt: skip
        return _run(self.model, self.inputs, self.coupling, kept, self.rules)

    def _touched(self, node: int, names: Sequence[str]) -> list[str]:
        classes = self._classes_at(self.coupling.graph.nodes[node : node + 1])
        return [name for name in names if np.isin(self.coupling.unit_classes[name], classes).any()]

    def _sharing(self) -> list[str]:
        """Return groups that share a module attribute with another one: together they may hide each other's failure."""
        owner = {int(c): name for name, units in self.coupling.unit_classes.items() for c in units}
        users: dict[tuple[int, str], set[str]] = {}
        for use in attribute_uses(self.model, self.coupling.graph):
            classes = self.coupling.labels[use.value][use.dim]
            names = set() if classes is None else {owner[c] for c in classes.tolist() if c in owner}
            users.setdefault((id(use.module), use.name), set()).update(names)
        return sorted(set().union(*(names for names in users.values() if len(names) > 1)))

    def _hazardous(self) -> set[str]:
        nodes = [node for node in self.coupling.graph.nodes if node.op.startswith(_HAZARDS)]
        classes = self._classes_at(nodes)
        return {name for name, units in self.coupling.unit_classes.items() if np.isin(units, classes).any()}

    def _classes_at(self, nodes: Sequence[Node]) -> Ints:
        indices = {i for node in nodes for i in (*node.outputs, *(ref.index for ref in refs_of(node.args.values())))}
        found = {id(c): c for index in indices for c in self.coupling.labels[index] if c is not None}
        return np.unique(np.concatenate(list(found.values()))) if found else np.zeros(0, dtype=np.int64)


def _kept_units(name: str, units: int, number: int, most: bool) -> Ints:
    """Return what a test keeps: never the first unit; with ``most`` the last one alone.

    An odd number is removed, so that proportions are not met by accident, and another one from the next group, so that
    sizes that must be equal are not.
    """
    if most:
        return np.array([units - 1], dtype=np.int64)
    odd = range(1, max(int(0.6 * units), 2), 2)
    removed = odd[(number * 3 + len(odd) // 2) % len(odd)]
    order = np.random.default_rng(zlib.crc32(name.encode())).permutation(units - 1)[: units - removed] + 1
    return np.sort(order).astype(np.int64)


def _run(
    model: nn.Module, inputs: Inputs | Several, coupling: Coupling, kept: Kept, rules: Mapping[str, Rule] | None
) -> Failure | None:
    comparison = _Comparison(coupling, kept)
    sizes = [value.shape for value in comparison.predicted.values]
    attempt = Attempt(
        model, inputs, coupling.graph.device_kind, rules,
        cuts=cuts_of(coupling, kept), edits=attribute_edits(model, coupling, kept, sizes),
        observer=comparison, locate=False,
    )  # fmt: skip
    graph = attempt.run()
    if comparison.failure is not None:
        return comparison.failure
    nodes = coupling.graph.nodes
    if graph is None:
        done = comparison.place
        assert attempt.error is not None  # noqa: S101
        _, source = attempt.locator.locate_error(attempt.error)
        reason = f"the forward fails with fewer channels: {first_line(attempt.error)}"
        return Failure(reason, source or (nodes[done].source if done < len(nodes) else None), done)
    if not comparison.finish(graph.outputs):
        return Failure("the forward does something else with fewer channels", None, len(nodes) - 1)
    return None


class _Comparison:
    """Compares each operator of a smaller forward with what the labels predict.

    ``contiguous`` leaves no trace where a tensor is contiguous already, which may depend on its sizes: such operators
    are passed over on either side.
    """

    def __init__(self, coupling: Coupling, kept: Kept) -> None:
        self.original, self.coupling = coupling.graph, coupling
        self.predicted: Graph = resize_graph(coupling, kept)
        self.gone = removed_classes(coupling, kept)
        self.failure: Failure | None = None
        self.place = 0  # the operator of the original that comes next
        self._same: dict[int, int] = {}  # value of the original -> what it is a copy of
        self._meaning: dict[int, int] = {}  # value of the smaller forward -> value of the original

    def __call__(self, node: Node, recorder: Recorder) -> None:
        reason = self._difference(node, recorder)
        if reason is not None:
            place = min(self.place, len(self.original.nodes) - 1)
            source = self.original.nodes[place].source if place >= 0 else None
            self.failure = Failure(reason, source, place)
            raise StopRecordingError

    def finish(self, outputs: Sequence[int]) -> bool:
        """Return whether the smaller forward did everything, and returned the same."""
        self._pass_over("")
        expected = [self._same.get(index, index) for index in self.original.outputs]
        return self.place == len(self.original.nodes) and [self._original(index) for index in outputs] == expected

    def _difference(self, node: Node, recorder: Recorder) -> str | None:
        self._pass_over(node.op)
        nodes = self.original.nodes
        if node.op in _LAYOUT and (self.place == len(nodes) or nodes[self.place].op != node.op):
            self._meaning[node.outputs[0]] = self._original(node.args["self"].index)
            return None
        if self.place == len(nodes) or node.op != nodes[self.place].op:
            return _ANOTHER_WAY
        expected = self.predicted.nodes[self.place]
        reason = self._compared(node, expected, recorder)
        if reason is None:
            self._meaning |= dict(zip(node.outputs, expected.outputs, strict=True))
            self.place += 1
        return reason

    def _compared(self, node: Node, expected: Node, recorder: Recorder) -> str | None:
        given, wanted = refs_of(node.args.values()), refs_of(expected.args.values())
        if len(given) != len(wanted) or len(node.outputs) != len(expected.outputs):
            return _ANOTHER_WAY
        for ref, want in zip(given, wanted, strict=True):
            if recorder.values[ref.index].kind == "constant" and self.original.values[want.index].kind == "constant":
                self._meaning[ref.index] = want.index
                if recorder.contents.get(ref.index) != self.original.contents.get(want.index):
                    return "the forward makes a constant that depends on the size"
            elif self._original(ref.index) != self._same.get(want.index, want.index):
                return _ANOTHER_WAY
        for name, value in node.args.items():
            was = expected.args[name]
            if value != was and name not in _SIZES and value == value and not refs_of([value]):
                return f"the forward computes with a number that depends on the size: {was} becomes {value}"
        for index, want_index in zip(node.outputs, expected.outputs, strict=True):
            now, should = recorder.values[index].shape, self.predicted.values[want_index].shape
            if now != should:
                return f"the forward fixes a size: {node.op.split('.')[1]} gives {list(now)}, expected {list(should)}"
        return self._misplaced(node)

    def _pass_over(self, op: str) -> None:
        nodes = self.original.nodes
        while self.place < len(nodes) and nodes[self.place].op in _LAYOUT and nodes[self.place].op != op:
            node = nodes[self.place]
            source = node.args["self"].index
            self._same[node.outputs[0]] = self._same.get(source, source)
            self.place += 1

    def _original(self, index: int) -> int:
        meaning = self._meaning.get(index, index)
        return self._same.get(meaning, meaning)

    def _misplaced(self, node: Node) -> str | None:
        """Compare the places that a slice, a selection or a padding counts from the start."""
        kind = node.op.split(".")[1]
        if kind not in ("slice", "select", "constant_pad_nd", "group_norm", "native_group_norm"):
            return None
        before = self.original.nodes[self.place]
        if kind.endswith("group_norm"):
            return self._regrouped(node, before)
        x: Ref = before.args["self"]
        shape = self.original.values[x.index].shape
        if kind == "constant_pad_nd":
            return self._padded(node, before, len(shape))
        dim = node.args["dim"] % len(shape)
        places = self._left(x.index, dim)
        if len(places) == shape[dim] and all(node.args.get(n) == before.args.get(n) for n in _PLACES):
            return None
        if kind == "select":
            old, new = before.args["index"] % shape[dim], node.args["index"] % max(len(places), 1)
            return None if places[new] == old else "the forward selects a fixed place among channels"
        step = node.args.get("step") or 1
        start, end, _ = slice(before.args.get("start"), before.args.get("end")).indices(shape[dim])
        chosen = np.arange(start, end, step)
        old_places = chosen[np.isin(chosen, places)]
        start, end, _ = slice(node.args.get("start"), node.args.get("end")).indices(len(places))
        return (
            None if np.array_equal(places[start:end:step], old_places) else "the forward cuts channels at a fixed place"
        )

    def _padded(self, node: Node, before: Node, rank: int) -> str | None:
        out = before.outputs[0]
        size = self.original.values[out].shape
        for n in range(len(before.args["pad"]) // 2):
            dim = rank - 1 - n
            left = self._left(out, dim)
            for side, amount in enumerate(before.args["pad"][2 * n : 2 * n + 2]):
                if amount > 0:
                    inside = left < amount if side == 0 else left >= size[dim] - amount
                    if int(inside.sum()) != node.args["pad"][2 * n + side]:
                        return "the forward pads channels by a fixed amount"
        return None

    def _regrouped(self, node: Node, before: Node) -> str | None:
        name = "num_groups" if "num_groups" in node.args else "group"
        old, new = before.args[name], node.args[name]
        x: Ref = before.args["input"]
        if old == self.original.values[x.index].shape[1]:
            fits = new == self.predicted.values[x.index].shape[1]
        else:
            fits = new == old
        return None if fits else "the forward fixes the number of groups of a norm"

    def _left(self, index: int, dim: int) -> Ints:
        """Return which places of a dimension stay."""
        classes = self.coupling.labels[index][dim]
        if classes is None:
            return np.arange(self.original.values[index].shape[dim])
        return np.flatnonzero(~np.isin(classes, self.gone))
