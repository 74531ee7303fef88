"""``slim prune search``: try pruned copies, and plan what the best one keeps."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from slim_core.cli.resuming import resumable
from slim_core.errors import SlimError
from slim_prune.cli.options import (
    PlanRequest,
    WorkloadRequest,
    named,
    plan_options,
    refuse_existing,
    workload_options,
)
from slim_prune.cli.views import emit


@click.command("search")
@workload_options
@plan_options
@click.option(
    "--algorithm",
    type=click.Choice(["aging", "annealing", "cmaes", "random"]),
    default="aging",
    show_default=True,
    help="Aging evolution, simulated annealing, CMA-ES (needs slim-prune[search]), or random draws.",
)
@click.option("--trials", default=100, show_default=True, help="Candidates that the algorithm may ask for.")
@click.option("--baseline", type=int, help="Random candidates scored beside.  [default: a quarter of --trials]")
@click.option(
    "--initial",
    multiple=True,
    metavar="NAME[:OPTION=VALUE,…]",
    help="An allocation whose choice is scored first, beside uniform's; may be repeated.",
)
@click.option("--metric", help="What is best: a metric of the task, or loss.  [default: the task's primary one]")
@click.option("--holdout", default=1000, show_default=True, help="Training samples that candidates are scored on.")
@click.option("--samples", default=512, show_default=True, help="Training samples for running statistics.")
@click.option("--no-recalibrate", is_flag=True, help="Leave running statistics as they are.")
@click.option("--fit", metavar="JSON", help="""Short fine-tuning of each candidate: '{"epochs": 1, "lr": 0.01}'.""")
@click.option("--fit-samples", default=4096, show_default=True, help="Training samples that --fit trains on.")
@click.option("--workers", default=0, show_default=True, help="Processes that score candidates; 0: this one.")
@click.option("--threads", default=1, show_default=True, help="PyTorch threads for each candidate.")
@click.option("--timeout", default=3600.0, show_default=True, help="Seconds after which a worker is given up on.")
@click.option(
    "--option",
    "options",
    multiple=True,
    metavar="NAME=VALUE",
    help="Another option of the search: population=50, lag=8; may be repeated.",
)
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the journal lies; the same command goes on from there after a kill.",
)
@click.option("--seed", default=0, show_default=True, help="Of everything random.")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Write the plan to this file.")
@click.option(
    "--history", type=click.Path(path_type=Path, dir_okay=False), help="Write every candidate to this JSON file."
)
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Draw the best figure by candidate, and figures against costs, into this SVG file.",
)
@click.option("--overwrite", is_flag=True, help="Replace files that are there.")
@click.pass_obj
def search_command(
    app: Any,
    /,
    request: WorkloadRequest,
    asked: PlanRequest,
    folder: Path | None,
    seed: int,
    output: Path | None,
    history: Path | None,
    plot: Path | None,
    overwrite: bool,
    **values: Any,
) -> None:
    r"""Search for how many channels each layer keeps, by scoring pruned copies on held-out training samples.

    Every candidate meets the budget. --allocation, where it is given, is scored among the first.

    \b
    slim prune search --model zoo/mobilenet_v1 --weights base.safetensors --data fashion-mnist \
        --budget macs=0.5 --trials 200 --workers 4 --folder search/ -o plan.json
    """
    for path in (output, history, plot):
        refuse_existing(path, overwrite)
    arguments = asked.arguments()
    first = arguments.pop("allocation")
    config = _config(values, () if first == "uniform" else (first,))
    workload = request.workload(app.registry, needs_data="a search")
    from slim_prune.evolution.search import search

    with resumable(f"the scored candidates are in {folder}") if folder is not None else nullcontext():
        result = search(
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
            **config,
        )
    if result.resumed:
        app.output.note(f"{result.resumed} candidates had been scored before and were taken from the journal")
    if output is not None:
        result.plan.save(output)
        app.output.note(f"plan written to {output}")
    if history is not None:
        result.save(history)
        app.output.note(f"candidates written to {history}")
    if plot is not None:
        from slim_core.files import write_text
        from slim_prune.evolution.picture import picture

        write_text(plot, picture(result, result.plan.before))
        app.output.note(f"plots written to {plot}")
    emit(app, result.plan, search=result.to_json())


def _config(values: dict[str, Any], first: tuple[Any, ...]) -> dict[str, Any]:
    """Return the options of the search as :func:`slim_prune.search` takes them."""
    config = {key: value for key, value in values.items() if key not in ("options", "no_recalibrate", "fit", "initial")}
    config["recalibrate"] = not values["no_recalibrate"]
    config["initial"] = [*first, *(named(item, "--initial") for item in values["initial"])]
    config["fit"] = _json(values["fit"], "--fit") if values["fit"] is not None else None
    for item in values["options"]:
        name, sign, value = item.partition("=")
        if not sign:
            raise SlimError(f"--option takes NAME=VALUE, not '{item}'", hint="for example --option population=50")
        config[name] = _json(value, "--option", otherwise=value)
    return config


def _json(text: str, option: str, otherwise: Any = None) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        if otherwise is not None:
            return otherwise
        raise SlimError(
            f"{option} is not JSON: {error}", hint=f"""for example {option} '{{"epochs": 1, "lr": 0.01}}'"""
        ) from None
