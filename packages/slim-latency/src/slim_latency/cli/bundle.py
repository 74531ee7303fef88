"""``slim latency bundle``, ``import`` and ``calibrate``: device tables, for other devices and for this one."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slim_core.cli.app import App
from slim_core.errors import MeasureError
from slim_latency.cli.models import model_options, onnx_files, runtime_options, table_options

if TYPE_CHECKING:
    from slim_latency.table import DeviceTable


@click.command("bundle")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@model_options
@runtime_options
@table_options
@click.option("--networks", type=click.IntRange(min=0), default=30, show_default=True,
              help="Random networks to calibrate with, beside the models.")  # fmt: skip
@click.option("--size", type=click.IntRange(min=32), default=96, show_default=True, help="Side of their pictures.")
@click.option("--rounds", type=click.IntRange(min=1), default=7, show_default=True, help="Samples per model.")
@click.pass_obj
def bundle(
    app: App, folder: Path, models: tuple[str, ...], kwargs: str, inputs: tuple[str, ...], threads: int, level: str,
    batch: int, seed: int, runtime: str, precision: str, networks: int, size: int, rounds: int,
) -> None:  # fmt: skip
    r"""Write FOLDER: models, their hashes, and the agent that measures them on a device.

    Copy it by any means (scp, adb push, a stick), run `python3 agent.py .` in it, copy results.jsonl back, and import
    it. MODELs of your own make the table know their kernels; they are measured beside the random networks.
    """
    settings = {"runtime": runtime, "precision": precision, "rounds": rounds, "threads": threads, "level": level,
                "batch": batch, "seed": seed}  # fmt: skip
    count = _write(app, folder, models, kwargs, inputs, networks, size, settings)
    size_mb = sum(path.stat().st_size for path in folder.glob("*.onnx")) / 1e6
    app.output.emit(
        {"folder": str(folder), "models": count, "megabytes": size_mb, "settings": settings},
        lambda: f"{folder}: {count} models, {size_mb:.0f} MB. Copy it to the device and run there: python3 agent.py .",
        str(folder),
    )


@click.command("import")
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--name", required=True, help="Of the device: budgets then say latency:NAME.")
@click.option("--note", help="A line of provenance to keep in the table.")
@click.option("--from", "kind", type=click.Choice(["agent", "ofa", "paddleslim"]), default="agent", show_default=True,
              help="What SOURCE is: a bundle with results, or another tool's table.")  # fmt: skip
@click.option("-o", "--output", "target", type=click.Path(path_type=Path),
              help="Where to write the table.  [default: the user's folder of device tables]")  # fmt: skip
@click.pass_obj
def import_(app: App, source: Path, name: str, note: str | None, kind: str, target: Path | None) -> None:
    """Make a device table of SOURCE: a bundle's folder with results, its results.jsonl, or another tool's table."""
    from slim_latency.importing import import_results

    if kind != "agent":
        from slim_latency.foreign import read_foreign

        _finish(app, read_foreign(source, kind, name), target)
        return
    _finish(app, import_results(source, name, note=note, progress=app.output.progress), target)


@click.command("calibrate")
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@model_options
@runtime_options
@table_options
@click.option("--name", required=True, help="Of this machine: budgets then say latency:NAME.")
@click.option("--networks", type=click.IntRange(min=0), default=30, show_default=True, help="Random networks to use.")
@click.option("--size", type=click.IntRange(min=32), default=96, show_default=True, help="Side of their pictures.")
@click.option("--rounds", type=click.IntRange(min=1), default=7, show_default=True, help="Samples per model.")
@click.option("--folder", type=click.Path(path_type=Path), help="Keep the bundle here, to go on after an interruption.")
@click.option("-o", "--output", "target", type=click.Path(path_type=Path), help="Where to write the table.")
@click.pass_obj
def calibrate(
    app: App, models: tuple[str, ...], kwargs: str, inputs: tuple[str, ...], threads: int, level: str, batch: int,
    seed: int, runtime: str, precision: str, name: str, networks: int, size: int, rounds: int, folder: Path | None,
    target: Path | None,
) -> None:  # fmt: skip
    """Make a device table of this machine: bundle, agent and import in one go."""
    from slim_latency import agent
    from slim_latency.importing import import_results

    settings = {"runtime": runtime, "precision": precision, "rounds": rounds, "threads": threads, "level": level,
                "batch": batch, "seed": seed}  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        place = folder or Path(scratch)
        if not (place / "manifest.json").is_file():
            _write(app, place, models, kwargs, inputs, networks, size, settings)
        try:
            agent.run_bundle(str(place), app.output.note)
        except agent.Refused as error:
            raise MeasureError(str(error), where=str(place)) from None
        found = import_results(place, name, progress=app.output.progress)
    _finish(app, found, target)


def _write(
    app: App, folder: Path, models: tuple[str, ...], kwargs: str, inputs: tuple[str, ...], networks: int, size: int,
    settings: dict[str, Any],
) -> int:  # fmt: skip
    from slim_core.export import to_onnx
    from slim_core.graph import record
    from slim_core.graph.cost import count_macs
    from slim_latency import calibration
    from slim_latency.bundle import write_bundle

    folder.mkdir(parents=True, exist_ok=True)
    files = onnx_files(app, models, kwargs, inputs, folder)
    macs: dict[str, int] = {}
    names, example = calibration.names(networks), calibration.picture(size)
    with app.output.progress.track("export", len(names)) as track:
        for name in names:
            model = calibration.network(name)
            macs[name] = int(count_macs(record(model, example)))
            target = folder / f"{name}.onnx"
            if not target.is_file():
                to_onnx(model, example, target, check=False)
            files[name] = target
            track.advance(1)
    write_bundle(folder, files, macs=macs, settings=settings)
    return len(files)


def _finish(app: App, found: DeviceTable, target: Path | None) -> None:
    from slim_latency.devices import SUFFIX, target_folder
    from slim_latency.table import write_table

    if target is None:
        folder = target_folder()
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / f"{found.name}{SUFFIX}"
    write_table(found, target)
    for note in found.header.get("notes", ()):
        app.output.warn(note)
    noise = "unknown" if found.noise is None else f"{found.noise:.1%}"
    data = {"name": found.name, "path": str(target), "kernels": len(found.kernels), "networks": len(found.networks),
            "noise": found.noise}  # fmt: skip
    app.output.emit(
        data,
        lambda: (
            f"{target}: {len(found.kernels)} kernels, {len(found.networks)} networks, noise floor {noise}. "
            f"Budgets may now say latency:{found.name}"
        ),
        str(target),
    )
