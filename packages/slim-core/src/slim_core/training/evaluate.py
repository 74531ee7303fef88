"""Measuring a model on data with its task's metrics."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from slim_core.data import batch_size, length, to_device
from slim_core.errors import DataError
from slim_core.modes import evaluating as evaluating
from slim_core.modes import kept_modes as kept_modes
from slim_core.modes import set_mode as set_mode
from slim_core.progress import Progress, SilentProgress
from slim_core.training.devices import Devices, OneDevice
from slim_core.workload import DataSource, Task, call


def evaluate(
    model: nn.Module,
    task: Task,
    source: DataSource,
    *,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
    devices: Devices | None = None,
) -> dict[str, float]:
    """Return the task's metrics of ``model`` over ``source``.

    The model runs in evaluation mode without gradients, and gets its mode back. Where the task has no metric named
    ``"loss"``, the mean of its loss is added under that name.

    Args:
        model: the model.
        task: how batches split and what is measured.
        source: batches.
        device: where to run; the model is moved there and stays. ``None``: where the model is.
        progress: where to report.
        devices: the processes that share the work, when called from a run on several devices.

    Raises:
        DataError: the source yields no batch.
    """
    if devices is None:
        devices = OneDevice(torch.device(device) if device is not None else device_of(model))
    if device is not None:
        model.to(device)
    metrics = task.metrics()
    loss_sum, samples = 0.0, 0
    with (progress or SilentProgress()).track("evaluate", length(source)) as track, evaluating(model), torch.no_grad():
        for batch in source:
            size = batch_size(batch)
            shard = devices.shard(batch)
            inputs = task.inputs(to_device(shard.batch, devices.device))
            outputs = devices.gather(call(model, inputs), shard)
            batch = to_device(batch, devices.device)
            for metric in metrics.values():
                metric.update(outputs, batch)
            if "loss" not in metrics:
                loss_sum += float(task.loss(outputs, batch)) * size
            samples += size
            track.advance(1)
    if samples == 0:
        raise DataError("there is nothing to evaluate on: the data yields no batch")
    figures = {name: float(metric.compute()) for name, metric in metrics.items()}
    if "loss" not in figures:
        figures["loss"] = loss_sum / samples
    return figures


def device_of(model: nn.Module) -> torch.device:
    """Return where the model's first parameter or buffer is; the CPU if it has none."""
    tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
    return tensors[0].device if tensors else torch.device("cpu")
