"""``slim prune plan``: decide what to remove; nothing is removed yet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from slim_prune.cli.options import PlanRequest, WorkloadRequest, plan_options, refuse_existing, workload_options
from slim_prune.cli.views import draw, emit


@click.command("plan")
@workload_options
@plan_options
@click.option(
    "--folder", type=click.Path(path_type=Path, file_okay=False), help="Where state that can be resumed goes."
)
@click.option("--seed", default=0, show_default=True, help="Of everything random.")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Write the plan to this file.")
@click.option(
    "--picture", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Draw it into an SVG file too."
)
@click.option("--overwrite", is_flag=True, help="Replace files that are there.")
@click.pass_obj
def plan_command(
    app: Any,
    request: WorkloadRequest,
    asked: PlanRequest,
    folder: Path | None,
    seed: int,
    output: Path | None,
    picture: Path | None,
    overwrite: bool,
) -> None:
    r"""Plan what to remove from a registered model or a checkpoint.

    \b
    slim prune plan --model zoo/resnet18 --budget macs=0.5 -o plan.json
    slim prune plan --model zoo/resnet18 --data digits --importance taylor --allocation global --budget macs=50%
    slim prune plan --load my_project.py --model my_model --input 1,3,64,64 --budget params=0.3
    """
    refuse_existing(output, overwrite)
    refuse_existing(picture, overwrite)
    arguments = asked.arguments()
    from slim_prune.planning import plan

    workload = request.workload(app.registry)
    planned = plan(
        workload.model,
        workload.example_inputs,
        **arguments,
        task=workload.task,
        train=workload.train,
        val=workload.val,
        folder=folder,
        seed=seed,
        progress=app.output.progress,
        registry=app.registry,
    )
    if output is not None:
        planned.save(output)
        app.output.note(f"plan written to {output}")
    draw(app, planned, picture)
    emit(app, planned)
