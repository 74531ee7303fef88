"""A plan as tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from slim_prune.allocation.problem import figure

if TYPE_CHECKING:
    from slim_prune.prune_plan import GroupDifference, PrunePlan

_BAR = 20


def heading(plan: PrunePlan) -> str:
    """Return the line above a plan's tables: the model, and what decided."""
    return f"{plan.model_class}: {', '.join(part for part in (plan.importance, plan.allocation) if part)}"


def differences(first: PrunePlan, second: PrunePlan, rows: Sequence[GroupDifference]) -> RenderableType:
    """Return where two plans differ, as tables: costs after each, and the groups that keep other units."""
    costs = Table("cost", "before", "first", "second")
    for column in costs.columns[1:]:
        column.justify = "right"
    for name, before in first.before.items():
        after = [
            f"{figure(plan.after[name])} ({plan.after[name] / before:.1%})" if before and name in plan.after else "-"
            for plan in (first, second)
        ]
        costs.add_row(name, figure(before), *after)
    if not rows:
        return Group(costs, Text("the plans keep the same channels"))
    groups = Table("channel group", "units", "first keeps", "second keeps", "both keep")
    for column in groups.columns[1:]:
        column.justify = "right"
    for row in rows:
        groups.add_row(row.name or "(model)", str(row.units), str(row.first), str(row.second), str(row.common))
    return Group(costs, groups, Text(f"{len(rows)} of {len(first.groups)} groups differ"))


def table(plan: PrunePlan) -> RenderableType:
    """Return costs before and after, channels per group with a bar, and the notes."""
    parts: list[RenderableType] = []
    if plan.before:
        costs = Table("cost", "before", "after", "kept", title=heading(plan))
        limits = {bound.cost: bound for bound in plan.reached}
        if limits:
            costs.add_column("limit")
            costs.add_column("below it")
        for column in costs.columns[1:]:
            column.justify = "right"
        for name, before in plan.before.items():
            after = plan.after.get(name, before)
            cells = [name, figure(before), figure(after), f"{after / before:.1%}" if before else "-"]
            if limits:
                bound = limits.get(name)
                cells += [figure(bound.limit), f"{bound.distance:.2%}"] if bound is not None else ["", ""]
            costs.add_row(*cells)
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
