"""Curves for people: a table for a terminal, and one drawing of all curves as a file of its own."""

from __future__ import annotations

from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from slim_core.report import format as fmt
from slim_core.report.figures import Chart, Series
from slim_core.report.svg import HEIGHT, WIDTH, line_chart

if TYPE_CHECKING:
    from slim_prune.sensitivity.curves import Curve, Curves

#: shares of kept channels that the table has a column for
SHARES = (0.125, 0.25, 0.5, 0.75, 0.875)
_COLUMNS = 3
_COLOURS = ("#2563eb", "#d97706", "#059669", "#7c3aed")
_MARGIN, _HEAD = 12.0, 26.0


def table(curves: Curves) -> RenderableType:
    """Return one line per channel group: its drop at shares of its channels, read off the measured curve."""
    title = f"drop of {curves.metric} (whole model: {fmt.significant(curves.base.value, 4)})"
    rows = Table("channel group", "channels", *(f"{share:.1%}".replace(".0%", "%") for share in SHARES), title=title)
    for column in rows.columns[1:]:
        column.justify = "right"
    for curve in curves.curves:
        cells = [_cell(curves, curve, share) for share in SHARES]
        rows.add_row(curve.name or "(model)", str(curve.units * curve.channels_per_unit), *cells)
    return Group(rows, *(Text(f"- {note}") for note in curves.notes))


def drop_at(curves: Curves, curve: Curve, share: float) -> float | None:
    """Return the measured drop at a share of kept channels, on the line between neighbours; ``None`` outside."""
    points = [(point.kept / curve.units, curves.drop(point)) for point in curve.points]
    if not points:
        return None
    points = [*(item for item in points if item[0] < 1), (1.0, 0.0)]
    for (low, left), (high, right) in pairwise(points):
        if low <= share <= high:
            return left + (right - left) * (share - low) / (high - low)
    return None


def _cell(curves: Curves, curve: Curve, share: float) -> Text:
    drop = drop_at(curves, curve, share)
    if drop is None:
        return Text(fmt.ABSENT)
    largest = max((abs(curves.drop(point)) for item in curves.curves for point in item.points), default=0.0)
    level = drop / largest if largest else 0.0
    return Text(f"{drop:+.4f}", style="red" if level > 0.5 else "yellow" if level > 0.1 else "")


def drawing(curves: Curves) -> str:
    """Return all curves as one SVG document: a chart for every few groups, all with their own scale."""
    charts = [
        Chart(
            "",
            item["x_label"],
            tuple(
                Series(series["name"], tuple(zip(series["x"], series["y"], strict=True))) for series in item["series"]
            ),
            y_label=item["y_label"],
        )
        for item in curves.charts()
    ]
    columns = min(_COLUMNS, max(len(charts), 1))
    lines = -(-len(charts) // columns)
    cell_width, cell_height = WIDTH + _MARGIN, HEIGHT + _HEAD + _MARGIN
    width, height = columns * cell_width + _MARGIN, lines * cell_height + _MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" font-family="sans-serif" font-size="11">',
        f"<style>{_style()}</style>",
        f'<rect width="{width:.0f}" height="{height:.0f}" fill="#ffffff"/>',
    ]
    for number, chart in enumerate(charts):
        x, y = _MARGIN + number % columns * cell_width, _MARGIN + number // columns * cell_height
        parts.append(f'<g transform="translate({x:.0f} {y:.0f})">')
        step = WIDTH / 4
        for place, series in enumerate(chart.series):
            name = series.name if len(series.name) <= 18 else "…" + series.name[-17:]
            parts.append(
                f'<circle cx="{place * step + 5:.0f}" cy="9" r="4" fill="{_COLOURS[place % 4]}"/>'
                f'<text x="{place * step + 13:.0f}" y="13">{escape(name or "(model)", quote=True)}'
                f"<title>{escape(series.name, quote=True)}</title></text>"
            )
        inner = line_chart(chart).replace(
            "<svg ", f'<svg y="{_HEAD:.0f}" width="{WIDTH:.0f}" height="{HEIGHT:.0f}" ', 1
        )
        parts.append(f"{inner}</g>")
    parts.append("</svg>\n")
    return "".join(parts)


def _style() -> str:
    lines = "".join(f".curve.s{n}{{stroke:{colour}}}.dot.s{n}{{fill:{colour}}}" for n, colour in enumerate(_COLOURS, 1))
    return f".grid{{stroke:#e5e7eb}}.curve{{fill:none;stroke-width:2}}text{{fill:#374151}}{lines}"
