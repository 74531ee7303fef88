"""The model card: ``README.md`` of an output folder, Markdown with a YAML head as model hubs read it."""

from __future__ import annotations

import re
from typing import Any

import yaml

from slim_core.report import figures
from slim_core.report import format as fmt
from slim_core.report.data import Report, StepRow


def render_card(report: Report) -> str:
    """Return the card as Markdown. Names and notes are escaped, so that they stay text."""
    parts = [
        f"---\n{_head(report)}---\n",
        f"# {_text(report.title)}\n",
        f"{_text(report.description)}\n" if report.description else "",
        f"{_text(figures.headline(report))}\n",
        "## Before and after\n",
        _table(report),
        _measured(report),
        "## What was done\n",
        _steps(report),
        "## Use\n",
        _use(report),
        "## Reproduce\n",
        _fenced("\n".join(" ".join(fmt.clean(line).split()) for line in report.reproduce)),
        f"Seed {report.seed}; {_text(_versions(report))}.\n",
        "## Limits\n",
        _limits(report),
    ]
    return "\n".join(part for part in parts if part)


def _head(report: Report) -> str:
    base = report.recipe.get("workload", {})
    tags = ["model-compression", "slim", *dict.fromkeys(step.kind.split(".")[0] for step in report.steps[1:])]
    head: dict[str, Any] = {"library_name": "slim", "tags": tags}
    if base.get("data"):
        head["datasets"] = [base["data"]]
    if base.get("model"):
        head["base_model_builder"] = base["model"]
    results = [
        {"type": info.name, "value": report.compressed.metrics[info.name]}
        for info in report.metrics
        if info.name in report.compressed.metrics
    ]
    if results:
        head["slim_metrics"] = results
    return str(yaml.safe_dump(head, sort_keys=False, allow_unicode=True))


def _table(report: Report) -> str:
    lines = ["| | original | compressed | change |", "|---|---:|---:|---:|"]
    for row in figures.comparisons(report):
        cells = [
            _text(row.label),
            fmt.value(row.original, row.unit),
            f"**{fmt.value(row.compressed, row.unit)}**",
            row.factor if row.factor.startswith("even") else row.change + (f" ({row.factor})" if row.factor else ""),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _measured(report: Report) -> str:
    device = report.device
    where = f"Measured on {_text(str(device))} ({_text(device.system)})."
    if report.dataset:
        where += f" Data: {_text(report.dataset)}."
    runtimes = "; ".join(dict.fromkeys(f"{row.runtime}, {row.threads or 'default'} threads" for row in report.latency))
    if runtimes:
        where += f" Runtimes: {_text(runtimes)}; original and compressed model timed in alternation, medians."
    return where + " One multiply-accumulate counts as one MAC.\n"


def _steps(report: Report) -> str:
    lines = []
    for step in report.steps:
        kept, total = sum(row.kept for row in step.channels), sum(row.total for row in step.channels)
        what = "the original model" if step.index == 0 else f"{_text(step.name)} (`{_code(step.kind)}`)"
        if step.index == 0 and step.history:
            what += f", trained for {_epochs(step)}"
        elif step.history:
            what += f", then trained for {_epochs(step)}"
        if total:
            what += f": {kept} of {total} channels kept"
        lines.append(f"{step.index}. {what} – took {fmt.duration(step.seconds)}")
    return "\n".join(lines) + "\n"


def _epochs(step: StepRow) -> str:
    return f"{len(step.history)} epoch{'s' if len(step.history) != 1 else ''}"


def _use(report: Report) -> str:
    lines = []
    if "exported model" in report.files and report.recipe.get("export", {}).get("format") == "onnx":
        lines.append(
            "```python\nimport onnxruntime\n\n"
            f'session = onnxruntime.InferenceSession("{_code(report.files["exported model"])}")\n'
            "outputs = session.run(None, {session.get_inputs()[0].name: inputs})  # inputs: numpy, batch first\n```\n"
        )
    lines.append(
        "```python\nfrom slim_core import load_plugins\nfrom slim_core.checkpoint import load\n\n"
        f'model = load("{_code(report.files.get("checkpoint", "model.safetensors"))}", '
        "registry=load_plugins().registry).model\n```\n"
    )
    return "\n".join(lines)


def _limits(report: Report) -> str:
    lines = [
        "- The figures hold for the data and the machine that are named above; on other data, accuracy has to be "
        "measured again, and on other machines, latency.",
        "- Compression can hurt some classes or groups more than the average shows; check those that matter to you.",
    ]
    for note in report.notes:
        if note.level in ("bad", "warning"):
            where = f"{_text(note.where)}: " if note.where else ""
            lines.append(f"- {where}{_text(note.text)}" + (f" ({_text(note.hint)})" if note.hint else ""))
    return "\n".join(lines) + "\n"


def _text(value: object) -> str:
    """Escape what Markdown or HTML would read as markup, and keep the text on one line."""
    line = " ".join(fmt.clean(value).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]|#])", r"\\\1", line)


def _versions(report: Report) -> str:
    return ", ".join(f"{name} {number}" for name, number in report.versions.items())


def _fenced(code: str) -> str:
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", code)), default=0))
    return f"{fence}sh\n{code}\n{fence}\n"


def _code(value: object) -> str:
    return re.sub(r"[`\"\\\n\r<>]", "", fmt.clean(value))
