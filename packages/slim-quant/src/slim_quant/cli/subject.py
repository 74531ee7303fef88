"""What commands work on: samples of the workload, quantized checkpoints, and warnings about what it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slim_core.cli.app import App
    from slim_core.cli.options import WorkloadRequest
    from slim_core.workload import Workload


def warn_if_random(app: App, request: WorkloadRequest, workload: Workload) -> None:
    """Say that a model has random weights, where nobody gave others."""
    if request.weights is None and workload.builder is not None and workload.builder.name == request.model:
        app.output.warn("the weights are random: neither --weights nor --checkpoint was given")


def validation(workload: Workload, samples: int) -> Iterator[Any]:
    """Yield inputs of the first ``samples`` validation samples, in batches."""
    from slim_core.data import batch_size
    from slim_core.measure import batched

    left = samples
    for batch in workload.val or ():
        inputs = workload.task.inputs(batch) if workload.task is not None else batch
        size = batch_size(inputs)
        yield inputs if size <= left else batched(inputs, left)
        left -= min(size, left)
        if not left:
            return


def quantized_checkpoint(app: App, path: Path) -> Workload:
    """Load a checkpoint of a quantized model.

    Raises:
        CheckpointError: it cannot be read.
        ModelError: its model is not quantized.
    """
    from slim_core.checkpoint import load

    workload = load(path, registry=app.registry)
    quantization_of(workload, path)
    return workload


def quantization_of(workload: Workload, path: Path) -> Mapping[str, Any]:
    """Return the record of a checkpoint's quantization.

    Raises:
        ModelError: the model is not quantized.
    """
    from slim_core.errors import ModelError

    for transform in reversed(workload.transforms):
        if transform.kind.startswith("quant."):
            return transform.data
    raise ModelError(
        "the checkpoint holds a float model",
        where=str(path),
        hint=f"quantize it first: slim quant ptq --checkpoint {path} --data NAME -o int8.safetensors",
    )
