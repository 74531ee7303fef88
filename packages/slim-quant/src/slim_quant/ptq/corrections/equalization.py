"""Cross-layer equalization: the ranges of channels evened out between the layers that write and read them."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from slim_core.errors import SlimError
from slim_quant.graph import get_tensor, tied_names
from slim_quant.preparation import Calibrated, CalibrationData, Prepared
from slim_quant.ptq.corrections.base import CorrectionContext, Stage
from slim_quant.ptq.corrections.streams import Streams, find_streams

#: Of the square root of the ratio that would even out a pair at once: whole steps of neighbours would swing in chains.
_STEP = 0.8


class Equalization:
    """Scales channels so that the weights that write and that read a channel have the same range (Nagel et al., 2019,
    "Data-Free Quantization", arXiv 1906.04721).

    For a pair of layers with ranges r1 and r2 of a channel the factor is ``sqrt(r1 / r2)``. Chains of layers (through
    depthwise convolutions), residual streams and concatenations are evened out together: a channel that several layers
    write or read counts with its largest range. The network computes the same function. Helps weights that have one
    scale for the tensor, and depthwise convolutions; with a scale per channel there is little to win, and activations
    may become harder to quantize.

    Args:
        iterations: at most so many sweeps over all layers.
        tolerance: a sweep whose largest change of a factor is below ends it.

    Raises:
        SlimError: a value is out of its range.
    """

    stage: ClassVar[Stage] = "float"

    def __init__(self, iterations: int = 50, tolerance: float = 1e-3) -> None:
        if iterations < 1 or tolerance < 0:
            raise SlimError("iterations must be at least 1 and tolerance not below 0")
        self.iterations, self.tolerance = iterations, tolerance

    def __call__(
        self, prepared: Prepared, calibrated: Calibrated | None, data: CalibrationData, context: CorrectionContext
    ) -> None:
        streams = find_streams(prepared.graph)
        with context.progress.track("equalizing", self.iterations) as track:
            scales = equalizing_scales(prepared, streams, self.iterations, self.tolerance, track.advance)
        streams.apply(prepared.graph, scales)
        changed = int((scales != 1).sum())
        context.notes.append(
            f"equalization: {changed} channels are scaled, by factors from {float(scales.min()):.3g} to "
            f"{float(scales.max()):.3g}" if changed else "equalization: no channel can be scaled"
        )  # fmt: skip


def equalizing_scales(
    prepared: Prepared, streams: Streams, iterations: int = 50, tolerance: float = 1e-3, advance: object = None
) -> Tensor:
    """Return the factor for each label of ``streams`` that evens out the ranges of the quantized weights, float64."""
    graph = prepared.graph
    quantized = {tied for name in prepared.weights for tied in tied_names(graph, name)}
    uses = [use for use in streams.uses if use.weight and use.name in quantized]
    weights = {use.name: get_tensor(graph, use.name).detach().abs().clone() for use in uses}
    labels = [torch.from_numpy(use.labels) for use in uses]
    free = torch.from_numpy(streams.free())
    total = torch.zeros(streams.count, dtype=torch.float64)
    for _ in range(iterations):
        written, read = (torch.zeros(streams.count, dtype=torch.float64) for _ in range(2))
        for use, where in zip(uses, labels, strict=True):
            side = written if use.kind == "write" else read
            side.scatter_reduce_(0, where, use.ranges(weights[use.name]), "amax")
        usable = free & (written > 0) & (read > 0)
        ones = torch.ones_like(written)
        step = _STEP * 0.5 * (torch.where(usable, written, ones).log() - torch.where(usable, read, ones).log())
        total += step
        for use, where in zip(uses, labels, strict=True):
            sign = 1.0 if use.kind == "read" else -1.0
            use.scale(weights[use.name], (sign * step)[where].exp())
        if callable(advance):
            advance(1)
        if float(step.abs().max()) <= tolerance:
            break
    return total.exp()
