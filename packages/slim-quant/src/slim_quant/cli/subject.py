"""What commands quantize with: calibration samples of the workload, and warnings about what it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slim_core.cli.app import App
    from slim_core.cli.options import WorkloadRequest
    from slim_core.workload import Workload


def warn_if_random(app: App, request: WorkloadRequest, workload: Workload) -> None:
    """Say that a model has random weights, where nobody gave others."""
    if request.weights is None and workload.builder is not None and workload.builder.name == request.model:
        app.output.warn("the weights are random: neither --weights nor --checkpoint was given")


def calibration(workload: Workload, seed: int) -> Iterator[Any]:
    """Yield training inputs, without augmentation where the data set knows how, in an order that ``seed`` decides."""
    from slim_quant.technique import _inputs

    yield from _inputs(workload, seed)
