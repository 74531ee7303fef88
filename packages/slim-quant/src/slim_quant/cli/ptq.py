"""``slim quant ptq``: quantize a trained model with a few samples, and say what came of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from slim_core.cli.options import WorkloadRequest, named, workload_options
from slim_quant.cli.choosing import GoalRequest, goal_options, pareto
from slim_quant.cli.delivery import Wanted, deliver, drawn, need_exporter, need_runtime, wanted_options
from slim_quant.cli.options import SchemeRequest, scheme_options
from slim_quant.cli.subject import warn_if_random
from slim_quant.cli.views import line, overview

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
@goal_options
@click.option(
    "--never-slower",
    is_flag=True,
    help="Leave in float what makes the file slower than the float one; float where nothing wins.",
)
@click.option("--seed", default=0, show_default=True, help="Of the samples and of corrections.")
@wanted_options
@click.pass_obj
def ptq_command(
    app: Any,
    request: WorkloadRequest,
    asked: SchemeRequest,
    goal: GoalRequest,
    corrections: tuple[str, ...],
    never_slower: bool,
    seed: int,
    wanted: Wanted,
) -> None:
    r"""Quantize a trained model after training, with scales from training samples; labels are not looked at.

    With a data set that has labels, the model is evaluated before and after on its validation part, and --max-drop says
    what it may lose: layers that cost more stay in float, or get more of the --bits to choose from.

    \b
    slim quant ptq --model zoo/resnet20 --weights base.safetensors --data digits -o int8.safetensors --onnx int8.onnx
    slim quant ptq --checkpoint pruned.safetensors --data digits --target openvino --onnx int8.onnx --measure
    slim quant ptq … --weight-bits 4 --correction adaround --override 'fc:weight_bits=8' -o w4.safetensors
    slim quant ptq … --bits w4a8 --bits w8a8 --max-drop 0.5 --folder choosing/ -o mixed.safetensors
    """
    wanted.check(asked.target)
    goal.check(asked)
    if never_slower:
        need_exporter()
        need_runtime(asked.target)
    chosen = [named(item, "--correction", "adaround:iterations=2000") for item in corrections]
    arguments = asked.arguments()
    workload = request.workload(app.registry, needs_data="slim quant ptq")
    warn_if_random(app, request, workload)
    data: dict[str, Any] = {}
    result: QuantResult | None
    if goal.given:
        mixed = goal.choose(app, workload, asked, chosen, seed)
        result, data["choice"] = mixed.result, mixed.to_json()
        arguments |= {"overrides": mixed.settings.overrides, "skip": [*asked.skip, *mixed.settings.skip]}
        arguments |= goal.widest(asked)
    else:
        result = _quantized(app, workload, arguments, chosen, seed)
    if never_slower and result is not None:
        result, data["faster"] = _faster(app, workload, result, arguments, chosen, seed, wanted)
    if result is None:
        app.output.warn("nothing was quantized: what is written is the float model")
        notes = list(data.get("choice", {}).get("notes", ()))  # those of "faster" are printed by themselves
        data |= {"layers": [], "notes": notes, "samples": asked.samples, "sqnr_db": None}
        after = workload
    else:
        data |= {
            "layers": [dict(row) for row in result.report.layers],
            "notes": list(result.report.notes),
            "samples": result.report.samples,
            "sqnr_db": result.report.sqnr_db,
        }
        after = workload.with_model(result.model, result.transform)
    data |= deliver(app, workload, after, wanted, asked.target)
    if wanted.plot is not None:
        _draw(app, workload, result, data, wanted)
    app.output.emit(data, lambda: overview(data), lambda: line(data))


def _quantized(
    app: App, workload: Workload, arguments: dict[str, Any], corrections: list[Any], seed: int
) -> QuantResult:
    from slim_quant.ptq.static import quantize
    from slim_quant.technique import calibration_inputs

    return quantize(
        workload.model,
        calibration_inputs(workload, seed),
        example_inputs=workload.example_inputs,
        corrections=corrections,
        seed=seed,
        progress=app.output.progress,
        registry=app.registry,
        **arguments,
    )


def _faster(
    app: App,
    workload: Workload,
    result: QuantResult,
    arguments: dict[str, Any],
    corrections: list[Any],
    seed: int,
    wanted: Wanted,
) -> tuple[QuantResult | None, dict[str, Any]]:
    """Leave in float what loses on the runtime; ``None``: everything does."""
    from slim_quant.faster.decide import BATCHES, never_slower
    from slim_quant.technique import calibration_inputs

    settings = {key: value for key, value in arguments.items() if key != "target"}
    found = never_slower(
        workload.model,
        workload.example_inputs,
        arguments["target"],
        batches=calibration_inputs(workload, seed),
        result=result,
        batch_sizes=wanted.batch or BATCHES,
        threads=wanted.threads,
        seed=seed,
        progress=app.output.progress,
        corrections=corrections,
        **settings,
    )
    return found.result, found.to_json()


def _draw(app: App, workload: Workload, result: QuantResult | None, data: dict[str, Any], wanted: Wanted) -> None:
    """Compare layer by layer on calibration samples; draw what was found, and what was tried."""
    from slim_quant.diff.analysis import diff
    from slim_quant.diff.show import lines
    from slim_quant.technique import calibration_inputs

    plots, said = pareto(data["choice"]) if "choice" in data else [], list(data["notes"])
    if result is not None:
        found = diff(
            workload.model,
            result,
            calibration_inputs(workload, 0),
            example_inputs=workload.example_inputs,
            progress=app.output.progress,
        )
        plots, said = [*plots, *found.plots()], lines(found)
    assert wanted.plot is not None  # noqa: S101  the caller looked
    drawn(app, wanted.plot, plots, "Float against quantized, layer by layer", said)
    data["plot"] = {"path": str(wanted.plot)}
