"""``slim quant sensitivity``: what each layer costs when it alone is quantized, or saves when it alone is not."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slim_core.cli.options import WorkloadRequest, refuse_existing, workload_options
from slim_core.cli.resuming import resumable
from slim_core.errors import SlimError
from slim_quant.cli.delivery import drawn, writing
from slim_quant.cli.options import SchemeRequest, scheme_options
from slim_quant.cli.subject import warn_if_random

if TYPE_CHECKING:
    from rich.console import RenderableType

    from slim_quant.sensitivity.found import Sensitivity

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command("sensitivity")
@workload_options
@scheme_options
@click.option(
    "--bits",
    multiple=True,
    metavar="w8a8",
    help="Bits to measure with: w4a8; may be repeated.  [default: --weight-bits and --activation-bits]",
)
@click.option(
    "--mode",
    type=click.Choice(["quantized", "float", "both"]),
    default="quantized",
    show_default=True,
    help="One unit is quantized and the rest float, or the other way round.",
)
@click.option(
    "--by",
    type=click.Choice(["layer", "operator"]),
    default="layer",
    show_default=True,
    help="Units are layers one by one, or all layers of one kind together.",
)
@click.option("--include", multiple=True, metavar="GLOB", help="Units that are measured; may be repeated.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Units that are left out; may be repeated.")
@click.option("--metric", metavar="NAME", help="What is measured: a metric of the task, or loss.  [default: its own]")
@click.option(
    "--sqnr-only", is_flag=True, help="Measure the SQNR of the outputs on calibration samples, and no metric; quick."
)
@click.option("--evaluated", type=click.IntRange(min=1), metavar="N", help="Use so many validation samples.")
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where points are kept as they are measured.  [default: OUTPUT.points]",
)
@click.option("--fresh", is_flag=True, help="Forget the points in the folder instead of going on from them.")
@click.option("--seed", default=0, show_default=True, help="Of the calibration samples.")
@click.option("-o", "--output", type=_FILE, metavar="FILE", help="Write the sensitivities to this file, as JSON.")
@click.option("--plot", type=_FILE, metavar="FILE", help="Draw them into this file, as SVG.")
@click.option("--overwrite", is_flag=True, help="Replace files that are there.")
@click.pass_obj
def sensitivity_command(
    app: Any,
    request: WorkloadRequest,
    asked: SchemeRequest,
    bits: tuple[str, ...],
    mode: str,
    by: str,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    metric: str | None,
    sqnr_only: bool,
    evaluated: int | None,
    folder: Path | None,
    fresh: bool,
    seed: int,
    output: Path | None,
    plot: Path | None,
    overwrite: bool,
) -> None:
    r"""Measure what each layer costs. A run that was stopped goes on where it was when the command is given again.

    \b
    slim quant sensitivity --checkpoint base.safetensors --data digits -o sensitivity.json --plot sensitivity.svg
    slim quant sensitivity --checkpoint base.safetensors --data digits --bits w4a8 --bits w8a8 --sqnr-only
    """
    for path in (output, plot):
        refuse_existing(path, overwrite)
    if output is not None and output == plot:
        raise SlimError("two results would be written to one file", where=str(output), hint="name another file")
    arguments = asked.arguments()
    workload = request.workload(app.registry, needs_data="slim quant sensitivity")
    warn_if_random(app, request, workload)
    from slim_quant.sensitivity.analysis import sensitivity
    from slim_quant.technique import calibration_inputs

    place = _place(folder, output, fresh)
    with resumable(f"the measured points are in {place}") if place is not None else nullcontext():
        found = sensitivity(
            workload.model,
            calibration_inputs(workload, seed),
            example_inputs=workload.example_inputs,
            task=None if sqnr_only else workload.task,
            val=None if sqnr_only else workload.val,
            metric=metric,
            bits=bits or f"w{asked.weight_bits}a{asked.activation_bits}",
            mode=mode,
            by=by,
            include=include,
            exclude=exclude,
            evaluated=evaluated,
            folder=place,
            progress=app.output.progress,
            **arguments,
        )
    if output is not None:
        with writing(output):
            found.save(output)
        app.output.note(f"sensitivities written to {output}")
    if plot is not None:
        drawn(app, plot, found.plots(), "Sensitivity to quantization", _lines(found))
    app.output.emit(found.to_json(), lambda: _table(found), lambda: _line(found))


def _place(folder: Path | None, output: Path | None, fresh: bool) -> Path | None:
    """Return where points are kept: the folder that was asked for, or one beside the output."""
    place = folder
    if place is None and output is not None:
        place = output.with_name(f"{output.name}.points")
    if fresh and place is not None:
        from slim_quant.sensitivity.store import NAME

        (place / NAME).unlink(missing_ok=True)
    return place


def _lines(found: Sensitivity) -> list[str]:
    lines = []
    for bits, figures in found.whole.items():
        metric = figures.get("metric")
        measured = "" if metric is None else f", {found.metric} {metric:.4f}"
        lines.append(f"everything at {bits}: SQNR {_decibels(figures.get('sqnr_db'))}{measured}")
    if found.base is not None:
        lines.insert(0, f"float: {found.metric} {found.base:.4f}")
    return [*lines, *found.notes, f"measured on {found.samples} samples"]


def _line(found: Sensitivity) -> str:
    worst = next(iter(found.ranked()), None)
    if worst is None:
        return "nothing was measured"
    drop = found.drop(worst)
    told = "" if drop is None else f", {found.metric} drops by {drop:.4f}"
    return f"{len(found.units)} units; most sensitive: {worst.unit}, SQNR {_decibels(worst.sqnr_db)}{told}"


def _table(found: Sensitivity) -> RenderableType:
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    blocks: list[RenderableType] = []
    facts = {unit.name: unit for unit in found.units}
    for mode, bits in dict.fromkeys((point.mode, point.bits) for point in found.points):
        alone = "quantized" if mode == "quantized" else "in float"
        table = Table(title=f"{bits}, one unit {alone} at a time", box=box.SIMPLE_HEAD, title_justify="left")
        table.add_column("unit", overflow="fold")
        table.add_column("operator")
        for name in ("parameters", "MACs", "SQNR", *((found.metric, "drop") if found.metric else ())):
            table.add_column(name, justify="right")
        for point in found.ranked(bits, mode):
            unit, drop = facts[point.unit], found.drop(point)
            row = [f"{unit.params:,}", f"{unit.macs:,}", _decibels(point.sqnr_db)]
            if found.metric:
                row.append("-" if point.metric is None else f"{point.metric:.4f}")
                row.append("-" if drop is None else f"{drop:+.4f}")
            table.add_row(Text(point.unit), unit.op, *row)
        blocks.append(table)
    return Group(*blocks, Text("\n".join(_lines(found))))


def _decibels(figure: float | None) -> str:
    return "-" if figure is None else "equal" if figure >= 200 else f"{figure:.1f} dB"
