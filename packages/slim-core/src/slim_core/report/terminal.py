"""The report as rich renderables, for terminals."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from slim_core.report import figures
from slim_core.report import format as fmt
from slim_core.report.data import Report

if TYPE_CHECKING:
    from rich.console import Group
    from rich.text import Text

_STYLE = {"better": "green", "worse": "red", "accepted": "", "even": "dim", "unknown": "dim"}


def render_terminal(report: Report, *, folder: str | None = None) -> Group:
    """Return the before/after table, what is worse, and where the whole report is."""
    from rich import box
    from rich.console import Group, RenderableType
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, title_justify="left", title=_text(report.title, style="bold"))
    table.add_column("")
    table.add_column("original", justify="right", no_wrap=True)
    table.add_column("compressed", justify="right", no_wrap=True)
    table.add_column("change", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for _, members in groupby(figures.comparisons(report), key=lambda row: row.group):
        for row in members:
            table.add_row(
                _text(row.label),
                fmt.value(row.original, row.unit),
                Text(fmt.value(row.compressed, row.unit), style="bold"),
                row.change,
                Text(row.factor, style=_STYLE[row.verdict]),
            )
        table.add_section()
    parts: list[RenderableType] = [table]
    runtimes = dict.fromkeys(row.runtime for row in report.latency)
    device = f"{report.device}" + (f"; {', '.join(runtimes)}" if runtimes else "")
    parts.append(Padding(_text(f"Measured on {device}", style="dim"), (0, 0, 0, 1)))
    for note in (note for note in report.notes if note.level == "bad"):
        line = _text(f"worse: {note.text}", style="red")
        if note.hint:
            line.append(fmt.clean(f"\n       {note.hint}"), style="default")
        parts.append(Padding(line, (0, 0, 0, 1)))
    others = sum(note.level == "warning" for note in report.notes)
    if others:
        text = f"{others} note{'s' if others > 1 else ''} on what was left alone or skipped: see the report"
        parts.append(Padding(Text(text, style="yellow"), (0, 0, 0, 1)))
    parts.append(Padding(_text(figures.headline(report), style="bold"), (1, 0, 0, 1)))
    if folder is not None:
        # one line however narrow the terminal is, so that it can be clicked and copied
        parts.append(Text(f" Report: {folder}/report.html", no_wrap=True, overflow="ignore"))
    return Group(*parts)


def _text(text: str, style: str = "") -> Text:
    from rich.text import Text

    return Text(fmt.clean(text), style=style)
