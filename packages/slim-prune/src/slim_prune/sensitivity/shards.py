"""Which points each of several processes measures: neighbouring ones, of about equal work."""

from __future__ import annotations

from collections.abc import Sequence

from slim_core.errors import SlimError
from slim_core.graph.rules.base import refs_of
from slim_core.graph.types import Coupling

Key = tuple[str, int]
#: number of the part, from 1, and how many there are
Shard = tuple[int, int]


def parse_shard(shard: str | Shard | None) -> Shard:
    """Read ``"1/4"``; ``None`` is everything.

    Raises:
        SlimError: it says no part.
    """
    if shard is None:
        return (1, 1)
    try:
        part, parts = (int(item) for item in (shard.split("/") if isinstance(shard, str) else shard))
    except ValueError:
        part, parts = 0, 0
    if not 1 <= part <= parts:
        raise SlimError(f"a shard is a part of the work such as 1/4, not '{shard}'", where="shard", hint="1/4, … 4/4")
    return part, parts


def share_of(keys: Sequence[Key], coupling: Coupling, shard: Shard) -> list[Key]:
    """Return the points of one part. All parts together are all points, each once, whoever asks.

    Args:
        keys: all points, in the order of the forward.
        coupling: the analysis; what comes behind a group is what its points cost.
        shard: which part.
    """
    part, parts = shard
    if parts == 1:
        return list(keys)
    behind = _behind(coupling)
    whole = max(len(coupling.graph.nodes), 1)
    weights = [1 + behind.get(name, whole) for name, _ in keys]
    total, before = sum(weights), 0.0
    mine: list[Key] = []
    for key, weight in zip(keys, weights, strict=True):
        middle = (before + weight / 2) / total
        if min(int(middle * parts), parts - 1) == part - 1:
            mine.append(key)
        before += weight
    return mine


def _behind(coupling: Coupling) -> dict[str, int]:
    """Return how many operators come after the first use of each group."""
    first: dict[str, int] = {}
    names = {value.index: value.names for value in coupling.graph.values if value.names}
    for node in coupling.graph.nodes:
        for ref in refs_of(node.args.values()):
            for name in names.get(ref.index, ()):
                first.setdefault(name, node.index)
    last = len(coupling.graph.nodes)
    return {
        group.name: last - min((first.get(member.name, last) for member in group.members), default=last)
        for group in coupling.groups
    }
