"""The options of planning, which the commands share: ``plan_options`` adds them and hands them over as ``asked``.

Model, data and task are core's (``slim_core.cli.options``). Not here: what a command does with them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from slim_core.cli.options import WorkloadRequest, bundled, named, once, pair, refuse_existing, workload_options
from slim_core.errors import SlimError

__all__ = [
    "MIN_CHANNELS",
    "PREFER",
    "PlanRequest",
    "WorkloadRequest",
    "floors",
    "named",
    "once",
    "pair",
    "plan_options",
    "refuse_existing",
    "workload_options",
]

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """How much is taken, where, and by what criterion, as it stands on the command line."""

    budget: tuple[str, ...]
    ratio: tuple[str, ...]
    importance: str
    allocation: str
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    round_to: int
    min_channels: tuple[str, ...]
    prefer: str

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments of :func:`slim_prune.plan`.

        Raises:
            SlimError: an option cannot be read.
        """
        return {
            "budget": once((pair(item, "--budget", "macs=0.5") for item in self.budget), "--budget") or None,
            "ratios": once((_number(item, "--ratio", float, "layer1.*=0.75") for item in self.ratio), "--ratio"),
            "importance": named(self.importance, "--importance"),
            "allocation": named(self.allocation, "--allocation"),
            "include": self.include,
            "exclude": self.exclude,
            "round_to": self.round_to,
            "min_channels": floors(self.min_channels),
            "prefer": self.prefer.replace("-", "_"),
        }


MIN_CHANNELS = click.option(
    "--min-channels",
    multiple=True,
    metavar="[GLOB=]COUNT",
    help="The least that a layer keeps, for all or by glob; may be repeated.  [default: 1]",
)
PREFER = click.option(
    "--prefer",
    type=click.Choice(["heads", "head-dim"]),
    default="heads",
    show_default=True,
    help="What attention loses where the model leaves the choice: whole heads, or equal positions of all heads.",
)
_PLAN = (
    click.option("--budget", multiple=True, metavar="COST=BOUND", help="macs=0.5, params=1.2M; may be repeated."),
    click.option("--ratio", multiple=True, metavar="GLOB=SHARE", help="Share of channels to keep; may be repeated."),
    click.option(
        "--importance",
        default="l1",
        show_default=True,
        metavar="NAME[:OPTION=VALUE,…]",
        help="The importance criterion, with its options: l2:normalize=max.",
    ),
    click.option(
        "--allocation",
        default="uniform",
        show_default=True,
        metavar="NAME[:OPTION=VALUE,…]",
        help="How much to take where, with its options: global:normalize=max.",
    ),
    click.option("--include", multiple=True, metavar="GLOB", help="Modules that may be pruned; may be repeated."),
    click.option("--exclude", multiple=True, metavar="GLOB", help="Modules that may not be touched; may be repeated."),
    click.option("--round-to", default=8, show_default=True, help="Kept channels are a multiple of this."),
    MIN_CHANNELS,
    PREFER,
)


def plan_options(command: F) -> F:
    """Add the options of :class:`PlanRequest`; the command takes them as ``asked``."""
    return bundled(command, _PLAN, PlanRequest, "asked")


def _number(item: str, option: str, kind: Callable[[str], Any], example: str) -> tuple[str, Any]:
    name, value = pair(item, option, example)
    try:
        return name, kind(value)
    except ValueError:
        raise SlimError(
            f"{option} takes NAME=VALUE, and '{value}' is not a number", hint=f"{option} {example}"
        ) from None


def floors(items: tuple[str, ...]) -> int | dict[str, int]:
    """Read ``--min-channels``: a count for all layers, or counts by glob.

    Raises:
        SlimError: it cannot be read.
    """
    plain = [item for item in items if "=" not in item]
    if len(plain) > 1:
        raise SlimError("--min-channels without a glob stands there twice", where=" ".join(plain))
    try:
        everywhere = int(plain[0]) if plain else 1
    except ValueError:
        raise SlimError(
            f"--min-channels takes a count, not '{plain[0]}'", hint="--min-channels 16 or --min-channels 'layer1.*=16'"
        ) from None
    option = "--min-channels"
    by_glob = once((_number(item, option, int, "layer1.*=16") for item in items if "=" in item), option)
    return {**by_glob, "*": everywhere} if by_glob else everywhere
