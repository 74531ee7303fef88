"""Says where a result is worse than the original, and what to change. Pure functions of the report's figures."""

from __future__ import annotations

from collections.abc import Iterator

from slim_core.report import format as fmt
from slim_core.report.data import LatencyRow, Note, Report, StepRow
from slim_core.report.figures import is_share

#: what a result's file may hold beside its model: the recipe, the metrics, the record of what was done
HEADER_BYTES = 64 << 10

#: runtimes of PyTorch, in which a quantized model only simulates its integers
_PYTORCH = ("eager", "compile")


def judge(report: Report) -> tuple[Note, ...]:
    """Return one note for everything in which the compressed model is worse than the original or than was asked."""
    return (*_metric(report), *_size(report), *(note for row in report.latency for note in _latency(report, row)))


def _metric(report: Report) -> Iterator[Note]:
    info = next((info for info in report.metrics if info.primary), None)
    allowed = report.recipe.get("compare", {}).get("max_drop")
    if info is None:
        return
    before, after = report.original.metrics.get(info.name), report.compressed.metrics.get(info.name)
    if before is None or after is None:
        return
    drop = before - after if info.higher_is_better else after - before
    if allowed is None or drop <= allowed + 1e-9:
        return
    unit: fmt.Unit = "share" if is_share(info, before, after) else "number"
    yield Note(
        "bad",
        f"{info.name} went from {fmt.value(before, unit)} to {fmt.value(after, unit)}; the recipe allows a loss of "
        f"{f'{allowed * 100:g} points' if unit == 'share' else f'{allowed:g}'}",
        "compare",
        _metric_hint(report, info.name, info.higher_is_better),
    )


def _metric_hint(report: Report, name: str, higher: bool) -> str:
    """Name the step that cost most."""
    losses = []
    for step in report.steps[1:]:
        if step.before is not None and name in step.before.metrics and name in step.after.metrics:
            loss = step.before.metrics[name] - step.after.metrics[name]
            losses.append((loss if higher else -loss, step))
    if not losses:
        return "train longer"
    loss, step = max(losses, key=lambda pair: pair[0])
    advice = (
        "exclude the layers that suffer most, or train through the quantization"
        if step.kind.startswith("quant.")
        else ("fine-tune longer after it, or ask for a milder budget")
    )
    return f"step {step.index} ({step.name}) cost most: {advice}"


def _size(report: Report) -> Iterator[Note]:
    for label, before, after in (
        ("exported file", report.original.export_bytes, report.compressed.export_bytes),
        ("checkpoint", report.original.checkpoint_bytes, report.compressed.checkpoint_bytes),
    ):
        if before and after and after > before + HEADER_BYTES:
            yield Note(
                "bad",
                f"the {label} of the compressed model is larger than the original's: {fmt.size(after)} against "
                f"{fmt.size(before)}",
                "size",
                "add a step that removes or quantizes weights" if len(report.steps) > 1 else "add a step",
            )


def _latency(report: Report, row: LatencyRow) -> Iterator[Note]:
    if row.verdict != "slower":
        return
    yield Note(
        "bad",
        f"on {row.backend} at batch {row.batch} the compressed model is slower than the original: "
        f"{fmt.milliseconds(row.compressed_ms)} against {fmt.milliseconds(row.original_ms)}",
        "measurement",
        _latency_hint(report, row),
    )


def _latency_hint(report: Report, row: LatencyRow) -> str:
    quantized = [step for step in report.steps if step.kind.startswith("quant.")]
    pruned = [step for step in report.steps if step.kind.startswith("prune.")]
    if quantized and row.backend in _PYTORCH:
        return (
            "PyTorch only simulates the integers of a quantized model; export it and measure it on the runtime that "
            "its quantizers were placed for"
        )
    if quantized:
        return (
            f"quantize for this runtime{_key(report, quantized[-1], 'target')}, leave small layers in float"
            f"{_key(report, quantized[-1], 'skip', 'exclude')}, or drop the quantization for {row.backend}"
        )
    if pruned:
        return (
            "round channel counts to a multiple that the runtime's kernels like (the step's round_to: 8, 16 or 32), or "
            "prune where the time goes: at small batches many layers cost overhead, not MACs"
        )
    return "look at where the time goes, layer by layer, before choosing what to compress"


def _key(report: Report, step: StepRow, *names: str) -> str:
    """Return `` (the step's KEY)`` for the first of ``names`` that the step's technique has, or nothing."""
    steps = report.recipe.get("steps") or []
    keys = steps[step.index - 1] if 0 < step.index <= len(steps) else {}
    return next((f" (the step's {name})" for name in names if name in keys), "")
