"""``slim latency predict`` and ``devices``: what a model would take on devices that have a table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slim_core.cli.app import App
from slim_core.errors import SlimError
from slim_latency.cli.models import _KWARGS, model_options

if TYPE_CHECKING:
    from rich.console import RenderableType

    from slim_latency.predict import Estimate


@click.command("predict")
@click.argument("model")
@model_options
@click.option(
    "--device", "names", multiple=True, help="A device's name or a table's file; once for each.  [default: all]"
)
@click.pass_obj
def predict(app: App, model: str, kwargs: str, inputs: tuple[str, ...], names: tuple[str, ...]) -> None:
    """Predict the latency of MODEL on devices that have a table.

    MODEL is an ONNX file, whose kernels are read from the runtime's own optimised graph, a registered model, or a
    checkpoint that Slim wrote.
    """
    from slim_latency.devices import device, find_devices
    from slim_latency.table import read_table

    wanted = [device(name) for name in names] if names else list(find_devices().values())
    if not wanted:
        raise SlimError("no device has a table yet", hint="make one: slim latency calibrate --name this-machine")
    source = _Source(app, model, kwargs, inputs)
    rows: list[tuple[str, Estimate]] = []
    for file in wanted:
        try:
            rows.append((file.name, source.estimate(read_table(file.path))))
        except SlimError as error:
            if names:
                raise
            app.output.warn(f"{file.name} is left out: {error.what}")
    data = {"model": model, "devices": {name: found.to_json() for name, found in rows}}
    line = "  ".join(f"{name} {found.value_ms:.4g} ms" for name, found in rows)
    app.output.emit(data, lambda: _show(model, rows), line)


class _Source:
    """The model, recorded or loaded once."""

    def __init__(self, app: App, model: str, kwargs: str, inputs: tuple[str, ...]) -> None:
        self._file = Path(model) if model.endswith(".onnx") else None
        self._graph: Any = None
        if self._file is None:
            from slim_core.cli.subject import json_object, subject
            from slim_core.graph import record

            module, example = subject(app.registry, model, json_object(kwargs, "--kwargs", _KWARGS), inputs)
            self._graph = record(module, example)

    def estimate(self, table: Any) -> Estimate:
        if self._file is None:
            from slim_latency.cost import LatencyCost

            return LatencyCost(table).estimate(self._graph)
        from slim_latency.predict import Predictor
        from slim_latency.reading import kernels_of_file

        settings = table.header.get("settings", {})
        keys = kernels_of_file(
            self._file,
            runtime=table.header["runtime"]["name"],
            level=settings.get("level", "all"),
            precision=settings.get("precision", "f32"),
            batch=settings.get("batch", 1),
        )
        return Predictor.of(table).estimate(keys)


@click.command("devices")
@click.pass_obj
def devices(app: App) -> None:
    """List the devices that have a table, with what was measured there."""
    from slim_latency.devices import find_devices, folders
    from slim_latency.table import read_table

    rows: list[dict[str, Any]] = []
    for name, file in find_devices().items():
        row: dict[str, Any] = {"name": name, "path": str(file.path), "shipped": file.shipped, "error": None}
        try:
            table = read_table(file.path)
        except SlimError as error:
            row["error"] = error.what
        else:
            row.update(
                cpu=table.header["device"].get("cpu"), runtime=table.runtime, precision=table.header.get("precision"),
                threads=table.header.get("settings", {}).get("threads"), kernels=len(table.kernels),
                networks=len(table.networks), noise=table.noise, created=table.header.get("created"),
                notes=list(table.header.get("notes", ())),
            )  # fmt: skip
        rows.append(row)
    where = [str(folder) for folder in folders()]
    app.output.emit(
        {"devices": rows, "folders": where}, lambda: _devices(rows, where), " ".join(r["name"] for r in rows)
    )


def _show(model: str, rows: list[tuple[str, Estimate]]) -> RenderableType:
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, title=Text(model), title_justify="left")
    table.add_column("device", no_wrap=True)
    for column in ("latency", "interval", "by MACs alone", "measured, learned, roofline", "noise"):
        table.add_column(column, justify="right")
    notes = []
    for name, found in rows:
        shares = {share.source: f"{share.share:.0%}" for share in found.shares}
        low, high = (("…" if end is None else f"{end:.3g}") for end in (found.low_ms, found.high_ms))
        known = found.low_ms is not None
        table.add_row(
            name,
            ("at least " if found.partial else "") + f"{found.value_ms:.3g} ms",
            f"{low} - {high} ms ({found.confidence:.0%})" if known else "unknown",
            "unknown" if found.flops_ms is None else f"{found.flops_ms:.3g} ms",
            ", ".join(shares.get(source, "0%") for source in ("table", "regressor", "roofline")),
            "unknown" if found.noise is None else f"{found.noise:.1%}",
        )
        notes += [Text(f"{name}: {note}", style="yellow") for note in found.notes]
    return Group(table, *notes)


def _devices(rows: list[dict[str, Any]], where: list[str]) -> RenderableType:
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("device", no_wrap=True)
    for column in ("processor", "runtime", "measured", "noise"):
        table.add_column(column)
    notes: list[Text] = []
    for row in rows:
        if row["error"]:
            table.add_row(row["name"], Text(row["error"], style="red"))
            continue
        table.add_row(
            row["name"],
            row["cpu"],
            f"{row['runtime']}, {row['threads']} thread{'s' * (row['threads'] != 1)}, {row['precision']}",
            f"{row['kernels']} kernels, {row['networks']} networks",
            "unknown" if row["noise"] is None else f"{row['noise']:.1%}",
        )
        notes += [Text(f"{row['name']}: {note}", style="yellow") for note in row["notes"]]
    return Group(table, *notes, Text("searched: " + ", ".join(where)))
