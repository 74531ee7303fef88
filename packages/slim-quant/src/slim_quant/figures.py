"""What is drawn of a quantization, as data: bars of SQNR, histograms with thresholds, the Pareto front.

Each function returns plots as :func:`slim_core.report.plots.read_plots` reads them: JSON, which reports draw
(``details["plots"]``) and ``picture`` makes a file of. Nothing is measured here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

#: so many histograms, of the layers that lose most, are drawn
MOST_HISTOGRAMS = 12


def sqnr_bars(
    rows: Iterable[Mapping[str, Any]], title: str = "SQNR of each layer's output", key: str = "sqnr_db"
) -> list[dict[str, Any]]:
    """Return one bar per layer, from the first to the last.

    Args:
        rows: ``name`` and a figure in dB; rows without the figure are left out.
        title: of the plot.
        key: where the figure stands.
    """
    bars = [
        {"name": str(row["name"]), "value": float(row[key]), "note": _bits(row)}
        for row in rows
        if row.get(key) is not None
    ]
    return [{"kind": "bars", "title": title, "unit": "dB", "rows": bars}] if bars else []


def histogram(title: str, counts: Mapping[str, Any]) -> dict[str, Any]:
    """Return a histogram whose marks are the ends of what the integers can represent.

    Args:
        title: whose values they are.
        counts: ``edges``, ``counts``, ``threshold_low``, ``threshold_high`` and ``clipped`` (a share).
    """
    share = float(counts.get("clipped") or 0.0)
    return {
        "kind": "histogram",
        "title": f"{title}: {share:.2%} clipped" if share else title,
        "edges": list(counts["edges"]),
        "counts": list(counts["counts"]),
        "marks": [
            {"name": "lowest integer", "x": counts["threshold_low"]},
            {"name": "highest integer", "x": counts["threshold_high"]},
        ],
    }


def pareto(
    points: Sequence[Mapping[str, Any]], x: str, y: str, *, x_label: str, y_label: str, title: str
) -> list[dict[str, Any]]:
    """Return a scatter plot of what was tried.

    Args:
        points: ``name``, ``group`` where there is one, and figures; points without both figures are left out.
        x: the figure of which less is better: bytes, milliseconds.
        y: the figure of which more is better.
        x_label: stands below.
        y_label: stands above.
        title: of the plot.
    """
    shown = [
        {"name": str(point.get("name", "")), "x": point[x], "y": point[y], "group": str(point.get("group", ""))}
        for point in points
        if point.get(x) is not None and point.get(y) is not None
    ]
    plot = {"kind": "scatter", "title": title, "x_label": x_label, "y_label": y_label, "points": shown}
    return [plot] if shown else []


def picture(plots: Sequence[Mapping[str, Any]], *, title: str, lines: Sequence[str] = ()) -> str:
    """Return plots below each other as an SVG document, in light or dark colours as the viewer prefers."""
    from slim_core.report.plots import draw, read_plots
    from slim_core.report.svg_file import standalone

    return standalone([draw(plot) for plot in read_plots(list(plots))], title=title, lines=lines)


def _bits(row: Mapping[str, Any]) -> str:
    return f"{row['bits']} bits" if row.get("bits") is not None else ""
