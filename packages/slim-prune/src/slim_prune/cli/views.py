"""How the commands print a plan: tables for people, JSON for programs, one line for scripts."""

from __future__ import annotations

from typing import Any


def emit(app: Any, plan: Any, **more: Any) -> None:
    """Print a plan; ``more`` is added to its JSON."""
    kept = ", ".join(f"{name} {plan.after[name] / before:.1%}" for name, before in plan.before.items() if before)
    data = {
        "model_class": plan.model_class,
        "importance": plan.importance,
        "allocation": plan.allocation,
        "budget": dict(plan.budget),
        "before": dict(plan.before),
        "after": dict(plan.after),
        "channels": plan.summary(),
        "notes": list(plan.notes),
        **more,
    }
    app.output.emit(data, render=plan.show, quiet=kept)
