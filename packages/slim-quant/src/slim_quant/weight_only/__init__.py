"""Weight-only quantization: integers in memory and in files, arithmetic in float."""

from slim_quant.weight_only.packed import PackedWeight, holds_packed
from slim_quant.weight_only.quantize import quantize_weights
from slim_quant.weight_only.result import PackedResult

__all__ = ["PackedResult", "PackedWeight", "holds_packed", "quantize_weights"]
