"""``analyse``: record, couple, and prove every group on the user's own forward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from slim_core.graph.dims import Derivation, derive, rules_of
from slim_core.graph.isolate import collector_paused, unwrap
from slim_core.graph.probe import Failure, find_failures
from slim_core.graph.record import Several, record
from slim_core.graph.rules.base import Preference, Rule
from slim_core.graph.types import Coupling, Frozen, Graph, SourceLine
from slim_core.registry import Registry
from slim_core.workload import Inputs

#: How often ambiguous operators are read anew.
_ROUNDS = 4
_QUICK_ROUNDS = 6


def analyse(
    model: nn.Module, example_inputs: Inputs, *, also: Sequence[Inputs] = (), probe: bool = True,
    prefer: Preference = "heads", registry: Registry | None = None,
) -> Coupling:  # fmt: skip
    """Return the channel groups of ``model``, and what cannot be touched and why.

    The forward runs several times, and the model's hooks with it, because they may change what it computes. They see
    tensors without data (``tensor.is_meta``), also of smaller sizes, or real ones where the model cannot run without.
    What a hook stores in its module is taken back; what it stores elsewhere is not.

    Args:
        model: any model whose forward runs. It is not changed.
        example_inputs: positional inputs (tuple), keyword inputs (mapping) or one tensor.
        also: further example inputs, for a forward that goes another way on them: the groups hold on every way.
        probe: run the forward on a smaller model and offer only groups that survive.
        prefer: what attention loses where the forward leaves the choice: whole heads, or equal positions of all heads.
            The other is taken where it reaches more.
        registry: where further operator rules come from.

    Raises:
        ModelError: the forward fails on the example inputs.
    """
    with collector_paused():
        inputs = Several((example_inputs, *also)) if also else example_inputs
        rules = rules_of(registry)
        found = _analyse(model, inputs, probe, _Way(rules, prefer))
        if prefer != "heads":
            found = max(found, _analyse(model, inputs, probe, _Way(rules, "heads")), key=_reach)
            found = replace(found, prefer=prefer)
        return replace(found, also=tuple(also)) if also else found


@dataclass(frozen=True, slots=True)
class _Way:
    """How operators are read."""

    rules: Mapping[str, Rule]
    prefer: Preference


def _analyse(model: nn.Module, example_inputs: Inputs | Several, probe: bool, way: _Way) -> Coupling:
    graph = record(model, example_inputs, rules=way.rules)
    inner = unwrap(model)
    if not probe:
        return _settled(inner, graph, way, {}).coupling
    choices: dict[int, int] = {}
    for _ in range(_QUICK_ROUNDS):  # operators of one make read alike: enough for nearly every model
        derivation = _settled(inner, graph, way, choices)
        failures = find_failures(inner, example_inputs, derivation.coupling, way.rules, first=True)
        if not failures:
            return _without(derivation.coupling, {})
        blamed = {_make(graph, node) for node in _blamed(derivation, failures)}
        alike = [node for node in derivation.sites if _make(graph, node) in blamed]
        again = _advance(derivation, alike, choices)
        if not again:
            break
        choices |= again
    found = [_careful(inner, example_inputs, graph, way, {})]
    if choices:
        found.append(_careful(inner, example_inputs, graph, way, choices))
    return max(found, key=_reach)


def _careful(model: nn.Module, inputs: Inputs | Several, graph: Graph, way: _Way, choices: dict[int, int]) -> Coupling:
    """Find all failures, read the operators that are to blame anew, each on its own, and return the best coupling."""
    choices = dict(choices)
    found: list[Coupling] = []
    for _ in range(_ROUNDS):
        derivation = _settled(model, graph, way, choices)
        failures = find_failures(model, inputs, derivation.coupling, way.rules)
        found.append(_without(derivation.coupling, failures))
        again = _advance(derivation, _blamed(derivation, failures), choices)
        if not again:
            break
        choices |= again
    return max(found, key=_reach)


def _make(graph: Graph, node: int) -> tuple[object, ...]:
    """Return what operators of one make have in common."""
    return graph.nodes[node].op, *(graph.values[index].shape[1:] for index in graph.nodes[node].outputs)


def _settled(model: nn.Module, graph: Graph, way: _Way, choices: dict[int, int]) -> Derivation:
    """Read ambiguous operators anew where everything that they touch is frozen, as long as that frees something.

    All at once first, then those of one make at a time.
    """
    derivation = derive(graph, way.rules, choices, model, way.prefer)
    for _ in range(_ROUNDS):
        steps = _advance(derivation, derivation.stuck(), choices)
        makes: dict[tuple[object, ...], dict[int, int]] = {}
        for node, choice in steps.items():
            makes.setdefault(_make(graph, node), {})[node] = choice
        for trial in [steps, *makes.values()] if len(makes) > 1 else [steps]:
            fresh = derive(graph, way.rules, choices | trial, model, way.prefer) if trial else derivation
            if _reach(fresh.coupling) > _reach(derivation.coupling):
                choices |= trial
                derivation = fresh
                break
        else:
            break
    return derivation


def _advance(derivation: Derivation, nodes: list[int], choices: Mapping[int, int]) -> dict[int, int]:
    steps = {node: choices.get(node, 0) + 1 for node in nodes}
    return {node: choice for node, choice in steps.items() if choice < derivation.sites[node].options}


def _blamed(derivation: Derivation, failures: Mapping[str, Failure]) -> list[int]:
    """Return the ambiguous operators that may have caused failures: those in the failing module, where it has any."""
    nodes = derivation.coupling.graph.nodes
    found: set[int] = set()
    for name, failure in failures.items():
        touched = derivation.touching(derivation.coupling.unit_classes[name])
        module = nodes[failure.node].module if failure.node < len(nodes) else ""
        near = [node for node in touched if nodes[node].module == module]
        found.update(near or touched)
    return sorted(found)


def _without(coupling: Coupling, failures: Mapping[str, Failure]) -> Coupling:
    """Freeze what failed, and what has one unit only."""
    alone: tuple[str, SourceLine | None] = ("is the only unit of its kind", None)
    reasons = {group.name: alone for group in coupling.groups if group.units == 1}
    reasons |= {name: (failure.reason, failure.source) for name, failure in failures.items()}
    if not reasons:
        return coupling
    entries = [
        Frozen(member.name, member.dim, int(member.indices.size), *reasons[group.name])
        for group in coupling.groups if group.name in reasons for member in group.members
    ]  # fmt: skip
    return replace(
        coupling,
        groups=tuple(group for group in coupling.groups if group.name not in reasons),
        frozen=(*coupling.frozen, *entries),
        unit_classes={name: units for name, units in coupling.unit_classes.items() if name not in reasons},
    )


def _reach(coupling: Coupling) -> int:
    """Return how many parameter indices can go."""
    return int(np.sum([member.indices.size for group in coupling.groups for member in group.members], dtype=np.int64))
