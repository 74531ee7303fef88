"""When a prepared model quantizes, observes, normalizes with the batch's statistics; what happens around a forward.

The switches are one buffer of the model, so that they are saved, resumed, copied and averaged with everything else.
Before each forward pass they reach the quantizers; after each one in training, what the quantizers saw is exchanged
between processes and taken into the moving averages, in one go for all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from slim_core.checkpoint.state import plain_model
from slim_core.errors import DataError, ModelError
from slim_core.graph.export import ExportedModel
from slim_core.modes import evaluating
from slim_core.named import Named
from slim_core.progress import Progress, SilentProgress
from slim_core.workload import call
from slim_quant.calibration import batch_size
from slim_quant.qat.activations import ActivationQuantizer, BatchQuantizer, MovingAverageQuantizer
from slim_quant.qat.weights import LiveNorm, WeightQuantizer
from slim_quant.schemes import Scheme, qparams

#: the buffer with the switches: quantizing, observing, live batch norms, ready (ranges were found)
PHASE = "quant_phase"
#: under which name a prepared model keeps what it is, in ``model.meta``
META = "quant.qat"
_QUANTIZE, _OBSERVE, _LIVE, _READY = range(4)


@dataclass(frozen=True, slots=True)
class Phase:
    """What a prepared model does.

    Args:
        quantize: are weights and activations rounded? Otherwise it computes in float.
        observe: do moving averages follow the batches, in training?
        live_batch_norm: do batch norms use the batch's statistics in training? Otherwise they are folded with the
            running ones.
        ready: were ranges found? Before that, activations are not quantized; the first batch in training finds them.
    """

    quantize: bool
    observe: bool
    live_batch_norm: bool
    ready: bool


def phase_of(model: nn.Module) -> Phase:
    """Return what a prepared model does now.

    Raises:
        ModelError: the model is not prepared for training-aware quantization.
    """
    return Phase(*map(bool, _buffer(model).tolist()))


def set_phase(
    model: nn.Module, *, quantize: bool | None = None, observe: bool | None = None, live_batch_norm: bool | None = None
) -> None:
    """Switch what a prepared model does; what is ``None`` stays as it is.

    Args:
        model: the prepared model, wrapped or not.
        quantize: round weights and activations.
        observe: let moving averages follow the batches.
        live_batch_norm: let batch norms use the batch's statistics in training.

    Raises:
        ModelError: the model is not prepared for training-aware quantization.
    """
    buffer = _buffer(model)
    before = buffer.tolist()
    with torch.no_grad():
        for position, value in ((_QUANTIZE, quantize), (_OBSERVE, observe), (_LIVE, live_batch_norm)):
            if value is not None and bool(before[position]) != value:
                buffer[position] = int(value)


def freeze_observers(model: nn.Module) -> None:
    """Keep the ranges of activations as they are from now on. Learned scales go on learning."""
    set_phase(model, observe=False)


def freeze_batch_norms(model: nn.Module) -> None:
    """Fold batch norms with their running statistics from now on, also in training. Gain and shift go on learning."""
    set_phase(model, live_batch_norm=False)


def initialize(
    model: nn.Module, batches: Iterable[Any], *, observer: Named | None = None, progress: Progress | None = None
) -> int:
    """Find the ranges that training begins with, on batches, in evaluation mode; return how many samples were seen.

    A model that was not given any does so with the first batch that it is trained on. Several processes, with
    batches of their own, begin with the same ranges.

    Args:
        model: the prepared model.
        batches: batches of what the forward takes.
        observer: how ranges are found; ``None``: what the model was prepared with.
        progress: where to report to.

    Raises:
        DataError: there is no batch, or an activation is not finite.
        ModelError: the model is not prepared for training-aware quantization.
    """
    inner = prepared_model(model)
    watched = observer if observer is not None else inner.meta[META].observer
    quantizers = [item for item in inner.modules() if isinstance(item, ActivationQuantizer)]
    seen = 0
    with evaluating(inner), torch.no_grad(), (progress or SilentProgress()).track("calibrating") as track:
        for item in quantizers:
            item.collect(watched)
        try:
            for batch in batches:
                call(inner, batch)
                seen += batch_size(batch)
                track.advance(batch_size(batch))
            if not seen:
                raise DataError("there is nothing to begin with: the calibration data gives no batch")
            for item in quantizers:
                if item.collector is not None and _processes() > 1:
                    item.collector.all_reduce()
                item.collect(None)
        except ValueError as error:
            raise DataError(f"finding the ranges of activations failed: {error}") from error
        finally:
            for item in quantizers:
                item.collector = None
        _buffer(inner)[_READY] = 1
    return seen


def prepared_model(model: nn.Module) -> ExportedModel:
    """Return the prepared model inside the wrappers of data parallelism.

    Raises:
        ModelError: there is none.
    """
    inner = plain_model(model)
    if not isinstance(inner, ExportedModel) or META not in inner.meta:
        raise ModelError(
            f"a {type(model).__name__} is not prepared for training-aware quantization",
            hint="prepare it: model = slim_quant.prepare_qat(model, example_inputs)",
        )
    return inner


def attach(model: ExportedModel, device: torch.device) -> None:
    """Give a model its switches and what runs around its forward."""
    ready = not any(_has_range(item) for item in model.modules())
    model.register_buffer(PHASE, torch.tensor([1, 1, 1, int(ready)], dtype=torch.uint8, device=device))
    model.register_forward_pre_hook(_before, with_kwargs=True)
    model.register_forward_hook(_after)


def detach(model: ExportedModel) -> None:
    """Take them away again."""
    delattr(model, PHASE)
    for hooks, ours in ((model._forward_pre_hooks, _before), (model._forward_hooks, _after)):
        for key in [key for key, hook in hooks.items() if hook is ours]:
            del hooks[key]
            model._forward_pre_hooks_with_kwargs.pop(key, None)


def _before(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    phase = Phase(*map(bool, _buffer(model).tolist()))
    if not phase.ready and model.training:
        initialize(model, [dict(kwargs) if kwargs else args])
        phase = phase_of(model)
    averaging: dict[Scheme, list[MovingAverageQuantizer]] = {}
    for module in model.modules():
        if isinstance(module, ActivationQuantizer):
            module.quantizing = phase.quantize and (phase.ready or not _has_range(module))
            module.observing = phase.observe
            if isinstance(module, MovingAverageQuantizer):
                averaging.setdefault(module.scheme, []).append(module)
        elif isinstance(module, WeightQuantizer):
            module.quantizing, module.live = phase.quantize, phase.live_batch_norm
        elif isinstance(module, LiveNorm):
            module.live = phase.live_batch_norm
    for scheme, items in averaging.items():  # a dozen small operations for all, in place of a dozen for each
        lows, highs = (torch.stack([getattr(item, name) for item in items]) for name in ("low", "high"))
        scales, zero_points = qparams(lows, highs, scheme)
        for item, *current in zip(items, scales.unbind(), zero_points.float().unbind(), strict=True):
            item.current = (current[0], current[1])


@torch.no_grad()
def _after(model: nn.Module, args: Any, output: Any) -> None:
    averaging = [item for item in model.modules() if isinstance(item, MovingAverageQuantizer)]
    for item in averaging:
        item.current = None
    items = [item for item in averaging if item.seen]
    if not items:
        return
    lows = torch.stack([_least([low for low, _ in item.seen]) for item in items])
    highs = torch.stack([-_least([-high for _, high in item.seen]) for item in items])
    for item in items:
        item.seen.clear()
    ends = torch.stack([-lows, highs])  # (2, quantizers): the largest of both is what all processes saw
    if _processes() > 1:
        dist.all_reduce(ends, op=dist.ReduceOp.MAX)
    before = torch.stack([torch.stack([-item.low for item in items]), torch.stack([item.high for item in items])])
    decay = torch.tensor([item.decay for item in items], device=ends.device)
    after = before * decay + ends * (1 - decay)
    after = torch.where(torch.isfinite(ends).all(0), after, before)  # one broken batch must not spoil the range
    torch._foreach_copy_([item.low for item in items], list((-after[0]).unbind()))
    torch._foreach_copy_([item.high for item in items], list(after[1].unbind()))


def _least(values: list[Tensor]) -> Tensor:
    return values[0] if len(values) == 1 else torch.stack(values).amin()


def _has_range(module: nn.Module) -> bool:
    return isinstance(module, ActivationQuantizer) and not isinstance(module, BatchQuantizer)


def _processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _buffer(model: nn.Module) -> Tensor:
    return prepared_model(model).get_buffer(PHASE)
