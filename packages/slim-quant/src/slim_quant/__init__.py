"""slim-quant: quantization that equals what the runtime computes. Importing it imports no torch.

result = slim_quant.quantize(model, batches, example_inputs=(x,))
slim_core.export.to_onnx(result.model, (x,), "model.onnx")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slim_quant.calibration import CalibrationData as CalibrationData
    from slim_quant.deploy import Deployment as Deployment
    from slim_quant.deploy import compare as compare
    from slim_quant.deploy import runtime_operators as runtime_operators
    from slim_quant.overrides import Override as Override
    from slim_quant.preparation import Calibrated as Calibrated
    from slim_quant.preparation import Prepared as Prepared
    from slim_quant.preparation import calibrate as calibrate
    from slim_quant.preparation import finish as finish
    from slim_quant.preparation import prepare as prepare
    from slim_quant.ptq.static import quantize as quantize
    from slim_quant.result import QuantReport as QuantReport
    from slim_quant.result import QuantResult as QuantResult
    from slim_quant.schemes import Scheme as Scheme
    from slim_quant.targets import Target as Target
    from slim_quant.targets import get_target as get_target

_LAZY = {
    "CalibrationData": "slim_quant.calibration",
    "Calibrated": "slim_quant.preparation",
    "Prepared": "slim_quant.preparation",
    "calibrate": "slim_quant.preparation",
    "finish": "slim_quant.preparation",
    "prepare": "slim_quant.preparation",
    "Override": "slim_quant.overrides",
    "QuantReport": "slim_quant.result",
    "QuantResult": "slim_quant.result",
    "Target": "slim_quant.targets",
    "get_target": "slim_quant.targets",
    "Deployment": "slim_quant.deploy",
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
