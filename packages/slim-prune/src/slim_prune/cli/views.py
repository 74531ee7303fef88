"""How the commands print a plan: tables for people, JSON for programs, one line for scripts, a picture as a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def emit(app: Any, plan: Any, **more: Any) -> None:
    """Print a plan; ``more`` is added to its JSON."""
    kept = ", ".join(f"{name} {plan.after[name] / before:.1%}" for name, before in plan.before.items() if before)
    data = {
        "model_class": plan.model_class,
        "importance": plan.importance,
        "allocation": plan.allocation,
        "budget": dict(plan.budget),
        "reached": [bound.to_json() for bound in plan.reached],
        "before": dict(plan.before),
        "after": dict(plan.after),
        "channels": plan.summary(),
        "notes": list(plan.notes),
        "details": dict(plan.details),
        **more,
    }
    app.output.emit(data, render=plan.show, quiet=kept)


def draw(app: Any, plan: Any, path: Path | None) -> None:
    """Write a plan's picture, where one is asked for."""
    if path is None:
        return
    from slim_core.files import write_text

    write_text(path, plan.picture())
    app.output.note(f"picture written to {path}")
