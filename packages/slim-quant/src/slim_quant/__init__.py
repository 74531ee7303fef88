"""slim-quant: quantization that equals what the runtime computes. Importing it imports no torch.

result = slim_quant.quantize(model, batches, example_inputs=(x,))
slim_core.export.to_onnx(result.model, (x,), "model.onnx")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slim_quant.deploy import Deployment as Deployment
    from slim_quant.deploy import compare as compare
    from slim_quant.deploy import runtime_operators as runtime_operators
    from slim_quant.ptq.static import QuantReport as QuantReport
    from slim_quant.ptq.static import QuantResult as QuantResult
    from slim_quant.ptq.static import quantize as quantize
    from slim_quant.schemes import Scheme as Scheme

_LAZY = {
    "Deployment": "slim_quant.deploy",
    "QuantReport": "slim_quant.ptq.static",
    "QuantResult": "slim_quant.ptq.static",
    "Scheme": "slim_quant.schemes",
    "compare": "slim_quant.deploy",
    "quantize": "slim_quant.ptq.static",
    "runtime_operators": "slim_quant.deploy",
}

__all__ = [*_LAZY]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'slim_quant' has no attribute {name!r}")
