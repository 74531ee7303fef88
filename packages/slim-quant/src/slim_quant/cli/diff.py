"""``slim quant diff``: a float model and its quantized checkpoint, compared layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slim_core.cli.options import WorkloadRequest, refuse_existing, workload_options
from slim_core.errors import SlimError
from slim_quant.cli.delivery import writing
from slim_quant.cli.subject import quantized_checkpoint, warn_if_random

if TYPE_CHECKING:
    from slim_quant.diff.found import Diff

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command("diff")
@click.argument("quantized", type=_FILE)
@workload_options
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    metavar="N",
    help="Validation samples to compare on.",
)
@click.option("-o", "--output", type=_FILE, metavar="FILE", help="Write everything, histograms too, as JSON.")
@click.option(
    "--plot", type=_FILE, metavar="FILE", help="Draw SQNRs, and histograms with thresholds, into this SVG file."
)
@click.option(
    "--histograms", type=click.IntRange(min=0), metavar="N", help="Draw at most so many histograms.  [default: all]"
)
@click.option("--overwrite", is_flag=True, help="Replace files that are there.")
@click.pass_obj
def diff_command(
    app: Any,
    quantized: Path,
    request: WorkloadRequest,
    samples: int,
    output: Path | None,
    plot: Path | None,
    histograms: int | None,
    overwrite: bool,
) -> None:
    r"""Compare the checkpoint QUANTIZED with the float model that it was made of, layer by layer.

    "Alone" is a layer's own error: it reads the float model's values, rounded by its own quantizers. "In model" has the
    errors of the layers before it too. Look at the layers that are worst alone.

    \b
    slim quant diff int8.safetensors --checkpoint base.safetensors --data digits --plot diff.svg
    slim quant diff int8.safetensors --model zoo/resnet20 --weights base.safetensors --data digits -o diff.json
    """
    for path in (output, plot):
        refuse_existing(path, overwrite)
    if output is not None and output == plot:
        raise SlimError("two results would be written to one file", where=str(output), hint="name another file")
    workload = request.workload(app.registry, needs_data="slim quant diff")
    warn_if_random(app, request, workload)
    other = quantized_checkpoint(app, quantized)
    from slim_quant.cli.subject import validation
    from slim_quant.diff.analysis import diff
    from slim_quant.diff.show import drawing, table

    found = diff(
        workload.model,
        other.model,
        validation(workload, samples),
        example_inputs=workload.example_inputs,
        samples=samples,
        progress=app.output.progress,
    )
    if output is not None:
        with writing(output):
            found.save(output)
        app.output.note(f"comparison written to {output}")
    if plot is not None:
        from slim_core.files import write_text

        with writing(plot):
            write_text(plot, drawing(found, histograms=histograms))
        app.output.note(f"drawn into {plot}")
    app.output.emit(found.to_json(), lambda: table(found), lambda: _line(found))


def _line(found: Diff) -> str:
    first = next(iter(found.outputs), None)
    worst = next(iter(found.worst(1)), None)
    parts = [] if first is None else [f"SQNR {first.sqnr_db} dB, agreement {first.agreement:.2f} %"]
    parts += [] if worst is None else [f"worst layer {worst.name}: {worst.alone_db} dB"]
    return "; ".join(parts)
