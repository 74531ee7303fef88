"""SmoothQuant: outliers of activations moved into the weights that read them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, fx

from slim_core.errors import SlimError
from slim_quant.graph import get_tensor, op_name, tap
from slim_quant.preparation import Calibrated, CalibrationData, Prepared
from slim_quant.ptq.corrections.base import CorrectionContext, Stage
from slim_quant.ptq.corrections.streams import Streams, Use, find_streams

#: the smallest factor and its inverse the largest, as a bound for channels that are almost always zero
_SMALLEST = 1e-5


class SmoothQuant:
    """Divides the channels that linear layers read by a factor, and multiplies the layers' weights by it (Xiao et al.,
    2022, arXiv 2211.10438).

    The factor of a channel is ``max|x| ** strength / max|w| ** (1 - strength)``. What writes the channel takes up the
    division: the gain and shift of a norm, or the layer before where only moving of values is between (the values of an
    attention and its output projection). The network computes the same function. Meant for transformers, whose
    residual streams have a few channels of very large values.

    Args:
        strength: how much of the difficulty moves from activations into weights, 0 to 1.
        samples: calibration samples on which the activations' ranges are measured, at most.

    Raises:
        SlimError: a value is out of its range.
    """

    stage: ClassVar[Stage] = "float"

    def __init__(self, strength: float = 0.5, samples: int = 512) -> None:
        if not 0 <= strength <= 1 or samples < 1:
            raise SlimError("strength must be in [0, 1] and samples at least 1")
        self.strength, self.samples = strength, samples

    def __call__(
        self, prepared: Prepared, calibrated: Calibrated | None, data: CalibrationData, context: CorrectionContext
    ) -> None:
        streams = find_streams(prepared.graph)
        readers = _readers(prepared, streams)
        seen = self._activations(prepared, readers, streams.count, data.subset(self.samples), context)
        weights = torch.zeros(streams.count, dtype=torch.float64)
        for use in readers:
            ranges = use.ranges(get_tensor(prepared.graph, use.name))
            weights.scatter_reduce_(0, torch.from_numpy(use.labels), ranges, "amax")
        usable = _smoothable(prepared, streams) & (seen > 0) & (weights > 0)
        ones = torch.ones_like(seen)
        seen, weights = torch.where(usable, seen, ones), torch.where(usable, weights, ones)
        scales = (seen.pow(self.strength) / weights.pow(1 - self.strength)).clamp(_SMALLEST, 1 / _SMALLEST)
        streams.apply(prepared.graph, scales)
        layers = {use.layer for use in readers if bool(usable[torch.from_numpy(use.labels)].any())}
        context.notes.append(f"smoothquant: the inputs of {len(layers)} linear layers are smoothed")

    def _activations(
        self, prepared: Prepared, readers: list[Use], count: int, data: CalibrationData, context: CorrectionContext
    ) -> Tensor:
        """Return the largest absolute value of each channel that a linear layer reads, by label."""
        found = torch.zeros(count, dtype=torch.float64)
        nodes = prepared.nodes
        taps: dict[str, list[Tensor]] = {}
        for use in readers:
            source = cast(fx.Node, nodes[use.layer].args[0])
            taps.setdefault(source.name, []).append(torch.from_numpy(use.labels))
        watched: dict[str, Callable[[Tensor], None]] = {
            name: partial(_largest, found, labels) for name, labels in taps.items()
        }
        with context.progress.track("smoothquant: measuring activations", len(data)) as track:
            for batch in data.batches(32):
                tap(prepared.graph, batch, watched)
                track.advance(32)
        return found


def _largest(found: Tensor, labels: list[Tensor], value: Tensor) -> None:
    ranges = value.detach().abs().reshape(-1, value.shape[-1]).amax(0).double().cpu()
    for where in labels:
        found.scatter_reduce_(0, where, ranges, "amax")


def _readers(prepared: Prepared, streams: Streams) -> list[Use]:
    """Return the quantized linear layers' uses of the channels that they read."""
    nodes: Any = prepared.nodes
    return [
        use for use in streams.uses
        if use.kind == "read" and op_name(nodes[use.layer]) == "aten.linear.default" and use.name in prepared.weights
    ]  # fmt: skip


def _smoothable(prepared: Prepared, streams: Streams) -> Tensor:
    """Tell for each label whether it can be scaled and only linear layers read it."""
    usable = torch.from_numpy(streams.free())
    nodes = prepared.nodes
    for use in streams.uses:
        if use.kind == "read" and op_name(nodes[use.layer]) != "aten.linear.default":
            usable[torch.from_numpy(use.labels)] = False
    return usable
