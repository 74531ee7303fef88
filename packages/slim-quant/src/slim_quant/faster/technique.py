"""``never_slower: true`` of ``quant.ptq``: the model is faster than float on its runtime, or it stays float."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from slim_core.technique import Run
from slim_core.workload import Workload
from slim_quant.faster.decide import Faster, never_slower
from slim_quant.result import QuantResult


def faster_of(
    workload: Workload, run: Run, target: str, build: Callable[[Sequence[str]], QuantResult],
    batch_sizes: Sequence[int],
) -> Faster:  # fmt: skip
    """Return what is never slower, for a step of a recipe.

    Args:
        workload: the float model.
        run: of the step.
        target: the runtime.
        build: quantizes with a skip list.
        batch_sizes: where the file must win.
    """
    from slim_quant.targets import get_target

    return never_slower(
        workload.model, workload.example_inputs, get_target(target, run.registry), build=build,
        batch_sizes=batch_sizes, seed=run.seed, progress=run.progress,
    )  # fmt: skip


def details_of(found: Faster) -> Mapping[str, Any]:
    """Return what the report shows: speeds of what was tried, and what stays in float."""
    rows = [
        {"name": candidate.name, "value": 1 / ratio.ratio, "note": f"batch {size}"}
        for candidate in found.candidates
        for size, ratio in (candidate.confirmed or candidate.ratios).items()
    ]
    plots = [{"kind": "bars", "title": "Times as fast as the float file", "unit": "x", "rows": rows}] if rows else []
    return {
        "plots": plots,
        "never_slower": "quantized" if found.result is not None else "float",
        "left_in_float": list(found.left),
    }
