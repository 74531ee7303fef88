"""``slim quant qat``: train a model with the rounding in its forward pass, and convert it."""

from __future__ import annotations

import json
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slim_core.cli.options import WorkloadRequest, named, pair, workload_options
from slim_core.cli.resuming import resumable
from slim_core.cli.subject import json_object
from slim_core.errors import SlimError, close_match
from slim_quant.cli.delivery import Wanted, deliver, draw_rows, wanted_options
from slim_quant.cli.options import SchemeRequest, training_scheme_options
from slim_quant.cli.subject import warn_if_random
from slim_quant.cli.views import line, overview

if TYPE_CHECKING:
    from slim_quant.qat.technique import QATConfig


@click.command("qat")
@workload_options
@training_scheme_options
@click.option("--epochs", type=click.IntRange(min=1), metavar="N", help="Passes over the training data.  [default: 2]")
@click.option(
    "--lr", type=click.FloatRange(min=0, min_open=True), metavar="RATE", help="Learning rate.  [default: 0.001]"
)
@click.option("--fit", default="{}", metavar="JSON", help="""Other settings of the training: '{"ema": 0.98}'.""")
@click.option(
    "--quantizer",
    type=click.Choice(["moving_average", "lsq", "lsq+", "pact"]),
    default="moving_average",
    show_default=True,
    help="How scales are found in training: averaged, or learned.",
)
@click.option("--teacher", is_flag=True, help="Distil from the float model while training.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Another setting of quant.qat: start=0.1, freeze_batch_norm=0.3; may be repeated.",
)
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the training is kept after each epoch; the same command resumes.  [default: OUTPUT.training]",
)
@click.option("--seed", default=0, show_default=True, help="Of everything random.")
@wanted_options
@click.pass_obj
def qat_command(
    app: Any,
    request: WorkloadRequest,
    asked: SchemeRequest,
    epochs: int | None,
    lr: float | None,
    fit: str,
    quantizer: str,
    teacher: bool,
    settings: tuple[str, ...],
    folder: Path | None,
    seed: int,
    wanted: Wanted,
) -> None:
    r"""Train a trained model on, with the rounding in its forward pass: best where `slim quant ptq` loses too much.

    A run that was stopped goes on after its last epoch when the same command is given again.

    \b
    slim quant qat --checkpoint base.safetensors --data digits --epochs 2 --lr 0.001 -o int8.safetensors
    slim quant qat --checkpoint base.safetensors --data digits --weight-bits 4 --quantizer lsq -o w4.safetensors
    """
    place = folder if folder is not None else _beside(wanted.output)
    wanted.check(asked.target)
    training = json_object(fit, "--fit", '{"ema": 0.98}')
    training |= {key: value for key, value in (("epochs", epochs), ("lr", lr)) if value is not None}
    values: dict[str, Any] = {**asked.config(), "quantizer": quantizer}
    if teacher:
        values["teacher"] = {}
    values |= dict(_setting(item) for item in settings)
    values["fit"] = {"epochs": 2, "lr": 0.001, **training}
    config = _config(values)
    from slim_core.technique import Run
    from slim_quant.qat.technique import QATTechnique

    QATTechnique.check(config, app.registry)
    workload = request.workload(app.registry, needs_data="slim quant qat")
    warn_if_random(app, request, workload)
    if workload.train is not None and workload.task is None:
        raise SlimError("training needs a task", where="--data", hint="--task classification")
    kept = f"the training is in {place}, up to its last epoch"
    with tempfile.TemporaryDirectory(prefix="slim-quant-") as scratch:
        run = Run(place or Path(scratch), seed, app.registry, app.output.progress)
        with resumable(kept) if place is not None else nullcontext():
            done = QATTechnique().run(workload, config, run)
    data: dict[str, Any] = {"notes": list(done.notes), **done.details, "samples": config.samples}
    data |= deliver(app, workload, done.workload, wanted, asked.target)
    if wanted.plot is not None:
        draw_rows(app, data["layers"], wanted.plot, f"{request.model or request.checkpoint}, trained in integers")
        data["plot"] = {"path": str(wanted.plot)}
    app.output.emit(data, lambda: overview(data), lambda: line(data))


def _beside(output: Path | None) -> Path | None:
    return None if output is None else output.with_name(f"{output.name}.training")


def _setting(item: str) -> tuple[str, Any]:
    key, value = pair(item, "--set", "freeze_batch_norm=0.3")
    if key == "observer":
        return key, named(value, "--set observer")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def _config(values: dict[str, Any]) -> QATConfig:
    """Return the technique's configuration.

    Raises:
        SlimError: a setting is unknown, or its value does not fit.
    """
    from pydantic import ValidationError

    from slim_quant.qat.technique import QATConfig

    try:
        return QATConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        known = [*QATConfig.model_fields]
        hint = close_match(key, known) or f"known: {', '.join(known)}" if first["type"] == "extra_forbidden" else None
        raise SlimError(
            f"there is no setting '{key}'"
            if first["type"] == "extra_forbidden"
            else f"{key or 'the settings'}: {first['msg']}",
            where="--fit" if key.startswith("fit.") else "--set",
            hint=hint,
        ) from None
