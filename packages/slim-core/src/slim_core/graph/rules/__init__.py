"""What operators mean for channels: one file per family, each with a ``RULES`` table of operator name to rule."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from slim_core.graph.rules import (
    convolution,
    creation,
    norms,
    parts,
    pointwise,
    products,
    recurrent,
    reductions,
    shapes,
)
from slim_core.graph.rules.base import Rule

FAMILIES = (convolution, creation, norms, parts, pointwise, products, recurrent, reductions, shapes)


@cache
def builtin_rules() -> Mapping[str, Rule]:
    """Return the core's rules by operator name (``"aten.add"``, or ``"aten.max.dim"`` for one overload)."""
    return {name: rule for family in FAMILIES for name, rule in family.RULES.items()}


def find_rule(rules: Mapping[str, Rule], op: str) -> Rule | None:
    """Return the rule of ``op``: of the overload, else of all overloads; in-place forms have their operator's rule."""
    packet, _, overload = op.rpartition(".")
    found = rules.get(op) or rules.get(packet)
    if found is None and packet.endswith("_"):
        found = rules.get(f"{packet[:-1]}.{overload}") or rules.get(packet[:-1])
    return found
