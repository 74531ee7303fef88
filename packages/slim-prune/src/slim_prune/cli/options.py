"""Options that the commands share: what is pruned (``workload_options``) and how it is planned (``plan_options``).

Each decorator adds its options to a command and hands them over as one value: ``request`` and ``asked``.
Not here: what a command does with them.
"""

from __future__ import annotations

import functools
import json
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
    """What is pruned, as it stands on the command line; :meth:`workload` builds it."""

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
        from slim_prune.cli.building import build

        return build(self, registry, needs_data=needs_data)


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """How much is taken, where, and by what criterion, as it stands on the command line."""

    budget: tuple[str, ...]
    ratio: tuple[str, ...]
    importance: str
    allocation: str
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    round_to: int
    min_channels: tuple[str, ...]

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments of :func:`slim_prune.plan`.

        Raises:
            SlimError: an option cannot be read.
        """
        return {
            "budget": once((pair(item, "--budget", "macs=0.5") for item in self.budget), "--budget") or None,
            "ratios": once((_number(item, "--ratio", float, "layer1.*=0.75") for item in self.ratio), "--ratio"),
            "importance": named(self.importance, "--importance"),
            "allocation": named(self.allocation, "--allocation"),
            "include": self.include,
            "exclude": self.exclude,
            "round_to": self.round_to,
            "min_channels": _floors(self.min_channels),
        }


_WORKLOAD = (
    click.option("--model", metavar="NAME", help="Registered name of the model (zoo/resnet18), or a checkpoint."),
    click.option("--kwargs", default="{}", metavar="JSON", help="Arguments of the model's builder, as a JSON object."),
    click.option(
        "--checkpoint", type=click.Path(path_type=Path), metavar="FILE", help="A checkpoint that Slim wrote: the model."
    ),
    click.option(
        "--weights", type=click.Path(path_type=Path), metavar="FILE", help="Weights for --model: a .safetensors file."
    ),
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

_PLAN = (
    click.option("--budget", multiple=True, metavar="COST=BOUND", help="macs=0.5, params=1.2M; may be repeated."),
    click.option("--ratio", multiple=True, metavar="GLOB=SHARE", help="Share of channels to keep; may be repeated."),
    click.option(
        "--importance",
        default="l1",
        show_default=True,
        metavar="NAME[:OPTION=VALUE,…]",
        help="The importance criterion, with its options: l2:normalize=max.",
    ),
    click.option(
        "--allocation",
        default="uniform",
        show_default=True,
        metavar="NAME[:OPTION=VALUE,…]",
        help="How much to take where, with its options: global:normalize=max.",
    ),
    click.option("--include", multiple=True, metavar="GLOB", help="Modules that may be pruned; may be repeated."),
    click.option("--exclude", multiple=True, metavar="GLOB", help="Modules that may not be touched; may be repeated."),
    click.option("--round-to", default=8, show_default=True, help="Kept channels are a multiple of this."),
    click.option(
        "--min-channels",
        multiple=True,
        metavar="[GLOB=]COUNT",
        help="The least that a layer keeps, for all or by glob; may be repeated.  [default: 1]",
    ),
)


def workload_options(command: F) -> F:
    """Add the options of :class:`WorkloadRequest`; the command takes them as ``request``."""
    return _bundled(command, _WORKLOAD, WorkloadRequest, "request")


def plan_options(command: F) -> F:
    """Add the options of :class:`PlanRequest`; the command takes them as ``asked``."""
    return _bundled(command, _PLAN, PlanRequest, "asked")


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


def named(text: str, option: str) -> str | dict[str, Any]:
    """Read ``NAME`` or ``NAME:OPTION=VALUE,OPTION=VALUE``; values are JSON, or text where they are not.

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
            raise SlimError(
                f"{option} takes NAME:OPTION=VALUE,…, not '{text}'", hint=f"for example {option} l2:normalize=max"
            )
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found


def refuse_existing(path: Path | None, overwrite: bool) -> None:
    """Check that a file may be written: its folder is there, and the file is not, unless it may be replaced.

    Raises:
        SlimError: it may not.
    """
    from slim_core.files import require_folder

    if path is None:
        return
    require_folder(path)
    if path.is_dir():
        raise SlimError("the file cannot be written: this is a folder", where=str(path), hint="name a file inside it")
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


def _bundled(command: F, options: tuple[Callable[[F], F], ...], kind: type[Any], name: str) -> F:
    keys = [item.name for item in fields(kind)]

    @functools.wraps(command)
    def bundled(*args: Any, **values: Any) -> Any:
        return command(*args, **{name: kind(**{key: values.pop(key) for key in keys})}, **values)

    for option in reversed(options):
        bundled = option(bundled)
    return bundled  # type: ignore[return-value]


def _number(item: str, option: str, kind: Callable[[str], Any], example: str) -> tuple[str, Any]:
    name, value = pair(item, option, example)
    try:
        return name, kind(value)
    except ValueError:
        raise SlimError(
            f"{option} takes NAME=VALUE, and '{value}' is not a number", hint=f"{option} {example}"
        ) from None


def _floors(items: tuple[str, ...]) -> int | dict[str, int]:
    plain = [item for item in items if "=" not in item]
    if len(plain) > 1:
        raise SlimError("--min-channels without a glob stands there twice", where=" ".join(plain))
    try:
        everywhere = int(plain[0]) if plain else 1
    except ValueError:
        raise SlimError(
            f"--min-channels takes a count, not '{plain[0]}'", hint="--min-channels 16 or --min-channels 'layer1.*=16'"
        ) from None
    option = "--min-channels"
    by_glob = once((_number(item, option, int, "layer1.*=16") for item in items if "=" in item), option)
    return {**by_glob, "*": everywhere} if by_glob else everywhere
