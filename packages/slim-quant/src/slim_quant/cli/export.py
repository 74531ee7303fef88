"""``slim quant export``: the file of a quantized checkpoint for its runtime, compared with the simulation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slim_core.cli.options import WorkloadRequest, data_options, refuse_existing
from slim_quant.cli.delivery import exported, need_exporter
from slim_quant.cli.subject import quantization_of

if TYPE_CHECKING:
    from rich.console import RenderableType


@click.command("export")
@click.argument("checkpoint", type=click.Path(path_type=Path, dir_okay=False))
@data_options
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    metavar="FILE",
    help="Write this ONNX file.",
)
@click.option("--target", metavar="NAME", help="The runtime that the file is for.  [default: the checkpoint's own]")
@click.option(
    "--compare",
    "compared",
    type=click.IntRange(min=0),
    default=256,
    show_default=True,
    metavar="N",
    help="Validation samples on which the file is compared with the simulation.",
)
@click.option("--overwrite", is_flag=True, help="Replace the file that is there.")
@click.pass_obj
def export_command(
    app: Any,
    checkpoint: Path,
    request: WorkloadRequest,
    output: Path,
    target: str | None,
    compared: int,
    overwrite: bool,
) -> None:
    r"""Write the int8 file of a quantized CHECKPOINT, run it, and compare it with what was simulated.

    With --data, they are compared on validation samples; without, on one example.

    \b
    slim quant export int8.safetensors -o int8.onnx --data digits
    slim quant export int8.safetensors -o int8.onnx --target openvino --format json
    """
    refuse_existing(output, overwrite)
    need_exporter()
    workload = replace(request, checkpoint=checkpoint).workload(app.registry)
    quantization = quantization_of(workload, checkpoint)
    own = quantization.get("target")
    chosen = target or own or "onnxruntime"
    from slim_quant.targets import get_target

    get_target(chosen, app.registry)
    if own is not None and own != chosen:
        app.output.warn(
            f"the quantizers were placed for {own}, and the file is for {chosen}: some layers may run in float there; "
            f"`slim quant ptq --target {chosen}` places them anew"
        )
    data: dict[str, Any] = {"checkpoint": {"path": str(checkpoint), "bytes": checkpoint.stat().st_size}}
    data |= {"target": chosen, "placed_for": own, "onnx": exported(app, workload, output, chosen, compared)}
    app.output.emit(data, lambda: _overview(data), lambda: _line(data))


def _overview(data: Mapping[str, Any]) -> RenderableType:
    from rich.text import Text

    from slim_quant.cli.views import closing

    onnx = data["onnx"]
    lines = [
        f"{data['checkpoint']['path']}: {data['checkpoint']['bytes']:,} bytes, quantized for "
        f"{data['placed_for'] or 'an unknown runtime'}",
        f"{onnx['path']}: {onnx['bytes']:,} bytes, {onnx['weight_bytes']:,} of them weights as integers; opset "
        f"{onnx['opset']}, for {data['target']}",
        *closing({"onnx": {key: onnx[key] for key in ("deployment", "operators")}}),
    ]
    return Text("\n".join(lines))


def _line(data: Mapping[str, Any]) -> str:
    onnx = data["onnx"]
    agreed = f", top-1 agreement {onnx['deployment']['agreement']:.2f} %" if onnx["deployment"] else ""
    return f"{onnx['path']}: {onnx['bytes']} bytes{agreed}"
