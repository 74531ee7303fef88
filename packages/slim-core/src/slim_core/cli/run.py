"""``slim run``: run a recipe; and ``slim report``: show the report of a finished run again."""

from __future__ import annotations

import re
from pathlib import Path

import click

from slim_core.cli.app import App
from slim_core.cli.resuming import this_command
from slim_core.errors import Interrupted


@click.command("run")
@click.argument("recipe", metavar="RECIPE")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Output folder.  [default: out/NAME-OF-THE-RECIPE]")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one key: --set seed=3.")
@click.option("--overwrite", is_flag=True, help="Replace the run that the output folder holds, and begin anew.")
@click.pass_obj
def run(app: App, recipe: str, out: Path | None, overrides: tuple[str, ...], overwrite: bool) -> None:
    """Run a recipe: compress, export, measure, report.

    RECIPE is a YAML file or the name of an installed recipe (`slim recipe list`). An interrupted or killed run goes on
    where it stopped when the same command is given again. `--load FILE` brings models, data and tasks of your own.
    """
    from slim_core.recipe.load import load_recipe

    loaded = load_recipe(recipe, app.registry, overrides=overrides)
    folder = out if out is not None else Path("out") / re.sub(r"[^A-Za-z0-9._-]+", "-", loaded.name)

    from slim_core.recipe.runner import run_or_reuse
    from slim_core.report.figures import headline
    from slim_core.report.terminal import render_terminal

    try:
        report, reused = run_or_reuse(
            loaded, folder, registry=app.registry, progress=app.output.progress, overwrite=overwrite
        )
    except Interrupted as error:
        raise Interrupted(error.what, hint=f"to resume: {this_command()}") from None
    app.output.emit(
        {"out": str(folder), "reused": reused, "report": report.to_json()},
        lambda: render_terminal(report, folder=str(folder)),
        lambda: f"{folder}: {'finished before, nothing was run again; ' if reused else ''}{headline(report)}",
    )


@click.command("report")
@click.argument("folder", metavar="FOLDER", type=click.Path(path_type=Path))
@click.pass_obj
def report(app: App, folder: Path) -> None:
    """Show the report of a finished run, and write its HTML page and model card again from report.json."""
    from slim_core.report import read_report, render_terminal, write_views
    from slim_core.report.figures import headline

    found = read_report(folder / "report.json" if folder.is_dir() or folder.suffix != ".json" else folder)
    where = folder if folder.is_dir() else folder.parent
    write_views(found, where)
    app.output.emit(
        {"out": str(where), "report": found.to_json()},
        lambda: render_terminal(found, folder=str(where)),
        lambda: f"{where}: {headline(found)}",
    )
