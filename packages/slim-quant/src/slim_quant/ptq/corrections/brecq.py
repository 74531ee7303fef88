"""Rounding that is learned block by block: BRECQ (Li et al., 2021, arXiv 2102.05426), QDrop (Wei et al., 2022)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from slim_core.errors import SlimError
from slim_quant.preparation import Calibrated, CalibrationData, Prepared
from slim_quant.ptq.corrections.adaround import layer_reconstruction
from slim_quant.ptq.corrections.base import CorrectionContext, Stage
from slim_quant.ptq.corrections.reconstruction import BlockReconstruction, LearnedScales, Reconstruction
from slim_quant.ptq.corrections.rounding import Learned, LearningOptions, learn_units
from slim_quant.ptq.corrections.units import Unit, block_units
from slim_quant.ptq.corrections.walk import BATCH, MEMORY_MIB, SAMPLES, Chunk, Values, Walk


class BRECQ:
    """Learns the rounding of a block's weights together, so that it gives what it gives in the float network.

    Li et al., 2021, arXiv 2102.05426, with the plain squared error of the block's output. Blocks come from the exported
    graph: residual blocks, encoder layers, depthwise separable convolutions; what belongs to none is learned layer by
    layer, as with AdaRound. Within a block activations are quantized; where no one outside uses their scales, these are
    learned too.

    Args:
        iterations: steps for each block. The paper takes 20,000.
        lr: step size of Adam on the rounding variables.
        penalty: weight of the penalty on undecided weights.
        warmup: share of the iterations without penalty.
        samples: calibration samples to learn on, at most.
        batch: samples of a step.
        memory_mib: memory for the inputs and outputs of a block, in MiB; where it is too little, fewer samples serve.
        most_layers: a block has at most so many layers; a larger one is taken apart.
        scale_lr: step size on the logarithms of activation scales; 0 leaves them as calibrated.

    Raises:
        SlimError: a value is out of its range.
    """

    stage: ClassVar[Stage] = "rounding"
    name: ClassVar[str] = "brecq"

    def __init__(
        self, iterations: int = 1000, lr: float = 0.01, penalty: float = 3.0, warmup: float = 0.2,
        samples: int = SAMPLES, batch: int = BATCH, memory_mib: int = MEMORY_MIB, most_layers: int = 8,
        scale_lr: float = 0.001,
    ) -> None:  # fmt: skip
        self.options = LearningOptions(iterations, lr, penalty, warmup, samples=samples, batch=batch,
                                       memory_mib=memory_mib)  # fmt: skip
        if most_layers < 1 or scale_lr < 0:
            raise SlimError("most_layers must be at least 1 and scale_lr not below 0")
        self.most_layers = most_layers
        self.scale_lr = scale_lr
        self.drop = 0.0
        #: what was learned by the last call, block by block
        self.learned: list[Learned] = []

    def __call__(
        self, prepared: Prepared, calibrated: Calibrated | None, data: CalibrationData, context: CorrectionContext
    ) -> None:
        if calibrated is None:
            raise ValueError(f"{self.name} runs after the calibration")
        units = block_units(prepared, most_layers=self.most_layers)
        self.learned = learn_units(
            self.name, units, prepared, calibrated, data, context, self.options, self._reconstruction
        )

    def _reconstruction(
        self, walk: Walk, unit: Unit, chunks: list[Chunk], generator: torch.Generator
    ) -> Reconstruction:
        if len(unit.layers) == 1 and not self.drop:
            return layer_reconstruction(walk, unit, chunks, generator)
        scales = LearnedScales(walk, unit, self.scale_lr)

        def change(node: fx.Node, value: Any) -> Any:
            if node in unit.outputs or node.name not in walk.scales:
                return value
            return self._mixed(value, scales.fake(node, value), generator)

        def mix(chunk: Chunk) -> Values:
            return {node: self._mixed(chunk.floats[node], value, generator) for node, value in chunk.quantized.items()}

        return BlockReconstruction(walk, unit, chunks, inner=change, mix=mix, scales=scales)

    def _mixed(self, exact: Any, quantized: Any, generator: torch.Generator) -> Any:
        """Return ``quantized``, with entries of ``exact`` in a share of ``drop`` places."""
        if not self.drop or not isinstance(quantized, Tensor) or not quantized.is_floating_point():
            return quantized
        keep = torch.rand(quantized.shape, generator=generator) >= self.drop
        return torch.where(keep.to(quantized.device), quantized, exact)


class QDrop(BRECQ):
    """BRECQ that leaves activations in float at random places while it learns (Wei et al., 2022, arXiv 2203.05740).

    The rounding then serves more than the samples seen: worth most at 4 bits and below for activations.

    Args:
        drop: share of the values that are not quantized, for what the block reads and inside it.
        iterations: see :class:`BRECQ`, as for all others.

    Raises:
        SlimError: a value is out of its range.
    """

    name: ClassVar[str] = "qdrop"

    def __init__(
        self, drop: float = 0.5, iterations: int = 1000, lr: float = 0.01, penalty: float = 3.0, warmup: float = 0.2,
        samples: int = SAMPLES, batch: int = BATCH, memory_mib: int = MEMORY_MIB, most_layers: int = 8,
        scale_lr: float = 0.001,
    ) -> None:  # fmt: skip
        super().__init__(iterations, lr, penalty, warmup, samples, batch, memory_mib, most_layers, scale_lr)
        if not 0 <= drop < 1:
            raise SlimError(f"drop must be in [0, 1), not {drop}")
        self.drop = drop
