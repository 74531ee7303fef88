"""Post-training quantization."""

from slim_quant.ptq.static import QuantReport, QuantResult, quantize

__all__ = ["QuantReport", "QuantResult", "quantize"]
