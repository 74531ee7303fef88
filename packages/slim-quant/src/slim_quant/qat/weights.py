"""Fake-quantizers of weights, as modules of a prepared model; with the batch norm that follows, live until frozen.

How batch norm and quantization meet, where a layer has both:

* **live**: the batch norm normalizes with the batch's statistics, as in float training, and the weight is rounded to
  the grid that the folded weight will have. With one scale per channel that grid is its own; with one scale for
  all, the weight is multiplied with ``gain / sigma`` of the running statistics, rounded, and divided again. One
  convolution (Krishnamoorthi, 2018, arXiv 1806.08342, whose correction of the folded convolution comes to the same).
* **batch**: weight and bias are folded with the batch's statistics, which a first convolution in float computes (Jacob
  et al., 2018, arXiv 1712.05877). Two convolutions.
* **frozen**, and whenever the model does not train: folded with the running statistics, in float64, as in the file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from slim_quant.fold import folded
from slim_quant.observers import weight_range
from slim_quant.qat.activations import ActivationQuantizer, gradient_factor, positive
from slim_quant.qat.functions import WeightOnGrid, laid_out
from slim_quant.schemes import SMALLEST_SCALE, Scheme, qparams

#: gains below this count as 1 where a weight is divided by them: its channel is constant
_NO_GAIN = 1e-20


@dataclass(frozen=True, slots=True)
class Norm:
    """The batch norm after a layer.

    Args:
        momentum, eps: its settings.
        groups: of a transposed convolution, whose channels lie along the weight's second axis in groups; else 1.
        axis: of the output channels in the weight.
        batch: fold with the batch's statistics.
    """

    momentum: float
    eps: float
    groups: int = 1
    axis: int = 0
    batch: bool = False


class WeightQuantizer(nn.Module):
    """Rounds a weight to its grid, and folds the batch norm after its layer, if it has one.

    Args:
        scheme: the grid; ``None`` for a layer that stays in float: then only the batch norm is folded.
        axis: along which its scales lie.
        norm: the batch norm.
        learned: shape of the learned scales (LSQ: Esser et al., 2020, arXiv 1902.08153); ``None``: they follow the
            weight's largest values, channel by channel, at every step.
        layer: with ``norm.batch``: calls the layer, ``(values, weight, bias) -> outputs``.
        device: where its tensors are.
    """

    start: Tensor
    zero_point: Tensor

    def __init__(
        self, scheme: Scheme | None, axis: int, norm: Norm | None = None, *, learned: tuple[int, ...] | None = None,
        layer: LayerCall | None = None, device: torch.device | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.scheme, self.axis, self.norm, self.layer = scheme, axis, norm, layer
        self.quantizing = self.live = True
        self.used: tuple[Tensor, ...] = ()
        self.learns = learned is not None
        if learned is not None:
            self.ratio = nn.Parameter(torch.ones(learned, device=device))
            self.register_buffer("start", torch.ones(learned, device=device))
            self.register_buffer("zero_point", torch.zeros(learned, dtype=torch.int32, device=device))

    @property
    def own_grid(self) -> bool:
        """Whether the folded weight's grid is that of the weight itself, channel by channel."""
        scheme = self.scheme
        mixed = self.norm is not None and self.norm.groups > 1  # one scale for channels of several gains
        return scheme is not None and scheme.symmetric and scheme.granularity == "per_channel" and not mixed

    def forward(
        self, weight: Tensor, bias: Tensor | None = None, gain: Tensor | None = None, shift: Tensor | None = None,
        mean: Tensor | None = None, var: Tensor | None = None, values: Tensor | None = None,
    ) -> Any:  # fmt: skip
        """Return the weight for the layer to compute with; with a batch norm, weight and bias.

        Args:
            weight: the layer's.
            bias: the layer's.
            gain: the batch norm's, like ``shift``.
            shift: see ``gain``.
            mean: the running one, like ``var``; updated where it folds with the batch's statistics.
            var: see ``mean``.
            values: what the layer reads, where it folds with the batch's statistics.
        """
        if self.norm is None:
            return self.on_grid(weight)
        assert mean is not None  # noqa: S101 - the graph passes them with a norm
        assert var is not None  # noqa: S101
        if not (self.training and self.live):
            wide, moved = self.fold(weight, bias, mean, var, gain, shift)
            return laid_out(self.on_grid(wide, self._factor(gain, var)), weight), moved
        if self.norm.batch:
            assert values is not None  # noqa: S101
            own = self._statistics(values, weight, bias, mean, var)
            wide, moved = self.fold(weight, bias, *own, gain, shift)
            return laid_out(self.on_grid(wide, self._factor(gain, own[1])), weight), moved
        if self.own_grid or not self.quantizing or self.scheme is None:
            return self.on_grid(weight), bias
        factor = self._along(self._factor(gain, var), weight)
        return laid_out(self.on_grid(weight * factor) / factor, weight), bias

    def on_grid(self, weight: Tensor, factor: Tensor | None = None) -> Tensor:
        """Return the weight on its grid, with gradients.

        Args:
            weight: the layer's, or the folded one.
            factor: what the channels of a folded weight were multiplied by.
        """
        self.used = ()
        if self.scheme is None or not self.quantizing:
            return weight + 0.0 * self.ratio.sum() if self.learns and torch.is_grad_enabled() else weight
        scale, zero_point = self.scale_and_zero_point(weight, factor)
        self.used = (scale.detach(),)
        count = weight.numel() // max(1, scale.numel())
        learned = gradient_factor(count, self.scheme) if self.learns else None
        result: Tensor = WeightOnGrid.apply(weight, scale, zero_point, self.scheme, self.axis, learned)  # type: ignore[no-untyped-call]
        return result

    def scale_and_zero_point(self, weight: Tensor, factor: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return scale and zero point of ``weight``; see :meth:`on_grid`."""
        assert self.scheme is not None  # noqa: S101 - the callers look
        if not self.learns:
            low, high = weight_range(weight.detach(), self.scheme, self.axis)
            return qparams(low, high, self.scheme)
        scale = positive(self.ratio, self.start)
        if factor is not None and self.own_grid:
            wide = (scale.double() * factor.abs()).float()
            scale = torch.where(factor == 0, torch.ones_like(wide), wide.clamp(min=SMALLEST_SCALE))
        return scale, self.zero_point

    def deployed(
        self, weight: Tensor, bias: Tensor | None = None, gain: Tensor | None = None, shift: Tensor | None = None,
        mean: Tensor | None = None, var: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Return scale and zero point of the weight as it is deployed: folded with the running statistics."""
        if self.norm is None or mean is None or var is None:
            return self.scale_and_zero_point(weight)
        wide, _ = self.fold(weight, bias, mean, var, gain, shift)
        return self.scale_and_zero_point(wide, self._factor(gain, var))

    def fold(
        self, weight: Tensor, bias: Tensor | None, mean: Tensor, var: Tensor, gain: Tensor | None, shift: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return weight and bias of the layer and its batch norm in one."""
        assert self.norm is not None  # noqa: S101 - the callers look
        return folded(weight, bias, mean, var, gain, shift, self.norm.eps, self.norm.axis, self.norm.groups)

    @torch.no_grad()
    def begin(self, weight: Tensor, gain: Tensor | None, var: Tensor | None, observer: str) -> None:
        """Set learned scales to what ``observer`` finds in the weight as it is."""
        if not self.learns or self.scheme is None:
            return
        if self.norm is not None and not self.own_grid and var is not None:
            weight = weight * self._along(self._factor(gain, var), weight)
        scale, zero_point = qparams(*weight_range(weight, self.scheme, self.axis, observer), self.scheme)
        self.ratio.fill_(1)
        self.start.copy_(scale)
        self.zero_point.copy_(zero_point)

    def _factor(self, gain: Tensor | None, var: Tensor | None) -> Tensor | None:
        """Return ``gain / sigma`` per output channel, in float64 and without gradients."""
        if self.norm is None or var is None:
            return None
        return (1.0 if gain is None else gain.detach().double()) / torch.sqrt(var.detach().double() + self.norm.eps)

    def _along(self, factor: Tensor | None, weight: Tensor) -> Tensor:
        """Return the factor in a shape that multiplies the weight, for dividing by it too."""
        assert factor is not None  # noqa: S101
        assert self.norm is not None  # noqa: S101
        factor = torch.where(factor.abs() < _NO_GAIN, torch.ones_like(factor), factor).to(weight.dtype)
        if self.norm.axis == 0:
            return factor.view(-1, *[1] * (weight.dim() - 1))
        rows = factor.view(self.norm.groups, 1, -1).expand(-1, weight.shape[0] // self.norm.groups, -1)
        return rows.reshape(weight.shape[0], -1, *[1] * (weight.dim() - 2))

    def _statistics(
        self, values: Tensor, weight: Tensor, bias: Tensor | None, mean: Tensor, var: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return mean and variance of the layer's outputs over the batch; update the running ones."""
        assert self.norm is not None  # noqa: S101
        assert self.layer is not None  # noqa: S101
        outputs = self.layer(values, weight, bias).float()
        axes = [axis for axis in range(outputs.dim()) if axis != 1]
        own_var, own_mean = torch.var_mean(outputs, axes, correction=0)
        count = outputs.numel() // outputs.shape[1]
        with torch.no_grad():
            mean.lerp_(own_mean.to(mean.dtype), self.norm.momentum)
            var.lerp_((own_var * (count / max(1, count - 1))).to(var.dtype), self.norm.momentum)
        return own_mean, own_var

    def extra_repr(self) -> str:
        grid = "float" if self.scheme is None else f"bits={self.scheme.bits}, {self.scheme.granularity}"
        return f"{grid}{', learned' if self.learns else ''}{', batch norm' if self.norm is not None else ''}"


class BiasQuantizer(nn.Module):
    """Rounds a bias, outside of training, to the steps in which the runtime adds it as an integer.

    Args:
        source: the quantizer of what the layer reads.
        weight: the quantizer of the layer's weight.
    """

    def __init__(self, source: ActivationQuantizer, weight: WeightQuantizer) -> None:
        super().__init__()
        self.others = (source, weight)  # in a tuple: they are not its submodules

    def forward(self, bias: Tensor) -> Tensor:
        """Return the bias for the layer to compute with."""
        source, weight = self.others
        if self.training or not weight.used or not source.quantizing:
            return bias
        scale, _ = source.current or source.scale_and_zero_point()
        step = scale.double() * weight.used[0].double()
        moved = (torch.round(bias.detach().double() / step) * step).to(bias.dtype)
        return bias + (moved - bias).detach() if torch.is_grad_enabled() and bias.requires_grad else moved


class LayerCall:
    """Calls a layer's operator on other values: what the graph's node does.

    Args:
        operator: the ATen operator.
        arguments: what comes after weight and bias: stride, padding and so on.
    """

    def __init__(self, operator: Callable[..., Tensor], arguments: tuple[Any, ...]) -> None:
        self.operator, self.arguments = operator, arguments

    def __call__(self, values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self.operator(values, weight, bias, *self.arguments)

    def __deepcopy__(self, memo: dict[int, Any]) -> LayerCall:
        return self  # it holds no tensors, and operators cannot be copied


class LiveNorm(nn.Module):
    """A batch norm that normalizes while it is live and the model trains; folded into its layer otherwise.

    Args:
        norm: its settings.
    """

    def __init__(self, norm: Norm) -> None:
        super().__init__()
        self.norm = norm
        self.live = True

    def forward(self, values: Tensor, gain: Tensor | None, shift: Tensor | None, mean: Tensor, var: Tensor) -> Tensor:
        """Return the normalized values, and update the running statistics; or the values, where it is folded."""
        if not (self.training and self.live):
            return values
        return nn.functional.batch_norm(values, mean, var, gain, shift, True, self.norm.momentum, self.norm.eps)

    def extra_repr(self) -> str:
        return f"momentum={self.norm.momentum}, eps={self.norm.eps}"


__all__ = ["BiasQuantizer", "LayerCall", "LiveNorm", "Norm", "WeightQuantizer"]
