"""``slim plugins``: what is installed, what it adds, and why something failed to load."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from slim_core.cli.app import App
from slim_core.plugins import Outcome

if TYPE_CHECKING:
    from rich.table import Table


@click.command("plugins")
@click.pass_obj
def plugins(app: App) -> None:
    """List installed plugins, what they add, and why one failed.

    Exits with 0 also when plugins failed: the list is the answer.
    """
    outcomes = app.host.outcomes
    failed = len(app.host.failures)
    loaded = sum(outcome.status == "ok" for outcome in outcomes)
    app.output.emit(
        {"plugins": [outcome.to_json() for outcome in outcomes]},
        lambda: _table(outcomes),
        f"{loaded} loaded, {failed} failed",
    )
    if app.verbose:
        for outcome in app.host.failures:
            if outcome.traceback:
                app.output.note(f"\n{outcome}:\n{outcome.traceback}")


def _table(outcomes: tuple[Outcome, ...]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    colors = {"ok": "green", "failed": "red", "duplicate": "red", "skipped": "yellow"}
    table = Table(box=box.SIMPLE_HEAD, expand=False)
    table.add_column("plugin", no_wrap=True)
    table.add_column("distribution", no_wrap=True)
    table.add_column("version", no_wrap=True)
    table.add_column("status", no_wrap=True)
    table.add_column("hooks")
    table.add_column("registered, or the reason", overflow="fold", ratio=1)
    for outcome in outcomes:
        lines = [outcome.reason] if outcome.reason else []
        lines += [f"{kind}: {', '.join(names)}" for kind, names in outcome.registered.items()]
        lines += [f"note: {note}" for note in outcome.notes]
        table.add_row(
            Text(outcome.name),
            Text(outcome.distribution or "-"),
            Text(outcome.version or "-"),
            Text(outcome.status, style=colors[outcome.status]),
            Text("\n".join(hook.removeprefix("slim_") for hook in outcome.hooks) or "-"),
            Text("\n".join(lines) or "-"),
        )
    return table
