"""Training-aware quantization: a model that computes as its int8 form will, trained by any loop.

model = slim_quant.prepare_qat(model, example_inputs)     # trains like any module
result = slim_quant.convert(model)                        # the quantized model, equal to it in evaluation mode
"""

from slim_quant.qat.conversion import convert, convert_dynamic
from slim_quant.qat.phases import Phase, freeze_batch_norms, freeze_observers, initialize, phase_of, set_phase
from slim_quant.qat.preparation import prepare_qat
from slim_quant.qat.record import transform_of
from slim_quant.qat.schedule import QATSchedule, clipping_penalty
from slim_quant.qat.teacher import FloatTeacher

__all__ = [
    "FloatTeacher",
    "Phase",
    "QATSchedule",
    "clipping_penalty",
    "convert",
    "convert_dynamic",
    "freeze_batch_norms",
    "freeze_observers",
    "initialize",
    "phase_of",
    "prepare_qat",
    "set_phase",
    "transform_of",
]
