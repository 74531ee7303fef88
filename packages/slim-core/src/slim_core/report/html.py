"""``report.html``: one file without external resources. ``figures`` says what it shows, ``svg`` draws."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from itertools import groupby
from typing import Any

import yaml

from slim_core.report import figures, plots, svg
from slim_core.report import format as fmt
from slim_core.report.data import Note, Report, StepRow

#: longer lists are folded away
FOLD_ROWS = 40
#: so many charts of a step stand open
OPEN_CHARTS = 6

_WORDS = {
    "better": "better",
    "accepted": "within tolerance",
    "worse": "worse",
    "even": "same",
    "unknown": "",
}


def render_html(report: Report) -> str:
    """Return the page. Every text of the report is escaped; the page loads nothing and runs no script."""
    sections: list[Callable[[Report], str]] = [
        _problems, _table, _latency, _stages, _channels, _training, _curves, _plots, _layers, _notes, _facts,
    ]  # fmt: skip
    css = resources.files("slim_core.report").joinpath("page.css").read_text(encoding="utf-8")
    body = "\n".join(text for text in (section(report) for section in sections) if text)
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<title>{_text(report.title)} – Slim report</title>\n<style>\n{css}</style>\n</head>\n<body>\n"
        f"{_header(report)}\n<main>\n{body}\n</main>\n{_footer(report)}\n</body>\n</html>\n"
    )


def _header(report: Report) -> str:
    rows = figures.comparisons(report)
    description = f'<p class="soft">{_text(report.description)}</p>' if report.description else ""
    meta = [report.created.replace("T", " ")[:16], str(report.device), report.dataset, f"seed {report.seed}"]
    meta.append(f"slim-core {report.versions.get('slim-core', '?')}")
    items = "".join(f"<li>{_text(item)}</li>" for item in meta if item)
    tiles = "".join(_tile(row) for row in _tile_rows(rows))
    return (
        f'<header class="page"><p class="kicker">Compression report</p><h1>{_text(report.title)}</h1>{description}'
        f'<p class="headline">{_text(figures.headline(report))}</p><ul class="meta">{items}</ul>'
        f'<div class="tiles">{tiles}</div></header>'
    )


def _tile_rows(rows: Sequence[figures.Comparison]) -> list[figures.Comparison]:
    chosen = [next((row for row in rows if row.group == "Quality"), None)]
    chosen.append(
        next((row for row in rows if row.label == "Exported file" and row.compressed), None)
        or next((row for row in rows if row.label == "Checkpoint"), None)
    )
    chosen.append(next((row for row in rows if row.label == "MACs"), None))
    chosen += [row for row in rows if row.group == "Latency"][:1]
    return [row for row in chosen if row is not None]


def _tile(row: figures.Comparison) -> str:
    badge = row.factor or row.change
    return (
        f'<div class="tile"><div class="name">{_text(row.label)}</div>'
        f'<div class="figure">{_text(fmt.value(row.compressed, row.unit))}</div>'
        f'<div class="from">from {_text(fmt.value(row.original, row.unit))}</div>'
        f"<div>{_badge(row, badge)}</div></div>"
    )


def _badge(row: figures.Comparison, text: str) -> str:
    title = escape(_WORDS[row.verdict], quote=True)
    return f'<span class="badge {row.verdict}" title="{title}">{_text(text)}</span>'


def _problems(report: Report) -> str:
    bad = [note for note in report.notes if note.level == "bad"]
    if not bad:
        return ""
    return f'<section class="callout"><h2>Where the result is worse than the original</h2>{_note_list(bad)}</section>'


def _table(report: Report) -> str:
    rows = figures.comparisons(report)
    body = []
    for group, members in groupby(rows, key=lambda row: row.group):
        lines = "".join(_table_row(row) for row in members)
        body.append(
            f'<tbody><tr class="group"><th colspan="5" scope="rowgroup">{_text(group)}</th></tr>{lines}</tbody>'
        )
    return _section(
        "Before and after",
        '<div class="scroll"><table><thead><tr><th scope="col">Figure</th><th scope="col" class="num">Original</th>'
        '<th scope="col" class="num">Compressed</th><th scope="col" class="num change">Change</th>'
        '<th scope="col"></th></tr>'
        f"</thead>{''.join(body)}</table></div>",
    )


def _table_row(row: figures.Comparison) -> str:
    remark = f"<small>{_text(row.remark)}</small>" if row.remark else ""
    interval = f"<small>{_text(row.interval)}</small>" if row.interval else ""
    spread = [f"<small>{_text(text)}</small>" if text else "" for text in row.spread]
    return (
        f'<tr><th scope="row">{_text(row.label)}{remark}</th>'
        f'<td class="num">{_text(fmt.value(row.original, row.unit))}{spread[0]}</td>'
        f'<td class="num strong">{_text(fmt.value(row.compressed, row.unit))}{spread[1]}</td>'
        f'<td class="num change">{_text(row.change)}</td>'
        f"<td>{_badge(row, row.factor or _WORDS[row.verdict] or '–')}{interval}</td></tr>"
    )


def _latency(report: Report) -> str:
    if not report.latency:
        return ""
    rounds = next((row.rounds for row in report.latency if row.rounds), None)
    often = f" {rounds} timed rounds each;" if rounds else ""
    return _section(
        "Latency",
        f'<figure><figcaption><span class="key before">original</span><span class="key">compressed</span></figcaption>'
        f"{svg.latency_bars(report.latency)}</figure>",
        f"Medians per batch on {_text(str(report.device))}. The two models were timed in alternation;{often} whiskers "
        "span the middle half of the timings. Each pair has its own scale. The factor in the table is the median of "
        "the ratios within the rounds: what disturbs the machine cancels from it.",
    )


def _stages(report: Report) -> str:
    stages = figures.stages(report)
    if len(stages) < 2 or not stages[0].figures:
        return ""
    head = "".join(f'<th scope="col">{_text(item.column)}</th>' for item in stages[0].figures)
    lines = []
    for position, stage in enumerate(stages):
        style = "bar before" if position == 0 else "bar"
        cells = "".join(
            f"<td>{_text(item.text)}{f'<small>{_text(item.change)}</small>' if item.change else ''}"
            f'<span class="{style}" aria-hidden="true"><i style="width:{item.share * 100:.1f}%"></i></span></td>'
            for item in stage.figures
        )
        seconds = fmt.duration(stage.seconds)
        lines.append(f'<tr><th scope="row">{_text(stage.label)}<small>took {seconds}</small></th>{cells}</tr>')
    return _section(
        "Step by step",
        f'<div class="scroll"><table><thead><tr><th scope="col">After</th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>",
        "The model after each step of the recipe, read back from its checkpoint. Changes are against the step before.",
    )


def _channels(report: Report) -> str:
    parts = []
    for step in report.steps:
        if not step.channels:
            continue
        kept, total = sum(row.kept for row in step.channels), sum(row.total for row in step.channels)
        title = f"{step.index}. {step.name}" if step.index else "original"
        summary = f"{title}: {kept} of {total} channels kept in {len(step.channels)} groups"
        bars = svg.channel_bars(step.channels)
        if len(step.channels) > FOLD_ROWS:
            first = svg.channel_bars(step.channels[:FOLD_ROWS])
            rest = svg.channel_bars(step.channels[FOLD_ROWS:])
            more = len(step.channels) - FOLD_ROWS
            bars = f"{first}<details><summary>{more} more groups</summary>{rest}</details>"
        parts.append(f"<figure><figcaption>{_text(summary)}</figcaption>{bars}</figure>")
    if not parts:
        return ""
    return _section(
        "Kept channels",
        "".join(parts),
        "One bar per group of channels that live and die together, named by the first layer that makes them. Bar "
        "lengths follow the square root of the group's size.",
    )


def _training(report: Report) -> str:
    parts = []
    for step in report.steps:
        charts = figures.curves(step, report.metrics)
        if not charts:
            continue
        parts.append(_drawn(step, charts))
    return _section("Training", "".join(parts)) if parts else ""


def _curves(report: Report) -> str:
    """The charts that techniques asked for; more than a few are folded away."""
    parts = []
    for step in report.steps:
        charts = figures.drawn_curves(step)
        if not charts:
            continue
        drawn = _drawn(step, charts[:OPEN_CHARTS])
        if len(charts) > OPEN_CHARTS:
            rest = _charts(charts[OPEN_CHARTS:])
            drawn += f"<details><summary>{len(charts) - OPEN_CHARTS} more charts</summary>{rest}</details>"
        parts.append(drawn)
    return _section("Curves", "".join(parts), "What the steps measured on their way.") if parts else ""


def _plots(report: Report) -> str:
    """The other plots that techniques asked for; more than a few are folded away."""
    parts = []
    for step in report.steps:
        found = plots.read_plots(step.plots)
        wide = [f"<figure>{plots.draw(plot)}</figure>" for plot in found if isinstance(plot, plots.Bars)]
        small = [f"<figure>{plots.draw(plot)}</figure>" for plot in found if not isinstance(plot, plots.Bars)]
        if found:
            parts.append(f"<h3>{_text(_title(step))}</h3>{''.join(wide)}{_folded(small)}")
    return _section("Plots", "".join(parts), "What the steps found in the model and in its data.") if parts else ""


def _folded(drawn: Sequence[str]) -> str:
    shown, rest = drawn[:OPEN_CHARTS], drawn[OPEN_CHARTS:]
    parts = [f'<div class="charts">{"".join(part)}</div>' if part else "" for part in (shown, rest)]
    return parts[0] + (f"<details><summary>{len(rest)} more plots</summary>{parts[1]}</details>" if rest else "")


def _title(step: StepRow) -> str:
    return "original" if step.index == 0 else f"{step.index}. {step.name}"


def _drawn(step: StepRow, charts: Sequence[figures.Chart]) -> str:
    return f"<h3>{_text(_title(step))}</h3>{_charts(charts)}"


def _charts(charts: Sequence[figures.Chart]) -> str:
    drawn = "".join(
        f"<figure><figcaption>{_text(chart.title)}{_keys(chart)}</figcaption>{svg.line_chart(chart)}</figure>"
        for chart in charts
    )
    return f'<div class="charts">{drawn}</div>'


def _keys(chart: figures.Chart) -> str:
    if len(chart.series) < 2:
        return ""
    return "".join(
        f'<span class="key s{min(number, 4)}">{_text(series.name)}</span>'
        for number, series in enumerate(chart.series, 1)
    )


def _layers(report: Report) -> str:
    parts = [_step_details(step) for step in report.steps]
    text = "".join(part for part in parts if part)
    return _section("Details of each step", text) if text else ""


def _step_details(step: StepRow) -> str:
    if not step.layers and not step.details:
        return ""
    title = "original" if step.index == 0 else f"{step.index}. {step.name}"
    kind = f' <span class="soft">{_text(step.kind)}</span>' if step.kind != step.name else ""
    parts = [f"<h3>{_text(title)}{kind}</h3>"]
    if step.details:
        told = {key: value for key, value in step.details.items() if value not in (None, "", [], {})}
        parts.append(_list((key.replace("_", " "), figures.plain(value)) for key, value in told.items()))
    if step.layers:
        head, rows = figures.layer_table(step.layers)
        lines = "".join(
            f'<tr><th scope="row">{_text(row[0])}</th>'
            + "".join(f'<td class="num">{_text(cell)}</td>' for cell in row[1:])
            + "</tr>"
            for row in rows
        )
        columns = "".join(
            f'<th scope="col"{"" if number == 0 else " class=num"}>{_text(name)}</th>'
            for number, name in enumerate(head)
        )
        table = f'<div class="scroll"><table><thead><tr>{columns}</tr></thead><tbody>{lines}</tbody></table></div>'
        parts.append(f"<details><summary>{len(rows)} layers</summary>{table}</details>")
    return "".join(parts)


def _notes(report: Report) -> str:
    rest = [note for note in report.notes if note.level != "bad"]
    if not rest:
        return _section("Notes", '<p class="soft">Nothing was left alone, skipped or degraded.</p>')
    rest.sort(key=lambda note: note.level != "warning")
    shown = _note_list(rest[:FOLD_ROWS])
    if len(rest) > FOLD_ROWS:
        shown += f"<details><summary>{len(rest) - FOLD_ROWS} more</summary>{_note_list(rest[FOLD_ROWS:])}</details>"
    return _section("Notes", shown, "Everything that was left alone, skipped or degraded on the way, with the reason.")


def _note_list(notes: Iterable[Note]) -> str:
    items = []
    for note in notes:
        where = f'<div class="where">{_text(note.where)}</div>' if note.where else ""
        hint = f'<div class="hint">What to change: {_text(note.hint)}</div>' if note.hint else ""
        items.append(f'<li class="{note.level}">{where}{_text(note.text)}{hint}</li>')
    return f'<ul class="notes">{"".join(items)}</ul>'


def _facts(report: Report) -> str:
    commands = "\n".join(report.reproduce)
    recipe = yaml.safe_dump(_plain(report.recipe), sort_keys=False, allow_unicode=True)
    files = _list((role, name) for role, name in report.files.items())
    device = report.device
    facts = _list(
        [
            ("Processor", device.cpu),
            ("Cores, threads", f"{device.cores} for this process; PyTorch computes with {device.threads}"),
            *((("Accelerator", device.accelerator),) if device.accelerator else ()),
            *_machine(device.details),
            ("System", f"{device.system}, Python {device.python}"),
            ("Data", report.dataset or fmt.ABSENT),
            ("Time spent", fmt.duration(report.seconds)),
            ("Recipe's identity", report.recipe_hash[:16]),
            ("Packages", ", ".join(f"{name} {version}" for name, version in report.versions.items())),
        ]
    )
    return _section(
        "How to get this again",
        (f"<pre><code>{_text(commands)}</code></pre>" if commands else "")
        + facts
        + (f"<h3>Files</h3>{files}" if report.files else "")
        + "<details><summary>The recipe, with every default</summary>"
        + f"<pre><code>{_text(recipe)}</code></pre></details>",
        "The same recipe, seed and package versions give the same model file, byte for byte.",
    )


def _machine(details: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    if details.get("flags"):
        rows.append(("Instruction sets", " ".join(map(str, details["flags"]))))
    if "governor" in details:
        rows.append(("Frequency governor", str(details["governor"] or "unknown")))
    if details.get("virtual"):
        rows.append(("Virtual machine", "yes: other guests may disturb timings"))
    if isinstance(details.get("load"), int | float):
        rows.append(("Load at the end", f"{details['load']:.2f} processes"))
    return rows


def _footer(report: Report) -> str:
    return (
        "<footer><p>One multiply-accumulate counts as one MAC; convolutions, linear layers and matrix products count. "
        "1 kB is 1000 bytes. All figures of this page are in <code>report.json</code> beside it.</p></footer>"
    )


def _section(title: str, content: str, lead: str = "") -> str:
    lead = f'<p class="lead">{lead}</p>' if lead else ""
    return f"<section><h2>{_text(title)}</h2>{lead}{content}</section>"


def _list(pairs: Iterable[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<dt>{_text(key)}</dt><dd>{_text(value)}</dd>" for key, value in pairs) + "</dl>"


def _text(value: Any) -> str:
    """Escape a text, and drop the control characters that no page may hold."""
    return escape(fmt.clean(value), quote=True)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
