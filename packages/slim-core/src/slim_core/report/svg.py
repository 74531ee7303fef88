"""The drawings of ``report.html``: line charts and bars as inline SVG. Their colours come from the style sheet."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from slim_core.report import format as fmt
from slim_core.report.data import ChannelRow, LatencyRow
from slim_core.report.figures import Chart

WIDTH, HEIGHT = 460.0, 220.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 58.0, 12.0, 10.0, 34.0


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Return about ``most`` round numbers, 1, 2 or 5 times a power of ten apart, that cover ``low`` to ``high``."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return [0.0, 1.0]
    if high - low <= 1e-12 * max(abs(high), abs(low), 1e-12):
        pad = abs(high) * 0.1 or 1.0
        low, high = low - pad, high + pad
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def decades(low: float, high: float) -> list[float]:
    """Return the powers of ten that cover ``low`` to ``high``, both positive."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    return [10.0**power for power in range(first, max(last, first + 1) + 1)]


def line_chart(chart: Chart) -> str:
    """Return a chart of curves, with a title and a description for screen readers."""
    points = [point for series in chart.series for point in series.points]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    y_ticks = decades(min(ys), max(ys)) if chart.log else ticks(min(ys), max(ys))
    x_low, x_high = min(xs), max(xs)
    if x_low == x_high:
        x_low, x_high = x_low - 0.5, x_high + 0.5
    x_at = scale(x_low, x_high, _LEFT, WIDTH - _RIGHT)
    height: Callable[[float], float] = math.log10 if chart.log else float
    along = scale(height(y_ticks[0]), height(y_ticks[-1]), HEIGHT - _BOTTOM, _TOP)
    parts = [opened(WIDTH, HEIGHT, _describe(chart))]
    step = None if chart.log else y_ticks[1] - y_ticks[0]
    for tick in y_ticks:
        y = along(height(tick))
        parts.append(f'<line class="grid" x1="{_LEFT:.0f}" x2="{WIDTH - _RIGHT:.0f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(
            f'<text x="{_LEFT - 8:.0f}" y="{y + 4:.1f}" text-anchor="end">{tick_text(tick, step, chart.percent)}</text>'
        )
    for tick, text in _x_ticks(x_low, x_high, xs):
        parts.append(f'<text x="{x_at(tick):.1f}" y="{HEIGHT - _BOTTOM + 18:.0f}" text-anchor="middle">{text}</text>')
    parts.append(
        f'<text x="{WIDTH - _RIGHT:.0f}" y="{HEIGHT - 2:.0f}" text-anchor="end">{escaped(chart.x_label)}</text>'
    )
    if chart.y_label:
        parts.append(f'<text x="{_LEFT + 4:.0f}" y="{_TOP + 10:.0f}">{escaped(chart.y_label)}</text>')
    for number, series in enumerate(chart.series, 1):
        style = f" s{min(number, 4)}"
        path = " ".join(f"{x_at(x):.1f},{along(height(y)):.1f}" for x, y in series.points)
        parts.append(f'<polyline class="curve{style}" points="{path}"/>')
        radius = 2.6 if len(series.points) <= 60 else 0.0
        for x, y in series.points:
            text = f"{series.name}, {chart.x_label} {x:g}: {_figure(y, chart.percent)}"
            if radius:
                parts.append(
                    f'<circle class="dot{style}" cx="{x_at(x):.1f}" cy="{along(height(y)):.1f}" r="{radius}">'
                    f"<title>{escaped(text)}</title></circle>"
                )
    parts.append("</svg>")
    return "".join(parts)


def _x_ticks(low: float, high: float, values: Sequence[float]) -> list[tuple[float, str]]:
    """Return where the horizontal axis is marked, and how: in whole numbers where all values are (epochs, say)."""
    marks = ticks(low, high, 6)
    inside = [tick for tick in marks if low - 1e-9 <= tick <= high + 1e-9]
    if all(value == int(value) for value in values):
        return [(tick, f"{tick:.0f}") for tick in inside if tick == int(tick)]
    return [(tick, tick_text(tick, marks[1] - marks[0], False)) for tick in inside]


def channel_bars(rows: Sequence[ChannelRow]) -> str:
    """Return one bar per channel group: the kept part of all its channels."""
    longest = max(len(row.name) for row in rows)
    label = min(max(longest * 6.9, 60), 330)
    line, right = 21.0, 150.0
    width = 980.0
    span = width - label - right
    largest = max(row.total for row in rows)
    description = f"Kept channels of {len(rows)} groups: {sum(r.kept for r in rows)} of {sum(r.total for r in rows)}"
    parts = [opened(width, line * len(rows) + 4, description)]
    for number, row in enumerate(rows):
        y = number * line + 4
        # bars are drawn to a square-root scale: a layer of 32 channels stays visible beside one of 2048
        whole = span * math.sqrt(row.total / largest)
        kept = whole * row.kept / row.total if row.total else 0.0
        share = row.kept / row.total if row.total else 0.0
        parts.append(
            f"<g><title>{escaped(row.name)}: {row.kept} of {row.total} channels kept ({fmt.percent(share, 0)})</title>"
            f'<text class="ink" x="{label - 10:.0f}" y="{y + 12:.0f}" text-anchor="end">'
            f"{escaped(shorten(row.name))}</text>"
            f'<rect class="whole" x="{label:.0f}" y="{y:.0f}" width="{whole:.1f}" height="14" rx="3"/>'
            f'<rect class="kept" x="{label:.0f}" y="{y:.0f}" width="{kept:.1f}" height="14" rx="3"/>'
            f'<text x="{label + whole + 10:.1f}" y="{y + 12:.0f}">'
            f"{row.kept} / {row.total} · {fmt.percent(share, 0)}</text></g>"
        )
    parts.append("</svg>")
    return "".join(parts)


def latency_bars(rows: Sequence[LatencyRow]) -> str:
    """Return a pair of bars per measurement, each pair to its own scale, with the quartile distance as whiskers."""
    width, label, right, height = 980.0, 210.0, 170.0, 58.0
    span = width - label - right
    names = "; ".join(
        f"{row.backend} at batch {row.batch}: {fmt.milliseconds(row.original_ms)} before, "
        f"{fmt.milliseconds(row.compressed_ms)} after"
        for row in rows
    )
    parts = [opened(width, height * len(rows), f"Latency. {names}")]
    for number, row in enumerate(rows):
        top = number * height + 6
        largest = max(row.original_ms + row.original_iqr_ms / 2, row.compressed_ms + row.compressed_iqr_ms / 2, 1e-12)
        parts.append(f'<text class="ink" x="0" y="{top + 16:.0f}">{escaped(shorten(row.backend, 28))}</text>')
        parts.append(f'<text x="0" y="{top + 33:.0f}">batch {row.batch}</text>')
        pair = (
            ("orig", "original", row.original_ms, row.original_iqr_ms),
            ("kept", "compressed", row.compressed_ms, row.compressed_iqr_ms),
        )
        for position, (style, name, median, spread) in enumerate(pair):
            y = top + position * 21
            length = span * median / largest
            low, high = span * max(median - spread / 2, 0) / largest, span * (median + spread / 2) / largest
            parts.append(
                f"<g><title>{name}: {fmt.milliseconds(median)}, quartile distance {fmt.milliseconds(spread)}</title>"
                f'<rect class="{style}" x="{label:.0f}" y="{y:.0f}" width="{length:.1f}" height="16" rx="3"/>'
                f'<line class="whisker" x1="{label + low:.1f}" x2="{label + high:.1f}" y1="{y + 8:.0f}" '
                f'y2="{y + 8:.0f}"/><text x="{label + max(length, high) + 10:.1f}" y="{y + 13:.0f}">'
                f"{fmt.milliseconds(median)} {name}</text></g>"
            )
    parts.append("</svg>")
    return "".join(parts)


def escaped(value: str) -> str:
    """Return text for a document, without what a document may not hold."""
    return escape(fmt.clean(value), quote=True)


def scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """Return the line that takes ``low`` to ``start`` and ``high`` to ``end``."""
    return lambda value: start + (value - low) / (high - low) * (end - start)


def opened(width: float, height: float, description: str) -> str:
    """Return the beginning of a drawing, described for screen readers."""
    return f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{escaped(description)}">'


def _describe(chart: Chart) -> str:
    texts = []
    for series in chart.series:
        first, last = series.points[0][1], series.points[-1][1]
        texts.append(f"{series.name} from {_figure(first, chart.percent)} to {_figure(last, chart.percent)}")
    return f"{chart.title} by {chart.x_label}: {'; '.join(texts)}"


def _figure(value: float, percent: bool) -> str:
    return fmt.percent(value) if percent else fmt.significant(value, 4)


def tick_text(value: float, step: float | None, percent: bool = False) -> str:
    """Return a mark of an axis whose marks are ``step`` apart; ``None``: at powers of ten."""
    if step is None:
        return f"{value:g}".replace("-", fmt.MINUS)
    if percent:
        value, step = value * 100, step * 100
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    text = f"{value:.{digits}f}" if digits <= 5 else f"{value:.1e}"
    return (text + (" %" if percent else "")).replace("-", fmt.MINUS)


def shorten(name: str, most: int = 46) -> str:
    """Return the end of a long name."""
    return name if len(name) <= most else "…" + name[-(most - 1) :]
