"""``slim quant ptq``: quantize a trained model with a few samples, and say what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slim_core.cli.options import WorkloadRequest, named, workload_options
from slim_quant.cli.delivery import Wanted, deliver, wanted_options, writing
from slim_quant.cli.options import SchemeRequest, scheme_options
from slim_quant.cli.subject import warn_if_random

if TYPE_CHECKING:
    from slim_core.cli.app import App
    from slim_core.workload import Workload
    from slim_quant.result import QuantResult


@click.command("ptq")
@workload_options
@scheme_options
@click.option(
    "--correction",
    "corrections",
    multiple=True,
    metavar="NAME[:OPTION=VALUE,…]",
    help="What mends the rounding: equalization, bias_correction, adaround, …; may be repeated.",
)
@click.option("--seed", default=0, show_default=True, help="Of the samples and of corrections.")
@wanted_options
@click.pass_obj
def ptq_command(
    app: Any,
    request: WorkloadRequest,
    asked: SchemeRequest,
    corrections: tuple[str, ...],
    seed: int,
    wanted: Wanted,
) -> None:
    r"""Quantize a trained model after training, with scales from training samples; labels are not looked at.

    With a data set that has labels, the model is evaluated before and after on its validation part.

    \b
    slim quant ptq --model zoo/resnet20 --weights base.safetensors --data digits -o int8.safetensors --onnx int8.onnx
    slim quant ptq --checkpoint pruned.safetensors --data digits --target openvino --onnx int8.onnx --measure
    slim quant ptq … --weight-bits 4 --correction adaround --override 'fc:weight_bits=8' -o w4.safetensors
    """
    wanted.check(app, asked.target)
    chosen = [named(item, "--correction", "adaround:steps=1000") for item in corrections]
    arguments = asked.arguments()
    workload = request.workload(app.registry, needs_data="slim quant ptq")
    from slim_quant.ptq.static import quantize
    from slim_quant.technique import calibration_inputs

    warn_if_random(app, request, workload)
    result = quantize(
        workload.model,
        calibration_inputs(workload, seed),
        example_inputs=workload.example_inputs,
        corrections=chosen,
        seed=seed,
        progress=app.output.progress,
        registry=app.registry,
        **arguments,
    )
    data: dict[str, Any] = {
        "layers": [dict(row) for row in result.report.layers],
        "notes": list(result.report.notes),
        "samples": result.report.samples,
        "sqnr_db": result.report.sqnr_db,
    }
    data |= deliver(app, workload, workload.with_model(result.model, result.transform), wanted, asked.target)
    if wanted.plot is not None:
        _draw(app, workload, result, wanted.plot)
        data["plot"] = {"path": str(wanted.plot)}
    from slim_quant.cli.views import line, overview

    app.output.emit(data, lambda: overview(data), lambda: line(data))


def _draw(app: App, workload: Workload, result: QuantResult, path: Path) -> None:
    """Compare layer by layer on calibration samples, and draw what was found."""
    from slim_core.files import write_text
    from slim_quant.diff.analysis import diff
    from slim_quant.diff.show import drawing
    from slim_quant.technique import calibration_inputs

    found = diff(
        workload.model,
        result,
        calibration_inputs(workload, 0),
        example_inputs=workload.example_inputs,
        progress=app.output.progress,
    )
    with writing(path):
        write_text(path, drawing(found))
    app.output.note(f"drawn into {path}")
