"""Bias correction: takes the error that quantization makes on average out of each channel's bias.

Measured on samples here; from the statistics of batch norms in ``bias_analytic``.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, fx

from slim_core.errors import SlimError
from slim_quant.edits import add_bias
from slim_quant.fold import FOLDABLE
from slim_quant.graph import argument, get_tensor, op_name, owner_of
from slim_quant.preparation import Calibrated, CalibrationData, Prepared
from slim_quant.ptq.corrections.base import CorrectionContext, Stage
from slim_quant.ptq.corrections.units import Unit, layer_units
from slim_quant.ptq.corrections.walk import BATCH, MEMORY_MIB, SAMPLES, Chunk, Walk


class BiasCorrection:
    """Measures the mean of each output channel in both networks, and moves the bias by the difference.

    Layers are corrected in execution order, each with those before it corrected (Nagel et al., 2019, arXiv 1906.04721,
    appendix D; Finkelstein et al., 2019, arXiv 1906.03193). A layer without a bias gets one.

    Args:
        samples: calibration samples to measure on, at most.
        batch: samples that are run at once.
        memory_mib: memory for the kept values, in MiB; where it is too little, fewer samples serve.

    Raises:
        SlimError: a value is out of its range.
    """

    stage: ClassVar[Stage] = "bias"

    def __init__(self, samples: int = SAMPLES, batch: int = BATCH, memory_mib: int = MEMORY_MIB) -> None:
        if min(samples, batch, memory_mib) < 1:
            raise SlimError("samples, batch and memory_mib must be at least 1")
        self.samples, self.batch, self.memory_mib = samples, batch, memory_mib

    def __call__(
        self, prepared: Prepared, calibrated: Calibrated | None, data: CalibrationData, context: CorrectionContext
    ) -> None:
        if calibrated is None:
            raise ValueError("bias_correction runs after the calibration")
        units = [unit for unit in layer_units(prepared, activations=False) if correctable(prepared, unit.nodes[0])]
        for unit in units:
            ensure_bias(prepared, calibrated, unit.nodes[0])
        walk = Walk(prepared, calibrated, data, context, samples=self.samples, batch=self.batch,
                    memory_mib=self.memory_mib)  # fmt: skip
        with context.progress.track("correcting biases", len(units)) as track:
            for unit, chunks in walk.run(units):
                with torch.no_grad():
                    shift_bias(prepared, unit.nodes[0], _difference(walk, unit, chunks))
                track.advance(1)
        context.notes.append(f"bias_correction: the biases of {len(units)} layers make up for mean errors")


def correctable(prepared: Prepared, node: fx.Node) -> bool:
    """Tell whether the bias of a layer is its own, or can be given to it."""
    if op_name(node) not in FOLDABLE:
        return False
    bias = argument(node, FOLDABLE[op_name(node)][0])
    return bias is None or (owner_of(bias) is not None and len(bias.users) == 1)


def ensure_bias(prepared: Prepared, calibrated: Calibrated, node: fx.Node) -> None:
    """Give a layer without a bias one of zeros, and record that."""
    position = FOLDABLE[op_name(node)][0]
    if argument(node, position) is None:
        prepared.edits.append(add_bias(prepared.graph, node.name))
        name = str(owner_of(argument(node, position)))
        calibrated.reference[name] = get_tensor(prepared.graph, name).detach().clone()


def shift_bias(prepared: Prepared, node: fx.Node, change: Tensor) -> None:
    """Add ``change`` to a layer's bias."""
    bias = get_tensor(prepared.graph, str(owner_of(argument(node, FOLDABLE[op_name(node)][0]))))
    with torch.no_grad():
        bias.add_(change.to(bias))


def channel_axis(node: fx.Node) -> int:
    """Return the axis of a layer's output that its bias goes along."""
    return -1 if op_name(node) == "aten.linear.default" else 1


def _difference(walk: Walk, unit: Unit, chunks: list[Chunk]) -> Tensor:
    """Return the mean of the float outputs less that of the quantized ones, for each channel, in float64."""
    node, axis = unit.nodes[0], channel_axis(unit.nodes[0])
    tensors = walk.rounded(unit.nodes)
    total: Tensor | None = None
    count = 0
    for chunk in chunks:
        values = walk.advance(dict(chunk.quantized), unit.nodes, tensors)
        error = (chunk.targets[node] - values[node]).transpose(axis, -1)
        found = error.double().reshape(-1, error.shape[-1]).sum(0)
        total = found if total is None else total + found
        count += error.numel() // error.shape[-1]
    assert total is not None  # noqa: S101 - a walk has at least one batch
    return total / max(count, 1)
