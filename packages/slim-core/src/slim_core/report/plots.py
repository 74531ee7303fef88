"""More drawings in the manner of ``svg.py``: bars of figures, histograms with marks, points with their Pareto front.

A plot is data first (:class:`Bars`, :class:`Histogram`, :class:`Scatter`), also as JSON (:func:`read_plots`), and
:func:`draw` draws it. Nothing is computed here but :func:`front`. ``svg_file.standalone`` makes files of drawings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from slim_core.report import format as fmt
from slim_core.report.svg import HEIGHT, WIDTH, escaped, opened, scale, shorten, tick_text, ticks

_LEFT, _RIGHT, _TOP, _BOTTOM = 58.0, 12.0, 24.0, 34.0
_MOST_SERIES = 4


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar.

    Args:
        name: what it stands for.
        value: its length.
        note: written behind the figure.
        pale: draw it in the colour of what is not in question.
    """

    name: str
    value: float
    note: str = ""
    pale: bool = False


@dataclass(frozen=True, slots=True)
class Bars:
    """Bars from zero, to one scale.

    Args:
        title: what they show.
        rows: from top to bottom.
        unit: of all figures.
    """

    title: str
    rows: tuple[Bar, ...]
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Histogram:
    """How often values fall between neighbouring edges.

    Args:
        title: what was counted.
        edges: increasing; one more than counts.
        counts: how many values, or shares of them.
        marks: named positions on the axis, drawn as vertical lines: thresholds.
    """

    title: str
    edges: tuple[float, ...]
    counts: tuple[float, ...]
    marks: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Point:
    """One point of a scatter plot; points of one ``group`` share a colour."""

    name: str
    x: float
    y: float
    group: str = ""


@dataclass(frozen=True, slots=True)
class Scatter:
    """Points, and the front of them all: least ``x``, most ``y``."""

    title: str
    x_label: str
    y_label: str
    points: tuple[Point, ...]


Plot = Bars | Histogram | Scatter


def draw(plot: Plot) -> str:
    """Return a plot as SVG."""
    if isinstance(plot, Bars):
        return _bars(plot)
    return _histogram(plot) if isinstance(plot, Histogram) else _scatter(plot)


def read_plots(items: Any) -> tuple[Plot, ...]:
    """Return the plots that stand as JSON in a list; what is no plot is left out, and figures that are not finite too.

    ``{"kind": "bars", "title", "unit", "rows": [{"name", "value", "note", "pale"}]}``; ``{"kind": "histogram", "title",
    "edges", "counts", "marks": [{"name", "x"}]}``; ``{"kind": "scatter", "title", "x_label", "y_label", "points":
    [{"name", "x", "y", "group"}]}``.
    """
    found = [_read(item) for item in items if isinstance(item, Mapping)] if isinstance(items, list | tuple) else []
    return tuple(plot for plot in found if plot is not None)


def _bars(plot: Bars) -> str:
    rows, title, unit = plot.rows, plot.title, plot.unit
    values = [row.value for row in rows if math.isfinite(row.value)]
    marks = ticks(min([0.0, *values]), max([0.0, *values]))
    longest = max([len(row.name) for row in rows] + [1])
    label = min(max(longest * 6.9, 60), 330)
    line, right, width = 21.0, 190.0, 980.0
    at = scale(marks[0], marks[-1], label, width - right)
    height = line * len(rows) + 44
    parts = [opened(width, height, f"{title}: {len(rows)} bars")]
    parts.append(f'<text class="ink" x="0" y="14">{escaped(title)}</text>')
    for mark in marks:
        x = at(mark)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="22" y2="{height - 20:.0f}"/>')
        parts.append(
            f'<text x="{x:.1f}" y="{height - 5:.0f}" text-anchor="middle">{tick_text(mark, marks[1] - marks[0])}</text>'
        )
    for number, row in enumerate(rows):
        y = number * line + 26
        start, end = sorted((at(0.0), at(row.value))) if math.isfinite(row.value) else (at(0.0), at(0.0))
        figure = f"{fmt.significant(row.value, 3)} {unit}".strip() if math.isfinite(row.value) else fmt.ABSENT
        said = f"{figure} {row.note}".strip()
        parts.append(
            f"<g><title>{escaped(row.name)}: {escaped(said)}</title>"
            f'<text class="ink" x="{label - 10:.0f}" y="{y + 12:.0f}" text-anchor="end">'
            f"{escaped(shorten(row.name))}</text>"
            f'<rect class="{"orig" if row.pale else "kept"}" x="{start:.1f}" y="{y:.0f}" width="{end - start:.1f}" '
            f'height="14" rx="3"/><text x="{end + 8:.1f}" y="{y + 12:.0f}">{escaped(said)}</text></g>'
        )
    parts.append("</svg>")
    return "".join(parts)


def _histogram(chart: Histogram) -> str:
    """Counts are drawn on a logarithmic scale, so that rare values are seen."""
    most = max(chart.counts, default=0.0)
    least = min((count for count in chart.counts if count > 0), default=1.0)
    spread = [chart.edges[0], chart.edges[-1], *(x for _, x in chart.marks)]
    low, high = min(spread), max(spread)
    if low == high:
        low, high = low - 0.5, high + 0.5
    at = scale(low, high, _LEFT, WIDTH - _RIGHT)
    floor = math.log10(least) - 0.5
    ceiling = math.log10(most) if most > 0 else floor + 1
    up = scale(floor, max(ceiling, floor + 0.5), HEIGHT - _BOTTOM, _TOP)
    marks = "; ".join(f"{name} {x:.4g}" for name, x in chart.marks)
    described = f"{chart.title}, from {chart.edges[0]:.4g} to {chart.edges[-1]:.4g}"
    parts = [opened(WIDTH, HEIGHT, f"{described}; {marks}" if marks else described)]
    parts.append(f'<text class="ink" x="{_LEFT:.0f}" y="14">{escaped(shorten(chart.title, 56))}</text>')
    for (left, right), count in zip(pairwise(chart.edges), chart.counts, strict=True):
        if count > 0:
            y = up(math.log10(count))
            parts.append(
                f'<rect class="kept" x="{at(left):.2f}" y="{y:.1f}" width="{max(at(right) - at(left), 0.4):.2f}" '
                f'height="{HEIGHT - _BOTTOM - y:.1f}"/>'
            )
    bottom = HEIGHT - _BOTTOM
    parts.append(f'<line class="grid" x1="{_LEFT:.0f}" x2="{WIDTH - _RIGHT:.0f}" y1="{bottom:.0f}" y2="{bottom:.0f}"/>')
    for name, x in chart.marks:
        parts.append(
            f'<line class="whisker" x1="{at(x):.1f}" x2="{at(x):.1f}" y1="{_TOP:.0f}" y2="{bottom:.0f}">'
            f"<title>{escaped(name)}: {x:.6g}</title></line>"
        )
    marked = ticks(low, high, 6)
    for mark in marked:
        if low - 1e-9 <= mark <= high + 1e-9:
            parts.append(
                f'<text x="{at(mark):.1f}" y="{bottom + 18:.0f}" text-anchor="middle">'
                f"{tick_text(mark, marked[1] - marked[0])}</text>"
            )
    parts.append("</svg>")
    return "".join(parts)


def _scatter(plot: Scatter) -> str:
    points, title, x_label, y_label = plot.points, plot.title, plot.x_label, plot.y_label
    xs, ys = (
        ticks(min(p.x for p in points), max(p.x for p in points), 6),
        ticks(min(p.y for p in points), max(p.y for p in points)),
    )
    at = scale(xs[0], xs[-1], _LEFT, WIDTH - _RIGHT)
    up = scale(ys[0], ys[-1], HEIGHT - _BOTTOM, _TOP)
    parts = [opened(WIDTH, HEIGHT, f"{title}: {y_label} against {x_label}, {len(points)} points")]
    parts.append(f'<text class="ink" x="{_LEFT:.0f}" y="14">{escaped(shorten(title, 56))}</text>')
    for mark in ys:
        y = up(mark)
        parts.append(f'<line class="grid" x1="{_LEFT:.0f}" x2="{WIDTH - _RIGHT:.0f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(
            f'<text x="{_LEFT - 8:.0f}" y="{y + 4:.1f}" text-anchor="end">{tick_text(mark, ys[1] - ys[0])}</text>'
        )
    for mark in xs:
        parts.append(
            f'<text x="{at(mark):.1f}" y="{HEIGHT - _BOTTOM + 18:.0f}" text-anchor="middle">'
            f"{tick_text(mark, xs[1] - xs[0])}</text>"
        )
    parts.append(
        f'<text x="{WIDTH - _RIGHT:.0f}" y="{HEIGHT - 2:.0f}" text-anchor="end">{escaped(x_label)}</text>'
        f'<text x="{_LEFT + 4:.0f}" y="{_TOP + 10:.0f}">{escaped(y_label)}</text>'
    )
    path = " ".join(f"{at(p.x):.1f},{up(p.y):.1f}" for p in front(points))
    parts.append(f'<polyline class="curve" points="{path}"/>')
    groups = list(dict.fromkeys(point.group for point in points))
    for point in points:
        style = f"s{min(groups.index(point.group) + 1, _MOST_SERIES)}"
        parts.append(
            f'<circle class="dot {style}" cx="{at(point.x):.1f}" cy="{up(point.y):.1f}" r="4">'
            f"<title>{escaped(point.name)}: {point.x:.5g} {escaped(x_label)}, {point.y:.5g} {escaped(y_label)}"
            "</title></circle>"
        )
    parts.append("</svg>")
    return "".join(parts)


def front(points: Sequence[Point]) -> tuple[Point, ...]:
    """Return the points that no other one beats in both: least ``x``, most ``y``; in the order of ``x``."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda item: (item.x, -item.y)):
        if not kept or point.y > kept[-1].y:
            kept.append(point)
    return tuple(kept)


def _read(item: Mapping[str, Any]) -> Plot | None:
    title = str(item.get("title", ""))
    if item.get("kind") == "bars":
        rows = [
            Bar(str(row.get("name", "")), value, str(row.get("note", "")), row.get("pale") is True)
            for row in _mappings(item.get("rows"))
            if (value := _number(row.get("value"))) is not None
        ]
        return Bars(title, tuple(rows), str(item.get("unit", ""))) if rows else None
    if item.get("kind") == "histogram":
        edges, counts = _numbers(item.get("edges")), _numbers(item.get("counts"))
        marks = [
            (str(mark.get("name", "")), x)
            for mark in _mappings(item.get("marks"))
            if (x := _number(mark.get("x"))) is not None
        ]
        rising = all(one <= other for one, other in pairwise(edges))
        fits = len(edges) == len(counts) + 1 and len(counts) > 0 and rising
        return Histogram(title, edges, counts, tuple(marks)) if fits else None
    if item.get("kind") == "scatter":
        points = [
            Point(str(point.get("name", "")), x, y, str(point.get("group", "")))
            for point in _mappings(item.get("points"))
            if (x := _number(point.get("x"))) is not None and (y := _number(point.get("y"))) is not None
        ]
        labels = str(item.get("x_label", "")), str(item.get("y_label", ""))
        return Scatter(title, *labels, tuple(points)) if points else None
    return None


def _mappings(items: Any) -> list[Mapping[str, Any]]:
    return [item for item in items if isinstance(item, Mapping)] if isinstance(items, list | tuple) else []


def _numbers(items: Any) -> tuple[float, ...]:
    found = [_number(item) for item in items] if isinstance(items, list | tuple) else []
    return tuple(number for number in found if number is not None) if None not in found else ()


def _number(value: Any) -> float | None:
    plain = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if plain else None
