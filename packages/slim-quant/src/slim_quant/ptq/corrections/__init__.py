"""What repairs the accuracy of a model that is quantized after training.

========================== ========= ===================================================================
name                       stage     what it does
========================== ========= ===================================================================
equalization               float     evens out the ranges of channels across layers (Nagel et al., 2019)
bias_absorption            float     moves high biases into the layer after (Nagel et al., 2019)
smoothquant                float     moves outliers of activations into weights (Xiao et al., 2022)
adaround                   rounding  learns the rounding, layer by layer (Nagel et al., 2020)
brecq                      rounding  learns the rounding, block by block (Li et al., 2021)
qdrop                      rounding  the same, with activations quantized at random (Wei et al., 2022)
gptq                       rounding  rounds column by column, later columns make up (Frantar et al., 2022)
bias_correction            bias      takes the mean error of each channel, measured, out of the bias
bias_correction_analytic   bias      the same, from the statistics of batch norms, without data
========================== ========= ===================================================================

A plugin adds one with the hook ``slim_register_corrections``: a class with a ``stage`` whose instances are called as
:class:`Correction` says; the arguments of its ``__init__`` are its options.
"""

from slim_quant.ptq.corrections.base import (
    STAGES,
    Correction,
    CorrectionContext,
    Stage,
    make_correction,
    make_corrections,
)

__all__ = ["STAGES", "Correction", "CorrectionContext", "Stage", "make_correction", "make_corrections"]
