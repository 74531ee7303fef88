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
    from slim_quant.deploy import Exported as Exported
    from slim_quant.deploy import compare as compare
    from slim_quant.deploy import export as export
    from slim_quant.deploy import runtime_operators as runtime_operators
    from slim_quant.dynamic import quantize_dynamic as quantize_dynamic
    from slim_quant.faster.decide import Faster as Faster
    from slim_quant.faster.decide import never_slower as never_slower
    from slim_quant.mixed.choose import Mixed as Mixed
    from slim_quant.mixed.choose import choose as choose
    from slim_quant.overrides import Override as Override
    from slim_quant.preparation import Calibrated as Calibrated
    from slim_quant.preparation import Prepared as Prepared
    from slim_quant.preparation import calibrate as calibrate
    from slim_quant.preparation import finish as finish
    from slim_quant.preparation import prepare as prepare
    from slim_quant.ptq.static import quantize as quantize
    from slim_quant.qat import convert as convert
    from slim_quant.qat import prepare_qat as prepare_qat
    from slim_quant.result import QuantReport as QuantReport
    from slim_quant.result import QuantResult as QuantResult
    from slim_quant.schemes import Scheme as Scheme
    from slim_quant.targets import Target as Target
    from slim_quant.targets import get_target as get_target
    from slim_quant.weight_only import PackedResult as PackedResult
    from slim_quant.weight_only import quantize_weights as quantize_weights

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
    "Exported": "slim_quant.deploy",
    "export": "slim_quant.deploy",
    "Faster": "slim_quant.faster.decide",
    "never_slower": "slim_quant.faster.decide",
    "Mixed": "slim_quant.mixed.choose",
    "choose": "slim_quant.mixed.choose",
    "Scheme": "slim_quant.schemes",
    "compare": "slim_quant.deploy",
    "PackedResult": "slim_quant.weight_only",
    "convert": "slim_quant.qat",
    "prepare_qat": "slim_quant.qat",
    "quantize": "slim_quant.ptq.static",
    "quantize_dynamic": "slim_quant.dynamic",
    "quantize_weights": "slim_quant.weight_only",
    "runtime_operators": "slim_quant.deploy",
}

#: packages that are called like the function that they are named after
_FUNCTIONS = ("diff", "sensitivity")

__all__ = [*_LAZY, *_FUNCTIONS]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    if name in _FUNCTIONS:
        return import_module(f"slim_quant.{name}")
    raise AttributeError(f"module 'slim_quant' has no attribute {name!r}")
