"""What the views of a report show, as plain values: no drawing here, so that tests can check the numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from slim_core.report import format as fmt
from slim_core.report.data import LatencyRow, MetricInfo, ModelRow, Report, StepRow

#: losses that span more than this are drawn on a logarithmic axis
LOG_SPAN = 30.0
_INTERVAL = "95 %: "

Verdict = Literal["better", "accepted", "worse", "even", "unknown"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One line of the before/after table.

    Args:
        group: ``"Quality"``, ``"Size"``, ``"Compute"`` or ``"Latency"``.
        label: what was measured.
        remark: how it was measured.
        original: figure of the original, or ``None``.
        compressed: figure of the compressed model, or ``None``.
        unit: how the figures are written.
        verdict: whether the compressed model is better; ``"accepted"`` is worse by no more than the recipe allows.
        spread: half-width texts for original and compressed, where there are any.
        interval: what is known about the factor, where anything is.
        ratio: original over compressed where it was measured as a ratio; otherwise that of the two figures counts.
            Change and factor both come from it.
    """

    group: str
    label: str
    remark: str
    original: float | None
    compressed: float | None
    unit: fmt.Unit
    verdict: Verdict
    spread: tuple[str, str] = ("", "")
    interval: str = ""
    ratio: float | None = None

    @property
    def change(self) -> str:
        """Return the difference as text; of a latency, what the measured ratio says."""
        if self.group == "Latency" and self.verdict == "even":
            return "no clear change"
        if self.ratio:
            return fmt.change(self.ratio, 1.0, self.unit)
        return fmt.change(self.original, self.compressed, self.unit)

    @property
    def factor(self) -> str:
        """Return ``2.1× smaller``, ``1.3× slower``, … for figures where less is better; ``""`` otherwise.

        A latency whose interval holds 1 is ``even (0.91–1.12×)``: which model is faster, nobody can tell.
        """
        if self.group == "Quality" or not self.original or not self.compressed:
            return ""
        if self.group == "Latency" and self.verdict == "even":
            return f"even ({self.interval.removeprefix(_INTERVAL)})" if self.interval else "even"
        less, more = ("faster", "slower") if self.unit == "ms" else ("smaller", "larger")
        if self.label == "MACs":
            less, more = "fewer", "more"
        ratio = self.original / self.compressed if self.ratio is None else self.ratio
        if abs(ratio - 1) < 0.005:
            return ""
        return f"{_factor(ratio)} {less}" if ratio > 1 else f"{_factor(1 / ratio)} {more}"


@dataclass(frozen=True, slots=True)
class Stage:
    """The model after one step, relative to the original.

    Args:
        label: the step's name.
        seconds: how long it took.
        figures: one entry per column of the overview, in the same order for every stage.
    """

    label: str
    seconds: float
    figures: tuple[StageFigure, ...]


@dataclass(frozen=True, slots=True)
class StageFigure:
    """A figure of a stage: ``share`` of the largest one in its column, for the bar."""

    column: str
    text: str
    share: float
    change: str


@dataclass(frozen=True, slots=True)
class Series:
    """One curve."""

    name: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Chart:
    """Curves that share their axes.

    Args:
        title: what is drawn.
        x_label: unit of the horizontal axis.
        series: the curves.
        percent: write figures in per cent.
        log: logarithmic vertical axis.
        y_label: what the vertical axis shows, where the title does not say it.
    """

    title: str
    x_label: str
    series: tuple[Series, ...]
    percent: bool = False
    log: bool = False
    y_label: str = ""


def comparisons(report: Report) -> tuple[Comparison, ...]:
    """Return the before/after table."""
    rows = [_metric_row(report, info) for info in report.metrics]
    before, after = report.original, report.compressed
    rows += [
        _cost("Size", "Exported file", _export_remark(report), before.export_bytes, after.export_bytes, "bytes"),
        _cost("Size", "Checkpoint", "safetensors", before.checkpoint_bytes, after.checkpoint_bytes, "bytes"),
        _cost("Size", "Parameters", "", before.params, after.params, "count"),
        _cost("Compute", "MACs", "per sample", before.macs, after.macs, "count"),
        _cost(
            "Compute",
            "Peak activations",
            "per sample, in recorded order",
            before.peak_activation_bytes,
            after.peak_activation_bytes,
            "bytes",
        ),
    ]
    rows += [latency_comparison(row) for row in report.latency]
    return tuple(row for row in rows if row.compressed is not None)


def latency_comparison(row: LatencyRow) -> Comparison:
    """Return the line of the table for one latency measurement."""
    threads = f", {row.threads} thread{'s' if row.threads != 1 else ''}" if row.threads else ""
    interval = ""
    if row.speedup_low is not None and row.speedup_high is not None:
        interval = f"{_INTERVAL}{row.speedup_low:.2f}–{row.speedup_high:.2f}×"
    verdicts: dict[str, Verdict] = {"faster": "better", "slower": "worse", "even": "even"}
    return Comparison(
        "Latency",
        f"{row.backend}, batch {row.batch}",
        f"{row.runtime}{threads}",
        row.original_ms,
        row.compressed_ms,
        "ms",
        verdicts[row.verdict],
        (
            fmt.spread(row.original_iqr_ms / 2, row.original_ms),
            fmt.spread(row.compressed_iqr_ms / 2, row.compressed_ms),
        ),
        interval,
        row.speedup,
    )


def headline(report: Report) -> str:
    """Return the result in one sentence."""
    parts: list[str] = []
    rows = comparisons(report)
    size_row = next((row for row in rows if row.label == "Exported file"), None) or next(
        (row for row in rows if row.label == "Checkpoint"), None
    )
    if size_row is not None and size_row.factor:
        parts.append(f"{size_row.factor} on disk")
    latency = [row for row in rows if row.group == "Latency"]
    if latency and latency[0].verdict == "even":
        parts.append(f"latency {latency[0].factor} on {latency[0].label.replace(',', ' at', 1)}")
    elif latency and latency[0].factor:
        parts.append(f"{latency[0].factor} on {latency[0].label.replace(',', ' at', 1)}")
    elif latency:
        parts.append(f"as fast as before on {latency[0].label.replace(',', ' at', 1)}")
    primary = next((row for row in rows if row.group == "Quality"), None)
    if primary is not None:
        change = primary.change
        parts.append(f"{primary.label} {'unchanged' if change == 'no change' else change}")
    text = ", ".join(parts)
    return text[:1].upper() + text[1:] + "." if text else "Nothing was compared."


def stages(report: Report) -> tuple[Stage, ...]:
    """Return the overview of the steps: primary metric, MACs, parameters and checkpoint size after each."""
    models = [step.after for step in report.steps]
    columns = [_stage_column(report, models, name) for name in ("metric", "MACs", "Parameters", "Checkpoint")]
    kept = [column for column in columns if column is not None]
    return tuple(
        Stage(
            "original" if step.index == 0 else f"{step.index}. {step.name}",
            step.seconds,
            tuple(column[position] for column in kept),
        )
        for position, step in enumerate(report.steps)
    )


def curves(step: StepRow, metrics: Sequence[MetricInfo]) -> tuple[Chart, ...]:
    """Return the training curves of a step: the losses, the judged metric, the learning rate.

    Losses that span more than a factor of :data:`LOG_SPAN` get a logarithmic axis.
    """
    numbers: dict[str, list[tuple[float, float]]] = {}
    for position, row in enumerate(step.history):
        x = _number(row.get("epoch"))
        x = float(position + 1) if x is None else x
        for name, figure in row.items():
            y = _number(figure)
            if name != "epoch" and y is not None:
                numbers.setdefault(name, []).append((x, y))
    series = {name: Series(name, tuple(points)) for name, points in numbers.items()}
    better = {info.name: info.higher_is_better for info in metrics}
    losses = tuple(series[name] for name in series if name.split("_")[-1] == "loss")
    figures = [
        name
        for name in series
        if name.removeprefix("val_").removeprefix("train_") in better and series[name] not in losses
    ]
    charts: list[Chart] = []
    if losses:
        values = [y for item in losses for _, y in item.points]
        charts.append(Chart("Loss", "epoch", losses, log=min(values) > 0 and max(values) > LOG_SPAN * min(values)))
    for base in [info.name for info in metrics if info.primary]:
        group = tuple(series[name] for name in figures if name.removeprefix("val_").removeprefix("train_") == base)
        if group:
            percent = better[base] and all(0 <= y <= 1 for item in group for _, y in item.points)
            charts.append(Chart(base, "epoch", group, percent))
    if "lr" in series:
        charts.append(Chart("Learning rate", "epoch", (series["lr"],)))
    return tuple(charts)


def drawn_curves(step: StepRow) -> tuple[Chart, ...]:
    """Return the charts that a technique asked for; points that are not finite numbers are left out."""
    charts = []
    for item in step.curves:
        named = item.get("series")
        series = []
        for curve in named if isinstance(named, list | tuple) else ():
            if not isinstance(curve, Mapping):
                continue
            xs, ys = (curve.get(axis) for axis in "xy")
            if isinstance(xs, list | tuple) and isinstance(ys, list | tuple):
                pairs = [(_number(x), _number(y)) for x, y in zip(xs, ys, strict=False)]
                points = tuple((x, y) for x, y in pairs if x is not None and y is not None)
                if points:
                    series.append(Series(str(curve.get("name", "")), points))
        if series:
            title, x_label, y_label = (str(item.get(name, "")) for name in ("title", "x_label", "y_label"))
            charts.append(Chart(title, x_label, tuple(series), y_label=y_label))
    return tuple(charts)


def layer_table(layers: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Return header and rows of the figures that a technique told about layers."""
    columns = list(dict.fromkeys(key for layer in layers for key in layer if key != "name"))
    rows = tuple((str(layer.get("name", "")), *(plain(layer.get(column)) for column in columns)) for layer in layers)
    return ("layer", *columns), rows


def plain(figure: Any) -> str:
    """Return a JSON value as short text."""
    if figure is None:
        return fmt.ABSENT
    if isinstance(figure, bool):
        return "yes" if figure else "no"
    if isinstance(figure, float) and figure.is_integer() and 1e4 <= abs(figure) < 1e15:
        figure = int(figure)
    if isinstance(figure, int):
        return f"{figure:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    if isinstance(figure, float):
        return f"{figure:.4g}".replace("-", fmt.MINUS)
    if isinstance(figure, Mapping):
        return ", ".join(f"{key}: {plain(item)}" for key, item in figure.items())
    if isinstance(figure, list | tuple):
        return ", ".join(plain(item) for item in figure)
    return str(figure)


def is_share(info: MetricInfo, *figures: float | None) -> bool:
    """Return whether a metric's figures are written in per cent: higher is better, and all lie in [0, 1]."""
    known = [figure for figure in figures if figure is not None]
    return info.higher_is_better and bool(known) and all(0 <= figure <= 1 for figure in known)


def _metric_row(report: Report, info: MetricInfo) -> Comparison:
    before, after = report.original.metrics.get(info.name), report.compressed.metrics.get(info.name)
    unit: fmt.Unit = "share" if is_share(info, before, after) else "number"
    verdict: Verdict = "unknown"
    if before is not None and after is not None:
        gain = after - before if info.higher_is_better else before - after
        allowed = report.recipe.get("compare", {}).get("max_drop") if info.primary else None
        if gain == 0:
            verdict = "even"
        elif gain > 0:
            verdict = "better"
        else:
            verdict = "accepted" if allowed is not None and -gain <= allowed + 1e-9 else "worse"
    remark = "higher is better" if info.higher_is_better else "lower is better"
    return Comparison("Quality", info.name, remark, before, after, unit, verdict)


def _cost(group: str, label: str, remark: str, before: int | None, after: int | None, unit: fmt.Unit) -> Comparison:
    verdict: Verdict = "unknown"
    if before is not None and after is not None:
        verdict = "even" if before == after else "better" if after < before else "worse"
    return Comparison(group, label, remark, before, after, unit, verdict)


def _export_remark(report: Report) -> str:
    export = report.recipe.get("export") or {}
    return str(export.get("format", ""))


def _stage_column(report: Report, models: Sequence[ModelRow], name: str) -> list[StageFigure] | None:
    figures: list[float | None]
    unit: fmt.Unit = "count"
    title = name
    if name == "metric":
        info = next((info for info in report.metrics if info.primary), None)
        if info is None:
            return None
        figures = [model.metrics.get(info.name) for model in models]
        title, unit = info.name, "share" if is_share(info, *figures) else "number"
    elif name == "MACs":
        figures = [model.macs for model in models]
    elif name == "Parameters":
        figures = [model.params for model in models]
    else:
        figures, unit = [model.checkpoint_bytes for model in models], "bytes"
    known = [abs(figure) for figure in figures if figure is not None]
    if not known:
        return None
    largest = 1.0 if unit == "share" else max(known) or 1.0
    return [
        StageFigure(
            title,
            fmt.value(figure, unit),
            0.0 if figure is None else abs(figure) / largest,
            "" if position == 0 else fmt.change(figures[position - 1], figure, unit),
        )
        for position, figure in enumerate(figures)
    ]


def _factor(ratio: float) -> str:
    return f"{ratio:.0f}×" if ratio >= 100 else f"{ratio:.1f}×" if ratio >= 1.95 else f"{ratio:.2f}×"


def _number(figure: Any) -> float | None:
    if isinstance(figure, bool) or not isinstance(figure, int | float):
        return None
    return float(figure)
