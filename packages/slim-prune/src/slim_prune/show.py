"""A plan as tables for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from slim_prune.allocation.problem import figure

if TYPE_CHECKING:
    from slim_prune.prune_plan import PrunePlan

_BAR = 20


def table(plan: PrunePlan) -> RenderableType:
    """Return costs before and after, channels per group with a bar, and the notes."""
    parts: list[RenderableType] = []
    if plan.before:
        costs = Table(
            "cost", "before", "after", "kept", title=f"{plan.model_class}: {plan.importance}, {plan.allocation}"
        )
        for column in costs.columns[1:]:
            column.justify = "right"
        for name, before in plan.before.items():
            after = plan.after.get(name, before)
            costs.add_row(name, figure(before), figure(after), f"{after / before:.1%}" if before else "-")
        parts.append(costs)
    rows = Table("channel group", "kept", "of", "")
    rows.columns[1].justify = rows.columns[2].justify = "right"
    for row in plan.summary():
        filled = round(_BAR * row["kept"] / row["total"])
        rows.add_row(
            row["name"] or "(model)", str(row["kept"]), str(row["total"]), "█" * filled + "░" * (_BAR - filled)
        )
    parts.append(rows)
    parts.extend(Text(f"- {note}") for note in plan.notes)
    return Group(*parts)
