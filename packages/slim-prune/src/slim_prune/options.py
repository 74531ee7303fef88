"""Which groups may be pruned to which counts: the options that plans, curves and schedules share, checked and applied.

Not here: patterns (``selection.py``), the counts of one group (``allocation/grid.py``), deciding (``allocation/``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from slim_core.errors import BudgetError, PatternError
from slim_core.graph.isolate import walk
from slim_core.graph.types import ChannelGroup, Coupling
from slim_prune.allocation.grid import grid
from slim_prune.allocation.problem import Choice
from slim_prune.selection import by_pattern, check_patterns, select


def as_patterns(patterns: str | Sequence[str]) -> tuple[str, ...]:
    """Return globs as a tuple; a single one may be given as it is."""
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)


def check_numbers(ratios: Mapping[str, float], round_to: int, min_channels: int | Mapping[str, int]) -> None:
    """Check what needs no model.

    Raises:
        PatternError: a ratio is no share.
        BudgetError: ``round_to`` or ``min_channels`` is not at least 1.
    """
    for pattern, ratio in ratios.items():
        if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 < ratio <= 1:
            raise PatternError(
                f"the ratio for '{pattern}' is the share of channels to keep, in (0, 1], not {ratio!r}",
                where=f"ratios['{pattern}']",
                hint="0.75 keeps three quarters; to leave layers alone, exclude them",
            )
    if round_to < 1:
        raise BudgetError(
            f"round_to must be at least 1, not {round_to}", where="round_to", hint="1 rounds nothing; 8 suits runtimes"
        )
    for floor in min_channels.values() if isinstance(min_channels, Mapping) else (min_channels,):
        if floor < 1:
            raise BudgetError(
                f"min_channels must be at least 1, not {floor}",
                where="min_channels",
                hint="a layer without channels is no layer; 1 sets no floor",
            )


def choices_of(
    model: nn.Module,
    coupling: Coupling,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    ratios: Mapping[str, float] | None = None,
    round_to: int = 8,
    min_channels: int | Mapping[str, int] = 1,
    patterns: Sequence[str] = (),
) -> list[Choice]:
    """Return the groups that may be pruned, in the order of the coupling, with the counts that they may keep.

    Args:
        model: the model, without wrappers.
        coupling: its analysis.
        include: globs over module paths that may be pruned; empty: all.
        exclude: globs over module paths that may not be touched.
        ratios: fixed shares of channels to keep by glob.
        round_to: kept channels are a multiple of this.
        min_channels: the least that a layer keeps, for all or by glob.
        patterns: further globs that must match a module.

    Raises:
        PatternError: a glob matches nothing; lists close names.
    """
    ratios = ratios or {}
    paths = [path for path, _ in walk(model)]
    floors = min_channels if isinstance(min_channels, Mapping) else {}
    check_patterns([*ratios, *floors, *patterns], paths)
    groups = select(coupling, paths, include=include, exclude=exclude)
    return [_choice(group, ratios, round_to, min_channels) for group in groups]


def _choice(group: ChannelGroup, ratios: Mapping[str, float], round_to: int, least: int | Mapping[str, int]) -> Choice:
    floor = least if isinstance(least, int) else by_pattern(group, least) or 1
    return Choice(group, grid(group, round_to=round_to, min_channels=floor), by_pattern(group, ratios))
