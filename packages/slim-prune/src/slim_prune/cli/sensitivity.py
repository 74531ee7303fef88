"""``slim prune sensitivity``: measure what each channel group can spare, in one process or many."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slim_core.cli.resuming import resumable
from slim_core.errors import SlimError
from slim_core.files import require_folder
from slim_prune.cli.options import MIN_CHANNELS, PREFER, WorkloadRequest, floors, named, workload_options

if TYPE_CHECKING:
    from slim_prune.sensitivity.curves import Curves

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command("sensitivity")
@workload_options
@click.option("--metric", metavar="NAME", help="What is measured: a metric of the task, or loss.  [default: its own]")
@click.option(
    "--importance",
    default="l1",
    show_default=True,
    metavar="NAME[:OPTION=VALUE,…]",
    help="Which channels go first, with its options: l2:normalize=max.",
)
@click.option("--include", multiple=True, metavar="GLOB", help="Modules that are measured; may be repeated.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Modules that are left out; may be repeated.")
@click.option("--points", default=8, show_default=True, help="Counts of channels that are measured for each group.")
@click.option(
    "--counts", multiple=True, metavar="GLOB=8,16,…", help="Kept channels to measure instead; may be repeated."
)
@click.option("--round-to", default=8, show_default=True, help="Kept channels are a multiple of this.")
@MIN_CHANNELS
@PREFER
@click.option("--samples", type=int, help="Use the first so many samples only.  [default: all]")
@click.option(
    "--early-stop", type=float, metavar="TOLERANCE", help="Stop a point when it is known so well: 0.002 is 0.2 points."
)
@click.option("--shard", metavar="I/N", help="Measure one part of N; merge the parts with --merge, or share a folder.")
@click.option("--workers", default=0, show_default=True, help="Processes that share the work; 0: this one.")
@click.option("--timeout", default=3600.0, show_default=True, help="Seconds of silence until a worker is given up on.")
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where points are kept as they are measured.  [default: OUTPUT.points]",
)
@click.option("--fresh", is_flag=True, help="Forget the points in the folder instead of going on from them.")
@click.option("--merge", "parts", multiple=True, type=_FILE, metavar="FILE", help="Put written curves together.")
@click.option("--seed", default=0, show_default=True, help="Of everything random.")
@click.option("-o", "--output", type=_FILE, help="Write the curves to this file, as JSON.")
@click.option("--plot", type=_FILE, help="Draw the curves into this file, as SVG.")
@click.pass_obj
def sensitivity_command(
    app: Any,
    request: WorkloadRequest,
    metric: str | None,
    importance: str,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    points: int,
    counts: tuple[str, ...],
    round_to: int,
    min_channels: tuple[str, ...],
    prefer: str,
    samples: int | None,
    early_stop: float | None,
    shard: str | None,
    workers: int,
    timeout: float,
    folder: Path | None,
    fresh: bool,
    parts: tuple[Path, ...],
    seed: int,
    output: Path | None,
    plot: Path | None,
) -> None:
    r"""Measure what a metric becomes when one channel group at a time is pruned.

    A run that was stopped goes on where it was: measured points are kept beside the output.

    \b
    slim prune sensitivity --model zoo/resnet20 --weights base.safetensors --data digits -o curves.json
    slim prune sensitivity … --shard 1/2 -o one.json      # on another machine: --shard 2/2 -o two.json
    slim prune sensitivity --merge one.json --merge two.json -o curves.json
    slim prune plan … --allocation sensitivity:curves=curves.json --budget macs=0.5
    """
    for path in (output, plot):
        if path is not None:
            require_folder(path)
    if output is not None and output.exists():
        _refuse_others(output)
    if parts:
        from slim_prune.sensitivity.curves import Curves

        first, *others = [Curves.load(path) for path in parts]
        curves = first.merge(*others)
    else:
        asked = {pattern: _numbers(text) for pattern, text in map(_parted, counts)}
        criterion, least = named(importance, "--importance"), floors(min_channels)
        workload = request.workload(app.registry, needs_data="slim prune sensitivity")
        from slim_prune.sensitivity.analysis import sensitivity

        place = _place(folder, output, fresh)
        with resumable(f"the measured points are in {place}") if place is not None else nullcontext():
            curves = sensitivity(
                workload.model,
                workload.example_inputs,
                workload.task,  # type: ignore[arg-type]  # there is data, so there is a task
                workload.val,  # type: ignore[arg-type]
                metric=metric,
                importance=criterion,
                include=include,
                exclude=exclude,
                points=points,
                counts=asked or None,
                round_to=round_to,
                min_channels=least,
                prefer=prefer.replace("-", "_"),  # type: ignore[arg-type]
                samples=samples,
                early_stop=early_stop,
                folder=place,
                shard=shard,
                workers=workers,
                timeout=timeout,
                train=workload.train,
                seed=seed,
                progress=app.output.progress,
                registry=app.registry,
            )
    if output is not None:
        curves.save(output)
        app.output.note(f"curves written to {output}")
    if plot is not None:
        curves.plot(plot)
        app.output.note(f"drawn into {plot}")
    _emit(app, curves)


def _emit(app: Any, curves: Curves) -> None:
    rows = curves.summary()
    groups = sum(bool(curve.points) for curve in curves.curves)
    line = f"{curves.metric} {curves.base.value:.4f}; {len(rows)} points of {groups} channel groups"
    data = {
        "metric": curves.metric,
        "higher_is_better": curves.higher_is_better,
        "base": curves.base.to_json(),
        "points": rows,
        "identity": dict(curves.identity),
        "notes": list(curves.notes),
    }
    app.output.emit(data, render=curves.show, quiet=line)


def _place(folder: Path | None, output: Path | None, fresh: bool) -> Path | None:
    """Return where points are kept: the folder that was asked for, or one beside the output."""
    place = folder
    if place is None and output is not None:
        place = output.with_name(f"{output.name}.points")
    if fresh and place is not None and place.is_dir():
        from slim_prune.sensitivity.store import clear

        clear(place)
    return place


def _refuse_others(output: Path) -> None:
    from slim_prune.errors import PlanError
    from slim_prune.sensitivity.curves import Curves

    try:
        Curves.load(output)
    except PlanError:
        raise SlimError(
            "the file is there already, and holds something else than curves",
            where=str(output),
            hint="choose another name for the output",
        ) from None


def _parted(item: str) -> tuple[str, str]:
    pattern, sign, text = item.rpartition("=")
    if not sign or not pattern or not text:
        raise SlimError(f"--counts takes GLOB=8,16,…, not '{item}'", hint="for example --counts 'layer1.*=8,16,32'")
    return pattern, text


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise SlimError(f"--counts takes whole numbers, not '{text}'", hint="for example --counts '*=8,16'") from None
