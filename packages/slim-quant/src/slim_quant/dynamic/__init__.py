"""Dynamic quantization: weights in int8, activations rounded with scales of the batch at hand."""

from slim_quant.dynamic.quantize import quantize_dynamic

__all__ = ["quantize_dynamic"]
