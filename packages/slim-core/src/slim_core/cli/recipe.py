"""``slim recipe``: check a recipe, print its JSON schema, list and show the recipes that plugins ship."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slim_core.cli.app import App
from slim_core.errors import RecipeError

if TYPE_CHECKING:
    from rich.console import RenderableType


@click.group("recipe")
def recipe() -> None:
    """Check recipes, list the installed ones, and print the schema for editors."""


@recipe.command("check", short_help="Check a recipe; tell every problem with its line.")
@click.argument("recipe_name", metavar="RECIPE")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one key, as `slim run` does.")
@click.pass_obj
def check(app: App, recipe_name: str, overrides: tuple[str, ...]) -> None:
    """Check a recipe's keys and names; tell every problem with its line. Nothing is run.

    What a run would also need on this machine, such as files of data and packages, is told as a warning.

    RECIPE is a file, or the name of an installed recipe.
    """
    from slim_core.recipe.load import load_recipe
    from slim_core.recipe.surroundings import missing

    try:
        loaded = load_recipe(recipe_name, app.registry, overrides=overrides)
    except RecipeError as error:
        if app.output.format != "json":
            raise
        problems = [{"what": item.what, "where": item.where, "hint": item.hint} for item in error.problems]
        app.output.emit({"valid": False, "problems": problems})
        raise click.exceptions.Exit(2) from None
    kinds = ", ".join(step.kind for step in loaded.steps) or "no steps"
    found = missing(loaded, app.registry)
    app.output.emit(
        {
            "valid": True,
            "problems": [],
            "warnings": [{"what": item.what, "where": item.where, "hint": item.hint} for item in found],
            "recipe": loaded.resolved(),
        },
        lambda: f"{recipe_name} is a valid recipe: {loaded.workload.model}, {kinds}",
        "valid, but it cannot run here yet" if found else "valid",
    )
    for item in found:
        app.output.note(f"warning: a run needs more: {item}")


@recipe.command("schema", short_help="Print the JSON schema of recipes, for editors.")
@click.option("-o", "--output", "path", type=click.Path(path_type=Path), help="Write it to a file.")
@click.pass_obj
def schema(app: App, path: Path | None) -> None:
    """Print the JSON schema of recipes, with the keys of every installed technique.

    Editors with YAML support check and complete a recipe that begins with the line
    `# yaml-language-server: $schema=recipe.schema.json`.
    """
    from slim_core.files import require_folder, write_json
    from slim_core.recipe.editor import json_schema

    data = json_schema(app.registry)
    if path is None:
        app.output.emit(data)
        return
    require_folder(path)
    write_json(path, data)
    app.output.emit({"written": str(path)}, lambda: f"written: {path}", str(path))


@recipe.command("list")
@click.pass_obj
def list_recipes(app: App) -> None:
    """List the recipes that plugins ship; `slim run NAME` runs one."""
    rows = [_about(app, name) for name in app.registry.names("recipes")]
    names = "\n".join(row["name"] for row in rows)
    app.output.emit({"recipes": rows}, lambda: _table(rows), names)


@recipe.command("show", short_help="Print an installed recipe.")
@click.argument("name")
@click.pass_obj
def show(app: App, name: str) -> None:
    """Print an installed recipe, to run or to start an own one from."""
    from slim_core.recipe.load import shipped_path

    path = shipped_path(name, app.registry)
    text = path.read_text(encoding="utf-8").rstrip("\n")
    from rich.text import Text

    app.output.emit({"name": name, "path": str(path), "text": text}, lambda: Text(text, no_wrap=True), text)


def _about(app: App, name: str) -> dict[str, Any]:
    from slim_core.recipe.load import find_source

    entry = next(entry for entry in app.registry.entries("recipes") if entry.name == name)
    row: dict[str, Any] = {"name": name, "plugin": entry.plugin, "description": "", "steps": []}
    try:
        data = find_source(name, app.registry).data
    except RecipeError as error:
        return {**row, "description": f"cannot be read: {error.what}"}
    if isinstance(data, dict):
        row["description"] = data.get("description") or ""
        steps = data.get("steps")
        row["steps"] = [step.get("kind") for step in steps if isinstance(step, dict)] if isinstance(steps, list) else []
    return row


def _table(rows: list[dict[str, Any]]) -> RenderableType:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    if not rows:
        return Text("no installed plugin ships a recipe; pip install slim-zoo brings some")
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("name", no_wrap=True)
    table.add_column("what it does", overflow="fold")
    table.add_column("steps", overflow="fold")
    table.add_column("plugin", no_wrap=True)
    for row in rows:
        steps = ", ".join(str(kind) for kind in row["steps"])
        table.add_row(Text(row["name"]), Text(str(row["description"])), Text(steps), Text(row["plugin"]))
    return table
