"""Batch-norm recalibration: running statistics measured anew on a few samples, without training.

After channels were removed, the running means and variances that a model learned no longer describe what its layers
see. Measuring them again is what lets a pruned model be judged before it is fine-tuned (Li et al. 2020, "EagleEye:
Fast Sub-net Evaluation for Efficient Neural Network Pruning", arXiv:2007.02491; He et al. 2018, "AMC: AutoML for Model
Compression and Acceleration on Mobile Devices", arXiv:1802.03494).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from slim_core.data import batch_size, check_reiterable, slice_batch, to_device
from slim_core.errors import DataError
from slim_core.modes import evaluating
from slim_core.tasks import ClassificationTask
from slim_core.training.evaluate import device_of
from slim_core.workload import DataSource, Task, call

#: How many training samples are measured where nobody says otherwise.
SAMPLES = 1024


def recalibrate(model: nn.Module, data: DataSource, *, samples: int = SAMPLES, task: Task | None = None) -> int:
    """Measure the running statistics of ``model``'s norm layers anew, in place, and return how many layers have any.

    Every layer's ``running_mean`` becomes the mean of the means that it sees, each batch weighted by its samples, and
    ``running_var`` likewise the mean of the (unbiased) variances within the batches; with batches of one size that is
    PyTorch's cumulative average (``momentum=None``). Everything but these layers is in evaluation mode meanwhile, so
    dropout is off and no random number is drawn; no gradient is kept; modes and momenta are as before at the end. On an
    error the old statistics come back.

    Args:
        model: any module; layers that keep no running statistics are left alone.
        data: batches, in the order that they come; taken without augmentation where the source knows how (``plain()``).
        samples: how many samples to use, the last batch cut to fit; all of ``data`` if it has fewer. A last batch of
            one sample has no variance and is left out.
        task: how a batch splits into inputs and the rest; without one, as classification has it: ``(inputs, targets)``,
            a mapping whose targets are named so, or bare inputs.

    Raises:
        DataError: there are too few samples to measure a variance.
    """
    if samples < 2:
        raise DataError(f"a variance needs at least two samples, not {samples}", hint="use some hundreds")
    check_reiterable(data, "recalibration")
    layers: list[Any] = [module for module in model.modules() if _keeps_statistics(module)]
    if not layers:
        return 0
    device = device_of(model)
    seen = 0
    with _measuring(layers), evaluating(model), torch.no_grad():
        for layer in layers:
            layer.training = True
            layer.reset_running_stats()
        for batch in _exactly(data.plain() if hasattr(data, "plain") else data, samples):
            size = batch_size(batch)
            if size > 1:
                call(model, to_device(_inputs(batch, task), device))
                seen += size
        if not seen:
            raise DataError(
                "the running statistics cannot be measured: the data has no batch of at least two samples",
                hint="give more samples, in larger batches",
            )
    return len(layers)


def _keeps_statistics(module: nn.Module) -> bool:
    return isinstance(module, _NormBase) and module.track_running_stats and module.running_mean is not None


@contextmanager
def _measuring(layers: Iterable[Any]) -> Iterator[None]:
    """Let each call of a layer move its statistics by its share of all samples so far: an exact average."""
    kept = [(layer, layer.momentum, {name: b.clone() for name, b in layer.named_buffers(recurse=False)})
            for layer in layers]  # fmt: skip
    handles = [layer.register_forward_pre_hook(_Averaging()) for layer, _, _ in kept]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for layer, _, buffers in kept:
                for name, value in buffers.items():
                    getattr(layer, name).copy_(value)
        raise
    finally:
        for handle in handles:
            handle.remove()
        for layer, momentum, _ in kept:
            layer.momentum = momentum


class _Averaging:
    """Sets a layer's momentum before each call. A layer that is called several times per batch averages over calls."""

    def __init__(self) -> None:
        self._samples = 0

    def __call__(self, layer: Any, inputs: tuple[Any, ...]) -> None:
        size = inputs[0].shape[0]
        self._samples += size
        layer.momentum = size / self._samples


def _exactly(data: Iterable[Any], samples: int) -> Iterator[Any]:
    missing = samples
    for batch in data:
        size = batch_size(batch)
        yield batch if size <= missing else slice_batch(batch, 0, missing)
        missing -= min(size, missing)
        if missing == 0:
            return


def _inputs(batch: Any, task: Task | None) -> Any:
    if task is not None:
        return task.inputs(batch)
    pair = isinstance(batch, tuple | list) and len(batch) == 2
    return ClassificationTask().inputs(batch) if pair or isinstance(batch, Mapping) else batch


def statistics(model: nn.Module) -> dict[str, Tensor]:
    """Return the running means and variances of ``model`` by state-dict name."""
    return {
        f"{path}.{name}" if path else name: buffer
        for path, module in model.named_modules()
        if _keeps_statistics(module)
        for name, buffer in module.named_buffers(recurse=False)
        if name in ("running_mean", "running_var")
    }
