"""``analyse``: record, couple, and prove every group on the user's own forward."""

from __future__ import annotations

from torch import nn

from slim_core.graph.dims import derive, rules_of
from slim_core.graph.record import record
from slim_core.graph.types import Coupling
from slim_core.registry import Registry
from slim_core.workload import Inputs


def analyse(
    model: nn.Module, example_inputs: Inputs, *, probe: bool = True, registry: Registry | None = None
) -> Coupling:
    """Return the channel groups of ``model``, and what cannot be touched and why.

    Args:
        model: any model whose forward runs. It is not changed.
        example_inputs: positional inputs (tuple), keyword inputs (mapping) or one tensor.
        probe: run the forward on a smaller model and offer only groups that survive.
        registry: where further operator rules come from.

    Raises:
        ModelError: the forward fails on the example inputs.
    """
    rules = rules_of(registry)
    graph = record(model, example_inputs, rules=rules)
    return derive(graph, rules).coupling
