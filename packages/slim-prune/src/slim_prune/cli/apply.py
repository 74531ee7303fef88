"""``slim prune apply``: carry a written plan out, and write the pruned model as a checkpoint, as ONNX, or as both."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slim_core.errors import SlimError
from slim_prune.cli.options import WorkloadRequest, refuse_existing, workload_options

if TYPE_CHECKING:
    from rich.console import RenderableType

    from slim_core.workload import Workload


@click.command("apply")
@click.argument("plan", type=click.Path(path_type=Path, dir_okay=False))
@workload_options
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Write this checkpoint."
)
@click.option("--onnx", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Write this ONNX file.")
@click.option("--overwrite", is_flag=True, help="Replace files that are there.")
@click.pass_obj
def apply_command(
    app: Any, plan: Path, request: WorkloadRequest, output: Path | None, onnx: Path | None, overwrite: bool
) -> None:
    r"""Prune a model as the written PLAN says, and write what is left.

    The model must be the one that the plan was made for: the same names and shapes. With --data, it is evaluated before
    and after. Fine-tune the checkpoint in a recipe, or load it in Python: slim_core.checkpoint.load.

    \b
    slim prune apply plan.json --model zoo/resnet18 --weights base.safetensors -o pruned.safetensors
    slim prune apply plan.json --checkpoint base.safetensors -o pruned.safetensors --onnx pruned.onnx
    """
    from slim_prune.prune_plan import PrunePlan

    if output is None and onnx is None:
        raise SlimError("nothing would be written", hint="-o pruned.safetensors, --onnx pruned.onnx, or both")
    if output is not None and output.suffix != ".safetensors":
        raise SlimError(
            "a checkpoint is a .safetensors file", where=str(output), hint=f"-o {output.with_suffix('.safetensors')}"
        )
    refuse_existing(output, overwrite)
    refuse_existing(onnx, overwrite)
    planned = PrunePlan.load(plan)
    workload = request.workload(app.registry)
    if (
        request.model is not None
        and request.weights is None
        and workload.builder is not None
        and workload.builder.name == request.model
    ):
        app.output.warn("the weights are random: neither --weights nor --checkpoint was given")
    pruned = workload.with_model(planned.apply(workload.model), planned.transform())
    data: dict[str, Any] = {"plan": str(plan), "before": dict(planned.before), "after": dict(planned.after)}
    metrics = _metrics(app, workload, pruned)
    if metrics:
        data["metrics"] = metrics
    notes: list[str] = []
    if output is not None:
        from slim_core.checkpoint import save

        save(pruned, output)
        data["checkpoint"] = {"path": str(output), "bytes": output.stat().st_size}
    if onnx is not None:
        from slim_core.export import to_onnx

        done = to_onnx(pruned.model, pruned.example_inputs, onnx)
        data["onnx"] = {
            "path": str(onnx),
            "bytes": done.bytes,
            "max_diff": done.parity.max_diff if done.parity else None,
        }
        notes += done.notes
    data["notes"] = notes
    for note in notes:
        app.output.note(note)
    app.output.emit(data, lambda: _table(data), " ".join(str(path) for path in (output, onnx) if path is not None))


def _metrics(app: Any, before: Workload, after: Workload) -> dict[str, dict[str, float]]:
    if before.task is None or before.val is None:
        return {}
    from slim_core.training import evaluate

    progress = app.output.progress
    first = evaluate(before.model, before.task, before.val, progress=progress)
    second = evaluate(after.model, before.task, before.val, progress=progress)
    return {name: {"before": first[name], "after": second[name]} for name in first}


def _table(data: dict[str, Any]) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from slim_prune.allocation.problem import figure

    table = Table("", "before", "after", "kept")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, before in data["before"].items():
        after = data["after"].get(name, before)
        table.add_row(name, figure(before), figure(after), f"{after / before:.1%}" if before else "-")
    for name, values in data.get("metrics", {}).items():
        table.add_row(name, f"{values['before']:.4f}", f"{values['after']:.4f}", "")
    lines = []
    if "checkpoint" in data:
        lines.append(f"checkpoint: {data['checkpoint']['path']}, {data['checkpoint']['bytes']:,} bytes")
    if "onnx" in data:
        agreed = data["onnx"]["max_diff"]
        checked = "not compared with PyTorch" if agreed is None else f"differs from PyTorch by at most {agreed:.1e}"
        lines.append(f"ONNX: {data['onnx']['path']}, {data['onnx']['bytes']:,} bytes, {checked}")
    return Group(table, Text("\n".join(lines)))
