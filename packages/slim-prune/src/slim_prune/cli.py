"""``slim prune``: plan which channels to remove, and look at plans."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from slim_core.errors import SlimError
from slim_core.files import require_folder


@click.group()
def prune() -> None:
    """Plan which channels to remove, and look at plans."""


@prune.command("plan")
@click.option("--model", required=True, help="Registered name of the model: zoo/resnet18.")
@click.option("--kwargs", default="{}", metavar="JSON", help="Arguments of the model's builder, as a JSON object.")
@click.option(
    "--input", "shape", default="1,3,224,224", show_default=True, metavar="N,C,H,W", help="Shape of the input."
)
@click.option("--budget", multiple=True, metavar="COST=BOUND", help="macs=0.5, params=1.2M; may be repeated.")
@click.option("--ratio", multiple=True, metavar="GLOB=SHARE", help="Share of channels to keep; may be repeated.")
@click.option("--importance", default="l1", show_default=True, help="Name of the importance criterion.")
@click.option("--include", multiple=True, metavar="GLOB", help="Modules that may be pruned; may be repeated.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Modules that may not be touched; may be repeated.")
@click.option("--round-to", default=8, show_default=True, help="Kept channels are a multiple of this.")
@click.option("--min-channels", default=1, show_default=True, help="The least that a layer keeps.")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Write the plan to this file.")
@click.pass_obj
def plan_command(
    app: Any,
    model: str,
    kwargs: str,
    shape: str,
    budget: tuple[str, ...],
    ratio: tuple[str, ...],
    importance: str,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    round_to: int,
    min_channels: int,
    output: Path | None,
) -> None:
    r"""Plan what to remove from a registered model.

    \b
    slim prune plan --model zoo/resnet18 --budget macs=0.5 -o plan.json
    """
    if output is not None:
        require_folder(output)
    sizes = _shape(shape)
    arguments = _object(kwargs)
    bounds = dict(_pair(item, "--budget") for item in budget) or None
    ratios = {name: _share(value) for name, value in (_pair(item, "--ratio") for item in ratio)}
    builder = app.registry.get("models", model)

    import torch

    from slim_prune.planning import plan

    planned = plan(
        builder(**arguments),
        (torch.zeros(sizes),),
        bounds,
        importance=importance,
        include=include,
        exclude=exclude,
        ratios=ratios,
        round_to=round_to,
        min_channels=min_channels,
        registry=app.registry,
    )
    if output is not None:
        planned.save(output)
        app.output.note(f"plan written to {output}")
    _emit(app, planned)


@prune.command("show")
@click.argument("plan", type=click.Path(path_type=Path, dir_okay=False))
@click.pass_obj
def show_command(app: Any, plan: Path) -> None:
    """Show a written plan: costs before and after, channels per group, notes."""
    from slim_prune.prune_plan import PrunePlan

    _emit(app, PrunePlan.load(plan))


def _emit(app: Any, planned: Any) -> None:
    kept = ", ".join(f"{name} {planned.after[name] / before:.1%}" for name, before in planned.before.items() if before)
    data = {
        "model_class": planned.model_class,
        "importance": planned.importance,
        "allocation": planned.allocation,
        "budget": dict(planned.budget),
        "before": dict(planned.before),
        "after": dict(planned.after),
        "channels": planned.summary(),
        "notes": list(planned.notes),
    }
    app.output.emit(data, render=planned.show, quiet=kept)


def _pair(item: str, option: str) -> tuple[str, str]:
    name, sign, value = item.rpartition("=")
    if not sign or not name or not value:
        raise SlimError(f"{option} takes NAME=VALUE, not '{item}'", hint=f"for example {option} macs=0.5")
    return name, value


def _share(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise SlimError(f"--ratio takes GLOB=SHARE, and '{value}' is not a number") from None


def _shape(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(part) for part in text.split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise SlimError(f"--input takes sizes such as 1,3,224,224, not '{text}'")
    return sizes


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise SlimError(f"--kwargs is not JSON: {error}", hint="""for example --kwargs '{"width": 0.5}'""") from None
    if not isinstance(value, dict):
        raise SlimError("--kwargs takes a JSON object", hint="""for example --kwargs '{"width": 0.5}'""")
    return value
