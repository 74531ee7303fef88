"""A plan as an SVG file: the costs that are left, and kept channels per group. Numbers come from the plan's summary.

Not here: the bars themselves (``slim_core.report.svg``), tables (``show.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from slim_core.report.data import ChannelRow
from slim_core.report.svg import channel_bars
from slim_core.report.svg_file import standalone
from slim_prune.allocation.problem import figure
from slim_prune.show import heading

if TYPE_CHECKING:
    from slim_prune.prune_plan import PrunePlan


def picture(plan: PrunePlan) -> str:
    """Return the plan as an SVG document, in light or dark colours as the viewer prefers."""
    rows = [ChannelRow(row["name"] or "(model)", row["kept"], row["total"]) for row in plan.summary()]
    return standalone([channel_bars(rows)] if rows else [], title=heading(plan), lines=cost_lines(plan))


def cost_lines(plan: PrunePlan) -> list[str]:
    """Return one line per cost, with its limit where the budget has one."""
    limits = {bound.cost: bound for bound in plan.reached}
    lines = []
    for name, before in plan.before.items():
        after = plan.after.get(name, before)
        share = f" ({after / before:.1%})" if before else ""
        limit = f", limit {figure(limits[name].limit)}" if name in limits else ""
        lines.append(f"{name}: {figure(after)} of {figure(before)}{share}{limit}")
    return lines
