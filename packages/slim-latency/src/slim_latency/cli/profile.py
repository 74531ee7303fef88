"""``slim latency profile``: where the time of a model goes on onnxruntime."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from slim_core.cli.app import App
from slim_latency.cli.models import model_options, onnx_files, runtime_options


@click.command("profile")
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@model_options
@runtime_options
@click.option("--shape", "shapes", multiple=True, metavar="NAME=1,3,32,32", help="Shape of one input of ONNX files.")
@click.option("--rounds", type=click.IntRange(min=1), default=10, show_default=True, help="Samples per model.")
@click.option("--top", type=click.IntRange(min=1), default=15, show_default=True, help="Kernels to show.")
@click.option("-o", "--output", "report", type=click.Path(path_type=Path), help="Write everything to a JSON file.")
@click.option(
    "--svg", "drawing", type=click.Path(path_type=Path), help="Draw it: a file, or a folder for several models."
)
@click.option("--table", "table", type=click.Path(path_type=Path), help="Write the kernels as a device table.")
@click.pass_obj
def profile(
    app: App,
    models: tuple[str, ...],
    kwargs: str,
    inputs: tuple[str, ...],
    threads: int,
    level: str,
    batch: int,
    seed: int,
    shapes: tuple[str, ...],
    rounds: int,
    top: int,
    report: Path | None,
    drawing: Path | None,
    table: Path | None,
) -> None:
    r"""Profile MODELs on onnxruntime: latency, and the time of every kernel, in shuffled rounds.

    MODEL is an ONNX file, the name of a registered model, or a checkpoint that Slim wrote.

    \b
    slim latency profile model.onnx --svg profile.svg
    slim latency profile zoo/mobilenet_v2 zoo/resnet18 --input 1,3,96,96
    """
    from slim_core.files import require_folder, write_json, write_text
    from slim_latency import profile_views as views
    from slim_latency.cli.compare import shape_of
    from slim_latency.devices import SUFFIX
    from slim_latency.profile import profile as measure
    from slim_latency.results import table_of
    from slim_latency.table import write_table

    for path in (report, drawing, table):
        if path is not None:
            require_folder(path)
    with tempfile.TemporaryDirectory() as folder:
        files = onnx_files(app, models, kwargs, inputs, Path(folder))
        found = measure(
            files, rounds=rounds, threads=threads, level=level, batch=batch, seed=seed,
            shapes=dict(shape_of(text) for text in shapes), progress=app.output.progress,
        )  # fmt: skip
    if report is not None:
        write_json(report, found.to_json())
        app.output.note(f"written: {report}")
    if drawing is not None:
        for item in found.profiles:
            target = drawing / f"{item.name}.svg" if drawing.is_dir() else drawing
            if len(found.profiles) > 1 and not drawing.is_dir():
                target = drawing.with_name(f"{drawing.stem}-{item.name}{drawing.suffix}")
            write_text(target, views.svg(item, views.caption(found)))
            app.output.note(f"written: {target}")
    if table is not None:
        name = table.name.removesuffix(SUFFIX)
        write_table(table_of(name, found.rows), table.with_name(f"{name}{SUFFIX}"))
    line = "  ".join(f"{item.name} {item.median_ms:.4g} ms" for item in found.profiles)
    app.output.emit(found.to_json(), lambda: views.show(found, top), line)
