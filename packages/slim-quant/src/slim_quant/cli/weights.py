"""``slim quant weights`` and ``slim quant dynamic``: what needs no calibration of activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from slim_core.cli.options import WorkloadRequest, named, workload_options
from slim_core.errors import SlimError
from slim_quant.cli.delivery import Wanted, deliver, draw_rows, wanted_options
from slim_quant.cli.options import read_override
from slim_quant.cli.subject import warn_if_random
from slim_quant.cli.views import line, overview

if TYPE_CHECKING:
    from slim_core.cli.app import App
    from slim_core.workload import Workload
    from slim_quant.weight_only.result import PackedResult

F = TypeVar("F", bound=Callable[..., Any])

_TARGET = "onnxruntime"


def layer_options(command: F) -> F:
    """Add what both commands take: which layers, and how ranges are found."""
    for option in (
        click.option(
            "--override",
            multiple=True,
            metavar="GLOB|op:NAME:SETTING=VALUE,…",
            help="Other settings for some layers: 'head:weight_bits=8'; may be repeated, later ones win.",
        ),
        click.option("--skip", multiple=True, metavar="GLOB", help="Layers that stay in float; may be repeated."),
        click.option("--include", multiple=True, metavar="GLOB", help="Quantize these layers only; may be repeated."),
        click.option(
            "--weight-observer",
            default="abs_max",
            show_default=True,
            metavar="NAME",
            help="How the ranges of weights are found: abs_max, or mse for few bits.",
        ),
    ):
        command = option(command)
    return command


@click.command("weights")
@workload_options
@click.option("--bits", type=click.IntRange(2, 8), default=8, show_default=True, metavar="2-8", help="Bits of weights.")
@click.option(
    "--group-size",
    default="auto",
    show_default=True,
    metavar="N|none|auto",
    help="Inputs that share a scale; auto: 64 below 8 bits, and all at 8.",
)
@click.option(
    "--zero-points/--symmetric",
    "affine",
    default=None,
    help="Give weights zero points, or none.  [default: below 8 bits they have some]",
)
@layer_options
@click.option(
    "--correction",
    metavar="NAME[:OPTION=VALUE,…]",
    help="A rounding that looks at data: gptq. Needs --data.",
)
@click.option(
    "--samples", type=click.IntRange(min=1), default=128, show_default=True, metavar="N", help="Samples it looks at."
)
@click.option("--seed", default=0, show_default=True, help="Of the samples and of the correction.")
@wanted_options
@click.pass_obj
def weights_command(
    app: Any,
    request: WorkloadRequest,
    wanted: Wanted,
    bits: int,
    group_size: str,
    affine: bool | None,
    weight_observer: str,
    include: tuple[str, ...],
    skip: tuple[str, ...],
    override: tuple[str, ...],
    correction: str | None,
    samples: int,
    seed: int,
) -> None:
    r"""Store the weights of linear layers and embeddings as integers; arithmetic stays in float.

    The model gets smaller, in memory and in the file; it gets faster only where reading weights is what takes the time,
    as in large language models.

    \b
    slim quant weights --checkpoint base.safetensors --bits 4 -o int4.safetensors --onnx int4.onnx
    slim quant weights --load my_project.py --model mine --data text --bits 4 --correction gptq -o int4.safetensors
    """
    wanted.check(_TARGET)
    chosen = None if correction is None else named(correction, "--correction", "gptq:damping=0.01")
    size = _group_size(group_size)
    needs = None if correction is None else f"the correction '{correction}'"
    from slim_quant.weight_only.quantize import default_scheme, quantize_weights

    scheme = default_scheme(bits, size, None if affine is None else not affine)  # type: ignore[arg-type]
    overrides = [read_override(item, scheme, None) for item in override]
    workload = request.workload(app.registry, needs_data=needs)
    warn_if_random(app, request, workload)
    calibration = None
    if correction is not None:
        from slim_quant.technique import calibration_inputs

        calibration = calibration_inputs(workload, seed)
    result = quantize_weights(
        workload.model,
        workload.example_inputs,
        bits=bits,
        group_size=size,  # type: ignore[arg-type]
        symmetric=None if affine is None else not affine,
        clip=weight_observer,
        include=include or ("*",),
        skip=skip,
        overrides=overrides,
        correction=chosen,
        calibration=calibration,
        samples=samples,
        seed=seed,
        progress=app.output.progress,
    )
    _finish(app, request, workload, result, wanted)


@click.command("dynamic")
@workload_options
@click.option(
    "--activations",
    type=click.Choice(["per_tensor", "per_token"]),
    default="per_tensor",
    show_default=True,
    help="One scale for a layer's input, or one for each vector in it.",
)
@layer_options
@wanted_options
@click.pass_obj
def dynamic_command(
    app: Any,
    request: WorkloadRequest,
    wanted: Wanted,
    activations: str,
    weight_observer: str,
    include: tuple[str, ...],
    skip: tuple[str, ...],
    override: tuple[str, ...],
) -> None:
    r"""Let linear and recurrent layers multiply in int8; activations get their scales from the batch at hand.

    No calibration, and no data unless the result shall be evaluated.

    \b
    slim quant dynamic --load my_project.py --model my_encoder -o int8.safetensors --onnx int8.onnx
    """
    wanted.check(_TARGET)
    from slim_quant.dynamic.quantize import quantize_dynamic
    from slim_quant.schemes import WEIGHT

    overrides = [read_override(item, WEIGHT, None) for item in override]
    workload = request.workload(app.registry)
    warn_if_random(app, request, workload)
    result = quantize_dynamic(
        workload.model,
        workload.example_inputs,
        activations=activations,  # type: ignore[arg-type]
        clip=weight_observer,
        include=include or ("*",),
        skip=skip,
        overrides=overrides,
        progress=app.output.progress,
    )
    _finish(app, request, workload, result, wanted)


def _finish(app: App, request: WorkloadRequest, workload: Workload, result: PackedResult, wanted: Wanted) -> None:
    report = result.report
    data: dict[str, Any] = {
        "layers": [dict(row) for row in report.layers],
        "notes": list(report.notes),
        "samples": report.samples,
        "sqnr_db": report.sqnr_db,
        "memory": dict(result.sizes),
    }
    data |= deliver(app, workload, workload.with_model(result.model, result.transform), wanted, _TARGET)
    if wanted.plot is not None:
        draw_rows(app, data["layers"], wanted.plot, f"{request.model or request.checkpoint}, quantized")
        data["plot"] = {"path": str(wanted.plot)}
    app.output.emit(data, lambda: overview(data), lambda: line(data))


def _group_size(text: str) -> int | str | None:
    if text == "auto":
        return text
    if text == "none":
        return None
    if not text.isdigit() or int(text) < 1:
        raise SlimError(f"--group-size takes a number, none or auto, not '{text}'", hint="--group-size 64")
    return int(text)
