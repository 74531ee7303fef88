"""``slim latency compare`` and ``backends``: time exported files against each other, and list the runtimes that can."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slim_core.cli.app import App
from slim_core.errors import MeasureError, SlimError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from slim_core.measure import Session
    from slim_core.workload import Inputs


@click.command("compare")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--backend", default="onnxruntime", show_default=True, help="The runtime: `slim latency backends`.")
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True, help="Samples per call.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of the runtime.  [default: the runtime's own]")
@click.option("--rounds", type=click.IntRange(min=1), default=30, show_default=True, help="Samples per file.")
@click.option("--seconds", type=click.FloatRange(min=0.1), default=60.0, show_default=True, help="Time to spend.")
@click.option("--inputs", "inputs_file", type=click.Path(path_type=Path), help="Inputs: an .npz file, arrays by name.")
@click.option("--shape", "shapes", multiple=True, metavar="NAME=1,3,32,32", help="Shape of one input.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of random inputs and of the order of files.")
@click.option("-o", "--output", "report", type=click.Path(path_type=Path), help="Write all samples to a JSON file.")
@click.pass_obj
def compare(
    app: App,
    files: tuple[Path, ...],
    backend: str,
    batch: int,
    threads: int | None,
    rounds: int,
    seconds: float,
    inputs_file: Path | None,
    shapes: tuple[str, ...],
    seed: int,
    report: Path | None,
) -> None:
    """Time FILES in alternation, each against the first.

    Every round runs all files in a new random order, so that a change of the clock or a busy neighbour meets all of
    them. The interval of a speed-up comes from its rounds; an interval around 1 means that no difference was found.
    """
    from slim_core.files import require_folder, write_json
    from slim_core.measure import Artifact, measure
    from slim_core.measure.show import milliseconds, show

    if report is not None:
        require_folder(report)
    names = names_of(files)
    runtime = app.registry.get("backends", backend)()
    runtime.available()
    sessions: dict[str, Session] = {}
    try:
        inputs: Inputs | None = None
        for name, file in zip(names, files, strict=True):
            artifact = Artifact(onnx=file, name=name)
            sessions[name] = runtime.prepare(artifact, inputs or {}, threads=threads)
            if inputs is None:
                inputs = _inputs(sessions[name], inputs_file, batch, shapes, seed)
        assert inputs is not None  # noqa: S101  click demands one file at least
        result = measure(sessions, inputs, rounds=rounds, budget_s=seconds, seed=seed, progress=app.output.progress)
        differences = _differences(sessions, inputs)
    finally:
        for session in sessions.values():
            session.close()
    data: dict[str, Any] = {**result.to_json(), "batch": batch, "differences": differences}
    for name, file in zip(names, files, strict=True):
        data.setdefault("files", {})[name] = {"path": str(file), "bytes": file.stat().st_size}
    if report is not None:
        write_json(report, data)
        app.output.note(f"written: {report}")
    line = "  ".join(f"{timing.name} {milliseconds(timing.median_ms)}" for timing in result.timings)
    app.output.emit(data, lambda: _with_differences(show(result), differences), line)


@click.command("backends")
@click.pass_obj
def backends(app: App) -> None:
    """List the runtimes that are registered, whether they work here, and the machine."""
    from slim_core.measure import this_device

    device = this_device()
    rows = []
    for entry in app.registry.entries("backends"):
        row: dict[str, Any] = {"name": entry.name, "plugin": entry.plugin, "available": True, "reason": None}
        try:
            app.registry.get("backends", entry.name)().available()
        except SlimError as error:
            row.update(available=False, reason="; ".join(part for part in (error.what, error.hint) if part))
        rows.append(row)
    usable = " ".join(row["name"] for row in rows if row["available"])
    app.output.emit({"backends": rows, "device": device.to_json()}, lambda: _table(rows, str(device)), usable)


def names_of(files: tuple[Path, ...]) -> list[str]:
    """Return the shortest ends of the paths that tell them apart."""
    for depth in range(1, max(len(file.parts) for file in files) + 1):
        names = [str(Path(*file.parts[-depth:])) for file in files]
        if len(set(names)) == len(names):
            return names
    return [f"{file} ({position})" for position, file in enumerate(files, 1)]


def _inputs(session: Any, file: Path | None, batch: int, shapes: tuple[str, ...], seed: int) -> Inputs:
    from slim_latency.inputs import draw, read

    if file is not None:
        return read(file)
    signature = getattr(session, "inputs", None)
    if signature is None:
        raise MeasureError("this backend does not say what inputs its files take", hint="give them: --inputs FILE.npz")
    return draw(signature, batch=batch, shapes=dict(shape_of(text) for text in shapes), seed=seed)


def shape_of(text: str) -> tuple[str, tuple[int, ...]]:
    name, _, sizes = text.partition("=")
    try:
        return name, tuple(int(size) for size in sizes.split(","))
    except ValueError:
        raise MeasureError(f"cannot read --shape {text!r}", hint="write --shape NAME=1,3,224,224") from None


def _differences(sessions: dict[str, Session], inputs: Inputs) -> dict[str, Any]:
    """Return how far each file's outputs are from the first one's: to be told, not judged."""
    from slim_core.measure.agree import compare

    outputs = {name: session.run(inputs) for name, session in sessions.items()}
    first, *others = outputs
    found: dict[str, Any] = {}
    for name in others:
        try:
            found[name] = compare(outputs[first], outputs[name], None, name).to_json()
        except MeasureError as error:
            found[name] = {"reason": error.what}
    return found


def _with_differences(shown: RenderableType, differences: dict[str, Any]) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    lines = []
    for name, found in differences.items():
        if "reason" in found:
            lines.append(f"{name}: {found['reason']}")
        elif found["sqnr_db"] is None:
            lines.append(f"{name}: outputs equal the first file's")
        else:
            lines.append(
                f"{name}: outputs differ from the first file's by at most {found['max_diff']:.3g} "
                f"of {found['largest']:.3g} (SQNR {found['sqnr_db']:.1f} dB)"
            )
    return Group(shown, Text("\n".join(lines))) if lines else shown


def _table(rows: list[dict[str, Any]], device: str) -> RenderableType:
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, expand=False)
    for column in ("backend", "plugin", "works here"):
        table.add_column(column, overflow="fold")
    for row in rows:
        state = Text("yes", style="green") if row["available"] else Text(row["reason"], style="yellow")
        table.add_row(Text(row["name"]), Text(row["plugin"]), state)
    return Group(table, Text(device))
