"""Size, latency and accuracy of several models, and which of them no other one beats. The drawing is the report's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Contender:
    """A model in a comparison.

    Args:
        name: what it is called.
        bytes: size of its file.
        metric: its metric, higher is better.
        latency_ms: of one call, or ``None`` where it was not measured.
        group: contenders of one group share a colour: a target, a method.
    """

    name: str
    bytes: float
    metric: float
    latency_ms: float | None = None
    group: str = ""


def front(contenders: Sequence[Contender]) -> tuple[Contender, ...]:
    """Return the contenders that no other one beats: none is at least as good in everything and better in something.

    Latency counts where all contenders have one.
    """
    timed = all(item.latency_ms is not None for item in contenders)

    def figures(item: Contender) -> tuple[float, ...]:
        return (item.bytes, -item.metric, *((item.latency_ms or 0.0,) if timed else ()))

    def beaten(item: Contender) -> bool:
        mine = figures(item)
        return any(
            all(a <= b for a, b in zip(figures(other), mine, strict=True)) and figures(other) != mine
            for other in contenders
        )

    return tuple(item for item in contenders if not beaten(item))


def plots(contenders: Sequence[Contender], metric: str) -> list[dict[str, Any]]:
    """Return scatter plots as ``slim_core.report.plots.read_plots`` reads them: the metric over size, and over latency.

    Args:
        contenders: the models.
        metric: name of the metric.
    """
    timed = [item for item in contenders if item.latency_ms is not None]
    rows = [("file size, kB", [(item, item.bytes / 1000) for item in contenders])]
    if timed:
        rows.append(("latency, ms", [(item, float(item.latency_ms or 0.0)) for item in timed]))
    return [
        {"kind": "scatter", "title": f"{metric} over {label.split(',')[0]}", "x_label": label, "y_label": metric,
         "points": [{"name": item.name, "x": x, "y": item.metric, "group": item.group} for item, x in points]}
        for label, points in rows if points
    ]  # fmt: skip


def drawing(contenders: Sequence[Contender], metric: str) -> str:
    """Return the plots as one SVG document, with the front written above them."""
    from slim_core.report.plots import draw, read_plots
    from slim_core.report.svg_file import standalone

    best = ", ".join(item.name for item in front(contenders))
    drawn = [draw(plot) for plot in read_plots(plots(contenders, metric))]
    return standalone(drawn, title=f"Size, latency and {metric}", lines=[f"not beaten by any other: {best}"])


def to_json(contenders: Sequence[Contender]) -> list[dict[str, Any]]:
    """Return the contenders as JSON values, each with whether it is on the front."""
    best = set(front(contenders))
    return [{**asdict(item), "front": item in best} for item in contenders]
