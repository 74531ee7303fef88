"""What commands are given: ONNX files, registered models or checkpoints, and options that they share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from slim_core.errors import MeasureError

if TYPE_CHECKING:
    from slim_core.cli.app import App

#: what the agent and ``predict`` can read kernels from
RUNTIMES = ("onnxruntime", "openvino")
F = TypeVar("F", bound=Callable[..., Any])
_KWARGS = """{"width": 0.5}"""


def model_options(command: F) -> F:
    """Add ``--kwargs`` and ``--input``: how registered models are built, and what they take."""
    for option in (
        click.option("--input", "inputs", multiple=True, metavar="[NAME=]1,3,32,32[:DTYPE]",
                     help="Shape of an input of registered models; once for each."),
        click.option("--kwargs", default="{}", metavar="JSON", help="Arguments of registered models' builders."),
    ):  # fmt: skip
        command = option(command)
    return command


def runtime_options(command: F) -> F:
    """Add threads, graph level, batch and seed."""
    for option in (
        click.option("--seed", type=int, default=0, show_default=True, help="Of random inputs and of the order."),
        click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True,
                     help="Size of a first dimension of any size."),
        click.option("--level", type=click.Choice(["disabled", "basic", "extended", "all"]), default="all",
                     show_default=True, help="How far the runtime rewrites the graph."),
        click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True,
                     help="Threads inside operators."),
    ):  # fmt: skip
        command = option(command)
    return command


def onnx_files(app: App, models: Sequence[str], kwargs: str, inputs: tuple[str, ...], folder: Path) -> dict[str, Path]:
    """Return ONNX files by name: files as they are, registered models and checkpoints exported into ``folder``.

    Raises:
        MeasureError: a file is missing, or two models get one name.
    """
    from slim_latency.cli.compare import names_of

    if not models:
        return {}
    paths = tuple(Path(model) for model in models)
    found: dict[str, Path] = {}
    for name, model, path in zip(names_of(paths), models, paths, strict=True):
        label = name.removesuffix(".onnx").replace("/", "-")
        if label in found:
            raise MeasureError(f"two models are called '{label}'", hint="give each file another name")
        found[label] = (
            path if path.suffix == ".onnx" else _exported(app, model, kwargs, inputs, folder / f"{label}.onnx")
        )
        if not found[label].is_file():
            raise MeasureError(f"there is no file {path}")
    return found


def _exported(app: App, model: str, kwargs: str, inputs: tuple[str, ...], target: Path) -> Path:
    from slim_core.cli.subject import json_object, subject
    from slim_core.export import to_onnx

    module, example = subject(app.registry, model, json_object(kwargs, "--kwargs", _KWARGS), inputs)
    app.output.note(f"exporting {model}")
    return to_onnx(module.eval(), example, target, check=False).path


def table_options(command: F) -> F:
    """Add the runtime and the precision of a table."""
    for option in (
        click.option("--precision", type=click.Choice(["f32", "bf16", "f16", "default"]), default="f32",
                     show_default=True, help="What openvino computes in."),
        click.option("--runtime", type=click.Choice(RUNTIMES), default="onnxruntime", show_default=True,
                     help="The runtime that the device has."),
    ):  # fmt: skip
        command = option(command)
    return command
