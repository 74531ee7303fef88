"""A search as an SVG file: the best figure by candidate, and the Pareto front. Numbers: ``SearchResult.curves``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slim_core.report import format as fmt
from slim_core.report.figures import Chart, Series
from slim_core.report.svg import line_chart
from slim_core.report.svg_file import standalone

if TYPE_CHECKING:
    from collections.abc import Mapping

    from slim_prune.evolution.result import SearchResult


def charts(result: SearchResult, original: Mapping[str, float]) -> tuple[Chart, ...]:
    """Return the curves as charts.

    Args:
        result: the search.
        original: costs of the model before pruning.
    """
    return tuple(
        Chart(
            item["title"],
            item["x_label"],
            tuple(Series(one["name"], tuple(zip(one["x"], one["y"], strict=True))) for one in item["series"]),
            y_label=item["y_label"],
        )
        for item in result.curves(original)
    )


def picture(result: SearchResult, original: Mapping[str, float]) -> str:
    """Return the search as an SVG document, in light or dark colours as the viewer prefers."""
    lines = [
        f"best of {result.scored} candidates: {result.metric} {fmt.significant(result.figure(result.best), 4)}",
        *(
            f"{chart.title}, {series.name}: {fmt.significant(series.points[0][1], 4)} to "
            f"{fmt.significant(series.points[-1][1], 4)}"
            for chart in charts(result, original)
            for series in chart.series
        ),
    ]
    drawn = [line_chart(chart) for chart in charts(result, original)]
    return standalone(drawn, title=f"Search ({result.algorithm})", lines=lines)
