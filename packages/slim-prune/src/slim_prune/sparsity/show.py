"""A sparsity plan as tables for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from slim_prune.sparsity.schemes import label

if TYPE_CHECKING:
    from slim_prune.sparsity.sparsity_plan import SparsityPlan

_BAR = 20


def table(plan: SparsityPlan) -> RenderableType:
    """Return what stays of each weight with a bar, the totals, and the notes."""
    rows = Table(
        "weight",
        "shape",
        "kept",
        "of",
        "zeros",
        "",
        title=f"{plan.model_class}: {label(plan.scheme)}, {plan.importance}",
    )
    for column in rows.columns[2:5]:
        column.justify = "right"
    for row in plan.summary():
        filled = round(_BAR * row["kept"] / row["total"]) if row["total"] else _BAR
        rows.add_row(
            row["name"], " x ".join(map(str, row["shape"])), f"{row['kept']:,}", f"{row['total']:,}",
            f"{row['sparsity']:.1%}", "█" * filled + "░" * (_BAR - filled),
        )  # fmt: skip
    total = Text(
        f"{plan.masks.kept:,} of {plan.masks.total:,} selected weights stay ({plan.sparsity:.2%} zeros); "
        f"{plan.nonzero:,} of the model's {plan.params:,} parameters may be other than zero"
    )
    groups = sorted({order.group for order in plan.orders})
    ordered = [Text(f"channels of {len(groups)} groups get a new order: {', '.join(groups[:6])}")] if groups else []
    return Group(rows, total, *ordered, *(Text(f"- {note}") for note in plan.notes))
