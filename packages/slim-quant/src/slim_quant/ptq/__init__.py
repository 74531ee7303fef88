"""Post-training quantization."""

from slim_quant.ptq.static import quantize
from slim_quant.result import QuantReport, QuantResult

__all__ = ["QuantReport", "QuantResult", "quantize"]
