"""Bias correction without data: the mean that layers read follows from the batch norms that were folded."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, fx

from slim_quant.fold import FOLDABLE
from slim_quant.graph import argument, get_tensor, op_name
from slim_quant.preparation import Calibrated, CalibrationData, Prepared
from slim_quant.ptq.corrections.absorption import response
from slim_quant.ptq.corrections.base import CorrectionContext, Stage
from slim_quant.ptq.corrections.bias import correctable, ensure_bias, shift_bias
from slim_quant.ptq.corrections.units import layer_units
from slim_quant.ptq.corrections.walk import float_tensor
from slim_quant.schemes import on_grid

#: pass the mean of each channel on
_PASSING = frozenset({
    "aten.dropout.default", "aten.feature_dropout.default", "aten.avg_pool1d.default", "aten.avg_pool2d.default",
    "aten.adaptive_avg_pool1d.default", "aten.adaptive_avg_pool2d.default", "aten.contiguous.default",
    "aten.clone.default",
})  # fmt: skip
_BOUNDED = frozenset({"aten.hardtanh.default", "aten.clamp.default", "aten.clamp_min.default"})


class AnalyticBiasCorrection:
    """Moves each bias by the mean error that the rounded weight makes, calculated (Nagel et al., 2019, section 4.2.1 of
    arXiv 1906.04721).

    The error of a layer's output is on average the error of its weight times the mean of its input. After a batch norm
    and a ReLU that mean is that of a clipped Gaussian, with the norm's shift and gain as mean and deviation; means pass
    through averaging, flattening and additions. Layers whose input's mean is not known this way are left, and named.
    """

    stage: ClassVar[Stage] = "bias"

    def __call__(
        self, prepared: Prepared, calibrated: Calibrated | None, data: CalibrationData, context: CorrectionContext
    ) -> None:
        if calibrated is None:
            raise ValueError("bias_correction_analytic runs after the calibration")
        left, corrected = [], 0
        for unit in layer_units(prepared, activations=False):
            node, place = unit.nodes[0], unit.weights[0]
            source = node.args[0]
            mean = expected(source) if isinstance(source, fx.Node) else None
            scheme = prepared.weights[place.name]
            weight = get_tensor(prepared.graph, place.name).detach()
            if mean is None or not correctable(prepared, node) or len(mean) != _inputs(node, weight):
                left.append(unit.name)
                continue
            rounded = on_grid(weight, *calibrated.weights[place.name], scheme, place.along(scheme))
            error = rounded.double() - float_tensor(calibrated, place.name).double()
            ensure_bias(prepared, calibrated, node)
            shift_bias(prepared, node, -response(prepared, node, mean, error))
            corrected += 1
        context.notes.append(f"bias_correction_analytic: the biases of {corrected} layers make up for mean errors")
        if left:
            context.notes.append(
                f"bias_correction_analytic: nothing is known of what {', '.join(left[:8])}"
                f"{' and others' if len(left) > 8 else ''} read: no batch norm before; bias_correction measures it"
            )


def expected(node: fx.Node) -> Tensor | None:
    """Return the mean of each channel of an activation, float64, as far as folded batch norms tell it."""
    name = op_name(node)
    source = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
    if "statistics" in node.meta and name in FOLDABLE:
        mean: Tensor = node.meta["statistics"][0].double()
        return mean
    if source is None:
        return None
    if name in _PASSING or (name == "aten.mean.dim" and _over_space(node)):
        return expected(source)
    if name in ("aten.relu.default", "aten.relu6.default") or name in _BOUNDED:
        if "statistics" not in source.meta or op_name(source) not in FOLDABLE:
            return None
        mean, deviation = (item.double() for item in source.meta["statistics"])
        low, high = _bounds(node, name)
        return clipped_mean(mean, deviation, low, high)
    if name in ("aten.flatten.using_ints", "aten.view.default", "aten.reshape.default"):
        return _flattened(node, source)
    if name == "aten.add.Tensor" and isinstance(node.args[1], fx.Node):
        one, other = expected(source), expected(node.args[1])
        return None if one is None or other is None or one.shape != other.shape else one + other
    return None


def clipped_mean(mean: Tensor, deviation: Tensor, low: float = 0.0, high: float = math.inf) -> Tensor:
    """Return the mean of a Gaussian variable that is clipped to ``low`` and ``high``, elementwise, float64.

    Args:
        mean: of the variable before.
        deviation: standard deviation before; 0 is a constant.
        low: lower bound, may be infinite.
        high: upper bound, may be infinite.
    """
    mean, deviation = mean.double(), deviation.double()
    safe = torch.where(deviation > 0, deviation, torch.ones_like(deviation))
    below, above = (low - mean) / safe, (high - mean) / safe
    inside = _share(above) - _share(below)
    result = mean * inside + deviation * (_density(below) - _density(above))
    if low > -math.inf:
        result = result + low * _share(below)
    if high < math.inf:
        result = result + high * (1 - _share(above))
    return torch.where(deviation > 0, result, mean.clamp(low, high))


def _share(values: Tensor) -> Tensor:
    """The distribution function of the standard Gaussian."""
    share: Tensor = 0.5 * torch.special.erfc(-values / math.sqrt(2))
    return share


def _density(values: Tensor) -> Tensor:
    return torch.exp(-0.5 * values.square()) / math.sqrt(2 * math.pi)


def _bounds(node: fx.Node, name: str) -> tuple[float, float]:
    if name == "aten.relu.default":
        return 0.0, math.inf
    if name == "aten.relu6.default":
        return 0.0, 6.0
    low, high = argument(node, 1, -1.0 if name == "aten.hardtanh.default" else None), None
    if name != "aten.clamp_min.default":
        high = argument(node, 2, 1.0 if name == "aten.hardtanh.default" else None)
    return (-math.inf if low is None else float(low)), (math.inf if high is None else float(high))


def _flattened(node: fx.Node, source: fx.Node) -> Tensor | None:
    """Channels come first: each mean serves as many features as its channel has places."""
    mean = expected(source)
    before, after = source.meta.get("val"), node.meta.get("val")
    if mean is None or not isinstance(before, Tensor) or not isinstance(after, Tensor) or after.dim() != 2:
        return None
    features = after.shape[1]
    if before.dim() < 3 or before.shape[1] != len(mean) or not isinstance(features, int) or features % len(mean):
        return None
    return mean.repeat_interleave(features // len(mean))


def _over_space(node: fx.Node) -> bool:
    axes, value = node.args[1], node.args[0].meta.get("val")  # type: ignore[union-attr]
    if not isinstance(axes, list | tuple) or not isinstance(value, Tensor):
        return False
    return all(int(axis) % value.dim() >= 2 for axis in axes)  # type: ignore[arg-type]


def _inputs(node: fx.Node, weight: Tensor) -> int:
    """Return how many channels a layer reads."""
    if op_name(node) == "aten.linear.default":
        return weight.shape[1]
    groups = int(argument(node, 6, 1))
    return weight.shape[0] if FOLDABLE[op_name(node)][1] == 1 else weight.shape[1] * groups
