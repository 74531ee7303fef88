"""``couple``: which indices of which parameters live and die together.

Every index of every parameter dimension has a label; the rules say which labels are equal; the classes of equal labels
are the units, and units of the same make form a channel group. Here: running the rules and building the groups.
The rules themselves are in ``rules/``, the proof that groups can be removed is in ``probe.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from slim_core.errors import PluginError
from slim_core.graph.attention import tie_attention
from slim_core.graph.classes import components
from slim_core.graph.isolate import collector_paused
from slim_core.graph.rules import builtin_rules, find_rule
from slim_core.graph.rules.base import Context, Preference, Role, Rule, Site, UnsupportedError
from slim_core.graph.types import READS, ChannelGroup, Coupling, Frozen, Graph, Member, SourceLine, Value

Ints = NDArray[np.int64]

_OWN = "slim_core.graph.rules."
_UNUSED = "is not used by the forward"
_BUFFER = "belongs to buffers only"


@dataclass(frozen=True)
class Derivation:
    """A coupling, and what it takes to try another reading of ambiguous operators."""

    coupling: Coupling
    sites: Mapping[int, Site]
    classes: Ints  # of each label
    frozen: NDArray[np.bool_]  # of each class

    def stuck(self) -> list[int]:
        """Return the ambiguous operators whose labels are all frozen under the reading that was taken."""
        return [node for node, site in self.sites.items() if self.frozen[self.classes[site.labels]].all()]

    def touching(self, classes: Ints) -> list[int]:
        """Return the ambiguous operators that have a part in any of ``classes``."""
        wanted = np.zeros(len(self.frozen), dtype=np.bool_)
        wanted[classes] = True
        return [node for node, site in self.sites.items() if wanted[self.classes[site.labels]].any()]


def couple(graph: Graph, rules: Mapping[str, Rule] | None = None) -> Coupling:
    """Derive the channel groups of a recording.

    Args:
        graph: what :func:`record` returned.
        rules: rules by operator name (default: the core's). An operator without a rule freezes what it touches.
    """
    with collector_paused():
        return derive(graph, rules).coupling


def derive(
    graph: Graph,
    rules: Mapping[str, Rule] | None = None,
    choices: Mapping[int, int] | None = None,
    model: nn.Module | None = None,
    prefer: Preference = "heads",
) -> Derivation:
    """Derive the channel groups under the given readings of ambiguous operators.

    Args:
        graph: the recording.
        rules: rules by operator name (default: the core's).
        choices: the reading to take, by number of the operator.
        model: the recorded model, for layers whose forward insists on more than its operators say.
        prefer: see ``analyse``.
    """
    context = Context(graph, choices, prefer)
    state = [value for value in graph.values if value.kind in ("parameter", "buffer")]
    for value in state:
        context.labels_of(value.index)
    context.state_count = context.count
    if model is not None:
        tie_attention(model, context)
    _apply(graph, builtin_rules() if rules is None else rules, context)
    for index in graph.outputs:
        for labels in context.labels_of(index):
            context.freeze(labels, "is an output of the model")
    _mind_other_ways(graph, context, state)
    return _Builder(graph, context, state).derivation()


def _mind_other_ways(graph: Graph, context: Context, state: list[Value]) -> None:
    """Freeze what parts of the model that did not run may take or give, where the forward chose its way by a value.

    Those parts are known by their parameters, and what they may meet by its size.
    """
    first = next((node.index for node in graph.nodes if node.op in READS), None)
    if first is None:
        return
    sizes = {size for value in state if value.index not in context.used and value.kind == "parameter"
             for size in value.shape if size > 1}  # fmt: skip
    if not sizes:
        return
    context.node = graph.nodes[first]
    made = {output: node.index for node in graph.nodes for output in node.outputs}
    for value in graph.values:
        if value.kind != "intermediate":
            continue
        later = made[value.index] > first or any(user.index > first for user in context.consumers(value.index))
        for labels in context.labels_of(value.index) if later else ():
            if labels is not None and len(labels) in sizes:
                context.freeze(labels, "may meet a part of the model that did not run: a value decides which does")


def _apply(graph: Graph, rules: Mapping[str, Rule], context: Context) -> None:
    cache: dict[str, Rule | None] = {}
    for node in graph.nodes:
        context.node = node
        if node.op not in cache:
            cache[node.op] = find_rule(rules, node.op)
        rule = cache[node.op]
        if rule is None or "out" in node.args:
            context.freeze_all(f"operator {node.op} has no rule")
            continue
        try:
            rule(node, context)
        except UnsupportedError as error:
            context.freeze_all(str(error))
        except Exception as error:
            if rule.__module__.startswith(_OWN):  # a use that nobody thought of: safe, and reported
                context.freeze_all(f"the rule of {node.op} does not cover this use ({type(error).__name__}: {error})")
                continue
            raise PluginError(
                f"the coupling rule of {node.op} fails: {type(error).__name__}: {error}",
                where=str(node.source) if node.source else None,
                hint=f"the rule is {rule.__module__}.{getattr(rule, '__qualname__', rule)}",
            ) from error


class _Builder:
    """Turns labels, equalities and frozen labels into groups."""

    def __init__(self, graph: Graph, context: Context, state: list[Value]) -> None:
        self.graph, self.context = graph, context
        self.classes = components(context.count, context.equal)
        self.count = int(self.classes.max()) + 1 if context.count else 0
        #: every parameter dimension that has labels: value, dimension, class of each index
        self.ranges: list[tuple[Value, int, Ints]] = [
            (value, dim, self.classes[labels])
            for value in state
            for dim, labels in enumerate(context.labels_of(value.index))
            if labels is not None
        ]
        lengths = np.array([len(classes) for _, _, classes in self.ranges], dtype=np.int64)
        self.starts = np.cumsum([0, *lengths[:-1]], dtype=np.int64)
        #: the classes of all ranges end to end, and the number of the range that each stands in
        self.flat: Ints = np.concatenate([np.zeros(0, dtype=np.int64), *(classes for _, _, classes in self.ranges)])
        self.owner = np.repeat(np.arange(len(self.ranges)), lengths)

    def derivation(self) -> Derivation:
        reason, reasons = self._reasons()
        frozen = reason >= 0
        groups, unit_classes = self._groups(~frozen)
        labels = self._value_classes()
        entries = self._frozen_entries(reason, reasons)
        coupling = Coupling(self.graph, groups, entries, labels, unit_classes)
        return Derivation(coupling, self.context.sites, self.classes, frozen)

    def _reasons(self) -> tuple[Ints, list[tuple[str, SourceLine | None]]]:
        """Return the number of the reason that freezes each class (-1: none, -2 counted as frozen but not reported)."""
        reasons: list[tuple[str, SourceLine | None]] = []
        reason = np.full(self.count, -1, dtype=np.int64)
        has_parameter = np.zeros(self.count, dtype=np.bool_)
        is_parameter = np.array([value.kind == "parameter" for value, _, _ in self.ranges], dtype=np.bool_)
        has_parameter[self.flat[is_parameter[self.owner]]] = True
        reasons.append((_BUFFER, None))
        reason[~has_parameter] = 0
        reasons.append((_UNUSED, None))
        for value, _, classes in self.ranges:
            if value.index not in self.context.used:
                reason[classes] = 1
        for labels, text, node in reversed(self.context.frozen):
            reasons.append((text, self.graph.nodes[node].source if node < len(self.graph.nodes) else None))
            reason[self.classes[labels]] = len(reasons) - 1
        self.structural = len(reasons)
        reasons.append(("", None))
        for labels in self.context.structural:
            classes = self.classes[labels]
            reason[classes] = self.structural  # a kernel's height is no news, whatever else befalls it
        return reason, reasons

    def _groups(self, free: NDArray[np.bool_]) -> tuple[tuple[ChannelGroup, ...], dict[str, Ints]]:
        """Put units of the same make together: those that span the same dimensions, equally often."""
        if not self.ranges:
            return (), {}
        keys = np.random.Generator(np.random.PCG64(0)).integers(1, 2**62, size=len(self.ranges), dtype=np.uint64)
        signature = np.zeros(self.count, dtype=np.uint64)  # a sum of keys stands for a multiset of dimensions
        np.add.at(signature, self.flat, keys[self.owner])
        units = np.flatnonzero(free & (signature != 0))
        _, group = np.unique(signature[units], return_inverse=True)
        group_of = np.full(self.count, -1, dtype=np.int64)
        group_of[units] = group
        drafts: dict[int, _Draft] = {}
        owned = group_of[self.flat]
        least = np.minimum.reduceat(owned, self.starts).tolist()
        most = np.maximum.reduceat(owned, self.starts).tolist()
        for (value, dim, classes), low, high in zip(self.ranges, least, most, strict=True):
            if high < 0:
                continue
            role = self.context.roles.get((value.index, dim), "per_channel")
            if low == high:  # all of one group, which is the rule
                drafts.setdefault(high, _Draft()).parts.append((value, dim, None, classes, role))
                continue
            own = group_of[classes]
            for number in np.unique(own[own >= 0]).tolist():
                places = (own == number).nonzero()[0]
                drafts.setdefault(number, _Draft()).parts.append((value, dim, places, classes[places], role))
        inexact = np.zeros(self.count, dtype=np.bool_)
        for labels in self.context.statistics:
            inexact[self.classes[labels]] = True
        return self._name([draft.finish() for draft in drafts.values()], inexact)

    @staticmethod
    def _name(
        drafts: list[tuple[Ints, tuple[Member, ...]]], inexact: NDArray[np.bool_]
    ) -> tuple[tuple[ChannelGroup, ...], dict[str, Ints]]:
        groups: list[ChannelGroup] = []
        unit_classes: dict[str, Ints] = {}
        for units, members in drafts:
            made_by = next((m for m in members if m.kind == "out"), members[0])
            base = f".{made_by.module}".split(".parametrizations.")[0][1:] or made_by.module or made_by.name
            name, number = base, 1
            while name in unit_classes:
                number += 1
                name = f"{base}:{number}"
            groups.append(ChannelGroup(name, len(units), members, not bool(inexact[units].any())))
            unit_classes[name] = units
        return tuple(groups), unit_classes

    def _value_classes(self) -> tuple[tuple[Ints | None, ...], ...]:
        seen: dict[int, tuple[Ints, Ints]] = {}

        def classes(labels: Ints | None) -> Ints | None:
            if labels is None:
                return None
            known = seen.get(id(labels))
            if known is None:
                known = seen[id(labels)] = (labels, self.classes[labels])
            return known[1]

        return tuple(tuple(classes(d) for d in self.context.labels_of(v.index)) for v in self.graph.values)

    def _frozen_entries(self, reason: Ints, reasons: list[tuple[str, SourceLine | None]]) -> tuple[Frozen, ...]:
        entries: list[Frozen] = []
        reported = np.where(reason == self.structural, -1, reason)
        if not self.ranges:
            return ()
        touched = np.maximum.reduceat(reported[self.flat], self.starts) >= 0
        for number in touched.nonzero()[0].tolist():
            value, dim, classes = self.ranges[number]
            own = reported[classes]
            own = own[own >= 0]
            counted: dict[tuple[str, SourceLine | None], int] = {}
            for which, count in zip(*np.unique(own, return_counts=True), strict=True):
                key = reasons[int(which)]
                counted[key] = counted.get(key, 0) + int(count)
            entries += [Frozen(value.names[0], dim, count, text, source) for (text, source), count in counted.items()]
        return tuple(entries)


class _Draft:
    """A group in the making: where its classes stand in each dimension."""

    def __init__(self) -> None:
        #: value, dimension, indices (``None``: all), their classes, role
        self.parts: list[tuple[Value, int, Ints | None, Ints, Role]] = []

    def finish(self) -> tuple[Ints, tuple[Member, ...]]:
        """Order the units by their first index in the dimension that makes the channels, and list all members."""
        _, _, _, lead, _ = next((part for part in self.parts if part[4] == "out"), self.parts[0])
        if (lead[1:] > lead[:-1]).all():
            units = lead
        else:
            units, first = np.unique(lead, return_index=True)
            units = units[np.argsort(first, kind="stable")]
        rank = np.empty(int(units.max()) + 1, dtype=np.int64)
        rank[units] = np.arange(len(units))
        members: list[Member] = []
        for value, dim, places, classes, role in self.parts:
            order = rank[classes].argsort(kind="stable")
            indices = order if places is None else places[order]
            name = value.names[0]
            members.append(Member(name, dim, indices.reshape(len(units), -1), role, name.rpartition(".")[0]))
        return units, tuple(members)


def rules_of(registry: Any | None) -> Mapping[str, Rule]:
    """Return the core's rules, with those that plugins registered on top."""
    rules = dict(builtin_rules())
    if registry is not None:
        rules |= {name: registry.get("op_rules", name) for name in registry.names("op_rules")}
    return rules
