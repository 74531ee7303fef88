"""Options that plugins' commands share: model, data and task (``workload_options``), and how values are read.

:func:`bundled` hands a group of options to a command as one value. Not here: what the options build (``building.py``).
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from slim_core.errors import DataError, SlimError

if TYPE_CHECKING:
    from slim_core.registry import Registry
    from slim_core.workload import Workload

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class WorkloadRequest:
    """Model, data and task, as they stand on the command line; :meth:`workload` builds it."""

    model: str | None
    kwargs: str
    checkpoint: Path | None
    weights: Path | None
    data: str | None
    data_kwargs: str
    task: str | None
    task_kwargs: str
    shapes: tuple[str, ...]

    def workload(self, registry: Registry, *, needs_data: str | None = None) -> Workload:
        """Build model, inputs, data and task.

        Args:
            registry: what plugins registered.
            needs_data: what cannot do without data, for the error; ``None``: data may be missing.

        Raises:
            SlimError: something is missing or does not fit; says which option.
        """
        from slim_core.cli.building import build

        return build(self, registry, needs_data=needs_data)


_MODEL = (
    click.option("--model", metavar="NAME", help="Registered name of the model (zoo/resnet18), or a checkpoint."),
    click.option("--kwargs", default="{}", metavar="JSON", help="Arguments of the model's builder, as a JSON object."),
    click.option(
        "--checkpoint", type=click.Path(path_type=Path), metavar="FILE", help="A checkpoint that Slim wrote: the model."
    ),
    click.option(
        "--weights", type=click.Path(path_type=Path), metavar="FILE", help="Weights for --model: a .safetensors file."
    ),
)
_DATA = (
    click.option("--data", metavar="NAME", help="Registered name of a data set, for what looks at data."),
    click.option("--data-kwargs", default="{}", metavar="JSON", help="Arguments of the data set, as a JSON object."),
    click.option("--task", metavar="NAME", help="Registered name of the task.  [default: the data set's own]"),
    click.option("--task-kwargs", default="{}", metavar="JSON", help="Arguments of the task, as a JSON object."),
    click.option(
        "--input",
        "shapes",
        multiple=True,
        metavar="[NAME=]1,3,32,32[:DTYPE]",
        help="Shape of an input; once for each.  [default: the model's or the data set's own]",
    ),
)


def workload_options(command: F) -> F:
    """Add the options of :class:`WorkloadRequest`; the command takes them as ``request``."""
    return bundled(command, (*_MODEL, *_DATA), WorkloadRequest, "request")


def data_options(command: F) -> F:
    """Add the options of data and task alone, for a command whose argument is a checkpoint.

    The command takes them as ``request``, a :class:`WorkloadRequest` that names no model yet.
    """
    return bundled(command, _DATA, WorkloadRequest, "request", model=None, kwargs="{}", checkpoint=None, weights=None)


def pair(item: str, option: str, example: str) -> tuple[str, str]:
    """Part ``NAME=VALUE`` at the last sign of equality.

    Raises:
        SlimError: there is no name or no value.
    """
    name, sign, value = item.rpartition("=")
    if not sign or not name or not value:
        raise SlimError(f"{option} takes NAME=VALUE, not '{item}'", hint=f"for example {option} {example}")
    return name, value


def once(pairs: Iterable[tuple[str, T]], option: str) -> dict[str, T]:
    """Return pairs as a mapping.

    Raises:
        SlimError: a name stands there twice; which value is meant cannot be known.
    """
    found: dict[str, T] = {}
    for name, value in pairs:
        if name in found:
            raise SlimError(
                f"{option} gives '{name}' two values: {found[name]} and {value}", hint="give each name one value"
            )
        found[name] = value
    return found


def named(text: str, option: str, example: str = "l2:normalize=max") -> str | dict[str, Any]:
    """Read ``NAME`` or ``NAME:OPTION=VALUE,OPTION=VALUE``; values are JSON, or text where they are not.

    Args:
        text: what stands on the command line.
        option: the option that it stands behind, for the error.
        example: what could stand there instead, for the error.

    Raises:
        SlimError: an option has no value.
    """
    name, colon, rest = text.partition(":")
    if not colon:
        return text
    found: dict[str, Any] = {"name": name}
    for item in rest.split(","):
        key, sign, value = item.partition("=")
        if not name or not key or not sign or not value:
            raise SlimError(f"{option} takes NAME:OPTION=VALUE,…, not '{text}'", hint=f"for example {option} {example}")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found


def refuse_existing(path: Path | None, overwrite: bool) -> None:
    """Check that a file may be written: into a folder that is there, and over no other file, unless that is wanted.

    Raises:
        SlimError: it may not.
    """
    from slim_core.files import require_folder

    if path is None:
        return
    require_folder(path)
    if path.is_dir():
        raise SlimError("the file cannot be written: this is a folder", where=str(path), hint="name a file inside it")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise SlimError(
            f"the file cannot be written: the folder '{path.parent}' may not be written to",
            where=str(path),
            hint="choose another folder",
        )
    if path.exists() and not overwrite:
        raise SlimError(
            "the file is there already", where=str(path), hint="choose another name, or pass --overwrite to replace it"
        )


def need_data(what: str) -> DataError:
    """Return the error for a command that cannot do without data."""
    return DataError(
        f"{what} looks at data, and none was given",
        where="--data",
        hint="--data NAME takes a registered data set; --load my_project.py registers your own",
    )


def bundled(command: F, options: tuple[Callable[[F], F], ...], kind: type[Any], name: str, **others: Any) -> F:
    """Add ``options`` to a command, which takes them together, as a ``kind`` called ``name``.

    Args:
        command: the function behind the command.
        options: click's decorators.
        kind: a dataclass whose fields are called as the options' values are.
        name: the keyword argument.
        others: fields that have no option here, and their values.
    """
    keys = [item.name for item in fields(kind) if item.name not in others]

    @functools.wraps(command)
    def taken(*args: Any, **values: Any) -> Any:
        return command(*args, **{name: kind(**{key: values.pop(key) for key in keys}, **others)}, **values)

    for option in reversed(options):
        taken = option(taken)
    return taken  # type: ignore[return-value]
