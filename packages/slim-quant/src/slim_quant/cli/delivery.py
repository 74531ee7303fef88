"""What commands do with a quantized model: write it, evaluate it, export it, compare and time the file; and say so.

Each command builds a quantized workload in its own way and hands it to :func:`deliver`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from slim_core.cli.options import bundled, refuse_existing
from slim_core.errors import Interrupted, OutputFolderError, SlimError
from slim_quant.cli.subject import validation
from slim_quant.cli.views import slower

if TYPE_CHECKING:
    from slim_core.cli.app import App
    from slim_core.measure import Measurement
    from slim_core.workload import Workload

F = TypeVar("F", bound=Callable[..., Any])

#: runtimes that run and time files; what is quantized for something else is run on the first
RUNTIMES = ("onnxruntime", "openvino")
_FILE = click.Path(path_type=Path, dir_okay=False)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a command shall leave behind, as it stands on the command line."""

    output: Path | None
    onnx: Path | None
    plot: Path | None
    measure: bool
    batch: tuple[int, ...]
    threads: int
    compared: int
    overwrite: bool

    def check(self, target: str) -> None:
        """Find out before the long work what cannot be written or run after it.

        Raises:
            SlimError: a file may not be written, or something that is needed is not installed.
        """
        if self.output is not None and self.output.suffix != ".safetensors":
            raise SlimError(
                "a checkpoint is a .safetensors file",
                where=str(self.output),
                hint=f"-o {self.output.with_suffix('.safetensors')}",
            )
        files = [path for path in (self.output, self.onnx, self.plot) if path is not None]
        for position, path in enumerate(files):
            refuse_existing(path, self.overwrite)
            if path in files[:position]:
                raise SlimError("two results would be written to one file", where=str(path), hint="name another file")
        if self.onnx is not None or self.measure:
            need_exporter()
        if self.measure:
            need_runtime(target)


_WANTED = (
    click.option("-o", "--output", type=_FILE, metavar="FILE", help="Write the quantized model to this checkpoint."),
    click.option("--onnx", type=_FILE, metavar="FILE", help="Write the file for the runtime, as ONNX."),
    click.option("--plot", type=_FILE, metavar="FILE", help="Draw what each layer lost into this SVG file."),
    click.option(
        "--measure", is_flag=True, help="Time float and quantized files on the target's runtime, interleaved."
    ),
    click.option(
        "--batch",
        type=click.IntRange(min=1),
        multiple=True,
        metavar="N",
        help="Batch that is timed; may be repeated.  [default: 1]",
    ),
    click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Threads of the runtime."),
    click.option(
        "--compare",
        "compared",
        type=click.IntRange(min=0),
        default=256,
        show_default=True,
        metavar="N",
        help="Validation samples on which the file is compared with the simulation.",
    ),
    click.option("--overwrite", is_flag=True, help="Replace files that are there."),
)


def wanted_options(command: F) -> F:
    """Add the options of :class:`Wanted`; the command takes them as ``wanted``."""
    return bundled(command, _WANTED, Wanted, "wanted")


def need_exporter() -> None:
    """Check that what writes ONNX files is installed.

    Raises:
        MissingExtraError: it is not.
    """
    from slim_core.extras import require

    for module in ("onnx", "onnxscript"):
        require(module, "slim-core[onnx]")


def runtime_of(target: str) -> str:
    """Return the runtime that runs files for ``target``."""
    return target if target in RUNTIMES else RUNTIMES[0]


def need_runtime(target: str) -> None:
    """Check that the runtime that times files for ``target`` is installed.

    Raises:
        MissingExtraError: it is not.
    """
    from slim_core.extras import require

    require(runtime_of(target), f"slim-quant[{runtime_of(target)}]")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the operating system says while a file is written into an error about that file.

    Raises:
        OutputFolderError: it cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise OutputFolderError(f"the file cannot be written: {error.strerror or error}", where=str(path)) from error


@contextmanager
def kept(path: Path | None) -> Iterator[None]:
    """Turn Ctrl-C after the file was written in the block into one line that says where it is.

    Raises:
        Interrupted: the user pressed Ctrl-C, and the file is there.
    """
    before = _identity(path)
    try:
        yield
    except KeyboardInterrupt:
        if path is None or _identity(path) == before:
            raise
        raise Interrupted(
            f"stopped; the quantized model is in {path}", hint=f"to go on: slim quant export {path} -o FILE.onnx"
        ) from None


def _identity(path: Path | None) -> tuple[int, int] | None:
    """Return what changes when a file is replaced; ``None``: there is none."""
    if path is None or not path.exists():
        return None
    found = path.stat()
    return found.st_ino, found.st_mtime_ns


def deliver(app: App, before: Workload, after: Workload, wanted: Wanted, target: str) -> dict[str, Any]:
    """Write, evaluate, export, compare and time, as far as it is wanted; return it all as JSON.

    Args:
        app: where notes go.
        before: the float workload.
        after: the quantized one.
        wanted: what to write.
        target: the runtime's name.
    """
    data: dict[str, Any] = {"target": target, "float_bytes": tensor_bytes(before)}
    with kept(wanted.output):
        if wanted.output is not None:
            data |= _saved(app, before, after, wanted.output)
        metrics = _metrics(app, before, after)
        if metrics:
            data["metrics"] = metrics
        if wanted.onnx is None and not wanted.measure:
            return data
        with tempfile.TemporaryDirectory(prefix="slim-quant-") as folder:
            path = wanted.onnx or Path(folder) / "quantized.onnx"
            data["onnx"] = exported(app, after, path, target, wanted.compared)
            if wanted.onnx is None:
                data["onnx"]["path"] = None
            if wanted.measure:
                data.update(_timed(app, before, after, path, Path(folder) / "float.onnx", wanted, target))
    return data


def _saved(app: App, before: Workload, after: Workload, path: Path) -> dict[str, Any]:
    from slim_core.checkpoint import save

    with writing(path):
        save(after, path)
    app.output.note(f"checkpoint written to {path}")
    checkpoint = {"path": str(path), "bytes": path.stat().st_size}
    return {"checkpoint": checkpoint, "float_checkpoint_bytes": _checkpoint_bytes(before)}


def exported(app: App, workload: Workload, path: Path, target: str, samples: int) -> dict[str, Any]:
    """Write a quantized workload's file for its runtime and compare it with the simulation; return what was found.

    Args:
        app: where notes go.
        workload: the quantized model; with validation data, the file is compared on some of it, otherwise on the
            example inputs.
        path: the file.
        target: the runtime's name.
        samples: how many samples to compare on; 0 compares on none.
    """
    from slim_core.errors import MissingExtraError
    from slim_quant.deploy import compare, export

    with app.output.progress.track("export", 1) as track, writing(path):
        done = export(workload.model, path, target, example_inputs=workload.example_inputs)
        track.advance(1)
    data = done.to_json()
    for note in done.notes:
        app.output.note(note)
    if not samples:
        return data
    batches = [workload.example_inputs] if workload.val is None else validation(workload, samples)
    try:
        with app.output.progress.track("compare with the simulation"):
            data["deployment"] = compare(workload.model, path, batches, runtime_of(target)).to_json()
    except MissingExtraError as error:
        app.output.warn(f"the file was not run: {error.what}; {error.hint}")
    return data


def drawn(app: App, path: Path, plots: Sequence[Mapping[str, Any]], title: str, lines: Sequence[str] = ()) -> None:
    """Write plots, as :func:`slim_core.report.plots.read_plots` reads them, into an SVG file."""
    from slim_core.files import write_text
    from slim_core.report.plots import draw, read_plots
    from slim_core.report.svg_file import standalone

    with writing(path):
        write_text(path, standalone([draw(plot) for plot in read_plots(list(plots))], title=title, lines=lines))
    app.output.note(f"drawn into {path}")


def draw_rows(app: App, rows: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Draw the figures in dB of a report's layers as bars."""
    from slim_quant.figures import sqnr_plots

    drawn(app, path, sqnr_plots(rows), title)


def tensor_bytes(workload: Workload) -> int:
    """Return the bytes of all parameters and buffers, shared ones once."""
    model = workload.model
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def _checkpoint_bytes(workload: Workload) -> int:
    """Return the size of the float model's checkpoint."""
    from slim_core.checkpoint import save

    with tempfile.TemporaryDirectory(prefix="slim-quant-") as folder:
        path = Path(folder) / "float.safetensors"
        save(workload, path)
        return path.stat().st_size


def _metrics(app: App, before: Workload, after: Workload) -> dict[str, dict[str, float]]:
    if before.task is None or before.val is None:
        return {}
    from slim_core.training import evaluate

    progress = app.output.progress
    first = evaluate(before.model, before.task, before.val, progress=progress)
    second = evaluate(after.model, before.task, before.val, progress=progress)
    return {name: {"before": first[name], "after": second[name]} for name in first}


def _timed(
    app: App, before: Workload, after: Workload, path: Path, plain: Path, wanted: Wanted, target: str
) -> dict[str, Any]:
    from slim_core.export import to_onnx
    from slim_core.measure import batched, measure
    from slim_quant.runtimes import open_file

    runtime, timings = runtime_of(target), []
    size = to_onnx(before.model, before.example_inputs, plain, check=False).bytes
    for batch in wanted.batch or (1,):
        sessions = {
            "float": open_file(plain, runtime, wanted.threads),
            "quantized": open_file(path, runtime, wanted.threads),
        }
        found: Measurement = measure(
            sessions, batched(before.example_inputs, batch), references={"float": before.model},
            progress=app.output.progress,
        )  # fmt: skip
        for session in sessions.values():
            session.close()
        if found["quantized"].verdict == "slower":
            app.output.warn(f"batch {batch}: {slower(found['quantized'].speedup)}")
        timings.append({"runtime": runtime, "batch": batch, **found.to_json()})
    return {"float_onnx_bytes": size, "timings": timings}
