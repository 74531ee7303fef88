"""``slim prune show``: a written plan, as tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from slim_prune.cli.views import emit


@click.command("show")
@click.argument("plan", type=click.Path(path_type=Path, dir_okay=False))
@click.pass_obj
def show_command(app: Any, plan: Path) -> None:
    """Show a written plan: costs before and after, channels per group, notes."""
    from slim_prune.prune_plan import PrunePlan

    emit(app, PrunePlan.load(plan))
