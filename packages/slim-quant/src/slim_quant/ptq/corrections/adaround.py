"""AdaRound: rounding that is learned layer by layer (Nagel et al., 2020, arXiv 2004.10568)."""

from __future__ import annotations

from typing import ClassVar

import torch

from slim_quant.preparation import Calibrated, CalibrationData, Prepared
from slim_quant.ptq.corrections.base import CorrectionContext, Stage
from slim_quant.ptq.corrections.columns import is_product
from slim_quant.ptq.corrections.reconstruction import BlockReconstruction, LayerReconstruction, Reconstruction
from slim_quant.ptq.corrections.rounding import Learned, LearningOptions, learn_units
from slim_quant.ptq.corrections.units import Unit, layer_units
from slim_quant.ptq.corrections.walk import BATCH, MEMORY_MIB, SAMPLES, Chunk, Walk


class AdaRound:
    """Learns for each weight whether it goes up or down, so that each layer gives what it gives in the float network.

    A layer reads what the layers before it, rounded already, make of the samples; its output is compared after its
    activation function. A layer whose learned rounding is no better than nearest keeps nearest.

    Args:
        iterations: steps for each layer. The paper takes 10,000; 1,000 get most of it.
        lr: step size of Adam.
        penalty: weight of the penalty on undecided weights.
        warmup: share of the iterations without penalty.
        samples: calibration samples to learn on, at most.
        batch: samples that are run at once; a step takes 1,024 positions of the layer's output from all samples.
        memory_mib: memory for the inputs and outputs of a layer, in MiB; where it is too little, fewer samples serve.

    Raises:
        SlimError: a value is out of its range.
    """

    stage: ClassVar[Stage] = "rounding"

    def __init__(
        self, iterations: int = 1000, lr: float = 0.01, penalty: float = 3.0, warmup: float = 0.2,
        samples: int = SAMPLES, batch: int = BATCH, memory_mib: int = MEMORY_MIB,
    ) -> None:  # fmt: skip
        self.options = LearningOptions(iterations, lr, penalty, warmup, samples=samples, batch=batch,
                                       memory_mib=memory_mib)  # fmt: skip
        #: what was learned by the last call, layer by layer
        self.learned: list[Learned] = []

    def __call__(
        self, prepared: Prepared, calibrated: Calibrated | None, data: CalibrationData, context: CorrectionContext
    ) -> None:
        if calibrated is None:
            raise ValueError("adaround runs after the calibration")
        self.learned = learn_units(
            "adaround", layer_units(prepared), prepared, calibrated, data, context, self.options, layer_reconstruction
        )


def layer_reconstruction(walk: Walk, unit: Unit, chunks: list[Chunk], generator: torch.Generator) -> Reconstruction:
    """Return the reconstruction of a single layer."""
    if is_product(unit.nodes[0]):
        return LayerReconstruction(walk, unit, chunks, generator)
    return BlockReconstruction(walk, unit, chunks)
