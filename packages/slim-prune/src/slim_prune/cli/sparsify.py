"""``slim prune sparsify``: plan which weights become zero, and write the plan, the sparse checkpoint, or both."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slim_core.errors import SlimError
from slim_prune.cli.options import WorkloadRequest, named, once, pair, refuse_existing, workload_options

if TYPE_CHECKING:
    from rich.console import RenderableType

    from slim_prune.sparsity import SparsityPlan


@click.command("sparsify")
@workload_options
@click.option(
    "--scheme",
    default="unstructured",
    show_default=True,
    metavar="NAME[:OPTION=VALUE,…]",
    help="unstructured, block, 2:4 or any N:M; options as in unstructured:scope=layer. For a block's shape: --block.",
)
@click.option("--block", metavar="ROWSxCOLUMNS", help="Shape of a block: 1x4, 16x1, 8x8. Chooses the scheme 'block'.")
@click.option("--permute", is_flag=True, help="N:M: order channels first, so that more magnitude stays.")
@click.option("--sparsity", type=float, help="Share of the selected weights that becomes zero: 0.9.")
@click.option(
    "--budget", metavar="nonzero=BOUND", help="Parameters of the model that stay other than zero: nonzero=0.2."
)
@click.option("--threshold", type=float, help="Weights whose score is below it become zero.")
@click.option("--ratio", multiple=True, metavar="GLOB=SHARE", help="Share of weights to keep; may be repeated.")
@click.option("--include", multiple=True, metavar="GLOB", help="Modules or parameters to take; may be repeated.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Modules or parameters to leave; may be repeated.")
@click.option(
    "--importance",
    type=click.Choice(["magnitude", "taylor", "movement"]),
    default="magnitude",
    show_default=True,
    help="What decides; the last two need --data.",
)
@click.option(
    "--from",
    "written",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="PLAN",
    help="Apply this written plan.",
)
@click.option(
    "--plan", "plan_file", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Write the plan here."
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Write this checkpoint."
)
@click.option("--overwrite", is_flag=True, help="Replace files that are there.")
@click.pass_obj
def sparsify_command(
    app: Any,
    request: WorkloadRequest,
    scheme: str,
    block: str | None,
    permute: bool,
    sparsity: float | None,
    budget: str | None,
    threshold: float | None,
    ratio: tuple[str, ...],
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    importance: str,
    written: Path | None,
    plan_file: Path | None,
    output: Path | None,
    overwrite: bool,
) -> None:
    r"""Set weights of a registered model or a checkpoint to zero; shapes stay as they are.

    The checkpoint gets smaller. The model gets no faster, unless its runtime has kernels for such zeros: to make it
    faster, remove channels with `slim prune plan`. With --data, it is evaluated before and after.

    \b
    slim prune sparsify --checkpoint base.safetensors --sparsity 0.9 -o sparse.safetensors
    slim prune sparsify --checkpoint base.safetensors --scheme 2:4 --permute --plan plan.safetensors
    """
    from slim_core.checkpoint import save

    for path in (plan_file, output):
        if path is not None and path.suffix != ".safetensors":
            raise SlimError("this is a .safetensors file", where=str(path), hint=str(path.with_suffix(".safetensors")))
        refuse_existing(path, overwrite)
    if written is not None:
        from slim_prune.sparsity import SparsityPlan

        planned = SparsityPlan.load(written)
        workload = request.workload(app.registry)
    else:
        from slim_prune.sparsity import plan
        from slim_prune.sparsity.planning import check_figures
        from slim_prune.sparsity.schemes import resolve

        chosen = resolve(_scheme(scheme, block, permute))
        bounds = None if budget is None else dict([pair(budget, "--budget", "nonzero=0.2")])
        ratios = once((_ratio(item) for item in ratio), "--ratio")
        check_figures(chosen, sparsity, bounds, threshold, ratios)
        needs = None if importance == "magnitude" else f"the importance '{importance}'"
        workload = request.workload(app.registry, needs_data=needs)
        planned = plan(
            workload.model, workload.example_inputs, scheme=chosen, sparsity=sparsity, budget=bounds,
            threshold=threshold, ratios=ratios, include=include, exclude=exclude, importance=importance,
            task=workload.task, train=workload.train, progress=app.output.progress,
        )  # fmt: skip
    if plan_file is not None:
        planned.save(plan_file)
        app.output.note(f"plan written to {plan_file}")
    sparse = workload.with_model(planned.apply(workload.model), planned.transform())
    data: dict[str, Any] = planned.to_json()
    if workload.task is not None and workload.val is not None:
        from slim_core.training import evaluate

        first, second = (
            evaluate(item.model, workload.task, workload.val, progress=app.output.progress)
            for item in (workload, sparse)
        )
        data["metrics"] = {name: {"before": first[name], "after": second[name]} for name in first}
    if output is not None:
        save(sparse, output)
        data["checkpoint"] = {"path": str(output), "bytes": output.stat().st_size}
    app.output.emit(data, render=lambda: _table(planned, data), quiet=f"{planned.sparsity:.2%}")


def emit_plan(app: Any, plan: Path) -> None:
    """Print a written plan of sparsity."""
    from slim_prune.sparsity import SparsityPlan

    planned = SparsityPlan.load(plan)
    app.output.emit(planned.to_json(), render=planned.show, quiet=f"{planned.sparsity:.2%}")


def _scheme(scheme: str, block: str | None, permute: bool) -> dict[str, Any]:
    n, colon, rest = scheme.partition(":")
    if n.isdigit() and colon:  # 2:4, or 2:4:layout=flat
        m, _, options = rest.partition(":")
        if not m.isdigit():
            raise SlimError(f"--scheme takes N:M in numbers, not '{scheme}'", hint="--scheme 2:4")
        chosen = {**_options(f"n_m:{options}" if options else "n_m"), "n": int(n), "m": int(m)}
    else:
        chosen = _options(scheme)
    if block is not None:
        sizes = block.lower().split("x")
        if len(sizes) != 2 or not all(size.isdigit() for size in sizes) or scheme not in ("unstructured", "block"):
            raise SlimError(f"--block takes ROWSxCOLUMNS for the scheme 'block', not '{block}'", hint="--block 1x4")
        chosen = {**chosen, "name": "block", "shape": [int(size) for size in sizes]}
    if permute:
        chosen = {**chosen, "permute": True}
    return chosen


def _options(scheme: str) -> dict[str, Any]:
    chosen = named(scheme, "--scheme")
    return {"name": chosen} if isinstance(chosen, str) else chosen


def _ratio(item: str) -> tuple[str, float]:
    name, value = pair(item, "--ratio", "layer1.*=0.25")
    try:
        return name, float(value)
    except ValueError:
        raise SlimError(f"--ratio takes GLOB=SHARE, and '{value}' is not a number") from None


def _table(planned: SparsityPlan, data: dict[str, Any]) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    lines = [f"{name}: {v['before']:.4f} before, {v['after']:.4f} after" for name, v in data.get("metrics", {}).items()]
    if "checkpoint" in data:
        lines.append(f"checkpoint: {data['checkpoint']['path']}, {data['checkpoint']['bytes']:,} bytes")
    return Group(planned.show(), Text("\n".join(lines)))
