"""What operators mean for channels: one file per family, each with a ``RULES`` table of operator name to rule."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from slim_core.graph.rules.base import Rule

FAMILIES = ()


@cache
def builtin_rules() -> Mapping[str, Rule]:
    """Return the core's rules by operator name (``"aten.add"``, or ``"aten.max.dim"`` for one overload)."""
    return {}


def find_rule(rules: Mapping[str, Rule], op: str) -> Rule | None:
    """Return the rule of ``op``: of the overload, else of all overloads; in-place forms have their operator's rule."""
    found = rules.get(op)
    if found is None:
        packet = op.rsplit(".", 1)[0]
        found = rules.get(packet)
        if found is None and packet.endswith("_"):
            found = rules.get(packet[:-1] + op[len(packet):]) or rules.get(packet[:-1])
    return found
