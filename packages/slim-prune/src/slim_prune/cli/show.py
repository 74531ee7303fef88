"""``slim prune show`` and ``slim prune diff``: written plans, as tables, pictures and JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from slim_prune.cli.options import refuse_existing
from slim_prune.cli.views import draw, emit


@click.command("show")
@click.argument("plan", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--picture", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Draw it into an SVG file too."
)
@click.option("--overwrite", is_flag=True, help="Replace the file of --picture.")
@click.pass_obj
def show_command(app: Any, plan: Path, picture: Path | None, overwrite: bool) -> None:
    r"""Show a written plan: costs before and after, channels per group, notes; or a plan of sparsity.

    \b
    slim prune show plan.json --picture plan.svg
    """
    from slim_prune.prune_plan import PrunePlan

    if plan.suffix == ".safetensors" and picture is None:
        from slim_prune.cli.sparsify import emit_plan

        emit_plan(app, plan)
        return

    refuse_existing(picture, overwrite)
    found = PrunePlan.load(plan)
    draw(app, found, picture)
    emit(app, found)


@click.command("diff")
@click.argument("first", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("second", type=click.Path(path_type=Path, dir_okay=False))
@click.pass_obj
def diff_command(app: Any, first: Path, second: Path) -> None:
    r"""Say where two plans for one model keep other channels.

    \b
    slim prune diff uniform.json global.json
    """
    from slim_prune.prune_plan import PrunePlan
    from slim_prune.show import differences

    one, other = PrunePlan.load(first), PrunePlan.load(second)
    rows = one.diff(other)
    data = {
        "first": {"plan": str(first), "after": dict(one.after)},
        "second": {"plan": str(second), "after": dict(other.after)},
        "before": dict(one.before),
        "groups": [
            {"name": r.name, "units": r.units, "first": r.first, "second": r.second, "common": r.common} for r in rows
        ],
    }
    app.output.emit(data, lambda: differences(one, other, rows), f"{len(rows)} of {len(one.groups)} groups differ")
