"""Fake quantization with gradients: autograd functions for training. No modules, no state.

``torch.fake_quantize_*``, which the converted model uses, rounds element by element, and takes ten times as long on a
CPU as the few vectorized passes here. Both give the same floats, bit for bit.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function

from slim_quant.schemes import Scheme, on_grid, spread

#: Ends of a ReLU that is done together with the rounding after it; ``None``: there is none.
Clip = tuple[float, float] | None

#: The least scale that training can reach: a learned one that falls below counts as this.
LEAST_SCALE = 1e-8


class FakeQuantize(Function):
    """Quantize and dequantize with a given scale; straight-through gradient (Bengio et al., 2013, arXiv 1308.3432).

    The gradient passes where the rounded value lies within the integers, and is zero where it saturates.
    """

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, clip: Clip
    ) -> Tensor:
        """Return the representable values.

        Args:
            ctx: torch's.
            values: any shape.
            scale: 0-dimensional.
            zero_point: 0-dimensional, a whole number in floating point.
            qmin: the least integer.
            qmax: the largest one.
            clip: the ends of a ReLU before it, which is done in the same pass; ``None``: there is none.
        """
        ctx.save_for_backward(values, scale, zero_point)
        ctx.ends, ctx.clip = (qmin - 0.5, qmax + 0.5), clip
        return rounded(values, scale, zero_point, qmin, qmax, clip)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        values, scale, zero_point = ctx.saved_tensors
        low, high = ((end - zero_point) * scale for end in ctx.ends)
        return inside(grads[0], values, low, high, ctx.clip), None, None, None, None, None


class LearnedFakeQuantize(Function):
    """Quantize and dequantize with a scale, and perhaps an offset, that are learned.

    With ``n``, ``p`` the ends of the integers, ``z`` the zero point and ``v`` a value, the gradient of the result is

    * to ``v``: 1 inside ``((n - z) scale, (p - z) scale)``, else 0;
    * to the scale: ``round(v / scale) - v / scale`` inside, ``n - z`` or ``p - z`` outside (LSQ: Esser et al., 2020,
      arXiv 1902.08153);
    * to the offset ``-z scale``: 0 inside, 1 outside, and the scale's outside is then ``n`` or ``p`` (LSQ+: Bhalgat et
      al., 2020, arXiv 2004.09576).

    Without ``residual`` the scale has no gradient from values inside: that is PACT's clipping (Choi et al., 2018,
    arXiv 1805.06085).
    """

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, scale: Tensor, offset: Tensor | None, zero_point: Tensor, qmin: int, qmax: int,
        factor: float, residual: bool, clip: Clip,
    ) -> Tensor:  # fmt: skip
        """Return the representable values.

        Args:
            ctx: torch's.
            values: any shape.
            scale: 0-dimensional, at least :data:`LEAST_SCALE`.
            offset: the learned offset that ``zero_point`` was rounded from, or ``None``.
            zero_point: 0-dimensional, a whole number in floating point.
            qmin: the least integer.
            qmax: the largest one.
            factor: what the gradients of scale and offset are multiplied by.
            residual: has the rounding error of the values inside a gradient?
            clip: see :class:`FakeQuantize`.
        """
        result = rounded(values, scale, zero_point, qmin, qmax, clip)
        ctx.save_for_backward(values, scale, zero_point, result)
        ctx.ends, ctx.factor, ctx.residual, ctx.with_offset = (qmin, qmax), factor, residual, offset is not None
        ctx.clip = clip
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        values, scale, zero_point, result = ctx.saved_tensors
        low, high = ((end - zero_point) * scale for end in ctx.ends)
        clipped = values if ctx.clip is None else values.clamp(*ctx.clip)
        passed = inside(grads[0], clipped, low, high)
        stopped = grads[0] - passed
        to_offset = stopped.sum() if ctx.with_offset else None
        terms = stopped.mul_(result)
        if ctx.residual:
            terms.addcmul_(passed, result - clipped)
        to_scale = terms.sum() / scale
        if to_offset is not None:
            to_scale = to_scale + zero_point * to_offset
            to_offset = to_offset * ctx.factor
        if ctx.clip is not None:
            passed = inside(passed, values, *(values.new_tensor(end) for end in ctx.clip))
        return passed, to_scale * ctx.factor, to_offset, None, None, None, None, None, None


class Relative(Function):
    """``ratio * start``: a positive value that is learned relative to where it began.

    The gradient to the ratio is that of the value *divided* by ``start``, so that a step of gradient descent moves the
    value itself as far as if it were the parameter; and it is at most 1, so that the value moves by at most ``lr`` of
    where it began. An optimizer that normalizes gradients (Adam) moves it by ``lr`` of where it began too; with the
    value as the parameter, it would move a scale of 0.001 and one of 1 by the same amount.
    """

    @staticmethod
    def forward(ctx: Any, ratio: Tensor, start: Tensor) -> Tensor:
        """Return the value.

        Args:
            ctx: torch's.
            ratio: any shape; 1 at the beginning.
            start: of that shape.
        """
        ctx.save_for_backward(start)
        return ratio * start

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (start,) = ctx.saved_tensors
        return (grads[0] / start).clamp(-1, 1), None


class WeightOnGrid(Function):
    """Move a weight onto its grid: scales per tensor, channel or group, with LSQ's gradients where they are learned.

    The gradient to the weight passes within the grid. With ``factor`` ``None`` the scales are those of the weight's own
    extremes: everything is within.
    """

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, scale: Tensor, zero_point: Tensor, scheme: Scheme, axis: int, factor: float | None
    ) -> Tensor:
        """Return the nearest representable values, as :func:`slim_quant.schemes.on_grid` does."""
        result = laid_out(on_grid(weight, scale, zero_point, scheme, axis), weight)
        if factor is not None:
            ctx.save_for_backward(weight, scale, zero_point, result)
        ctx.scheme, ctx.axis, ctx.factor = scheme, axis, factor
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        grad = grads[0]
        if ctx.factor is None:
            return grad, None, None, None, None, None
        weight, scale, zero_point, result = ctx.saved_tensors
        scheme, axis = ctx.scheme, ctx.axis
        wide, zeros = (spread(item, weight, axis, scheme.group_size) for item in (scale, zero_point))
        within = (weight > (scheme.qmin - zeros) * wide) & (weight < (scheme.qmax - zeros) * wide)
        passed = grad * within
        terms = (passed * (result - weight) + (grad - passed) * result) / wide
        return passed, _gathered(terms, scale, axis, scheme) * ctx.factor, None, None, None, None


def rounded(values: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, clip: Clip = None) -> Tensor:
    """Return what ``torch.fake_quantize_per_tensor_affine`` returns, of the clipped values, to the bit."""
    factor = scale.reciprocal()
    if values.is_cpu:  # clipping first takes three passes less, and gives the same integers
        low, high = ((end - float(zero_point)) * float(scale) for end in (qmin, qmax))
        if clip is not None:
            low, high = max(low, clip[0]), min(high, clip[1])
        return values.clamp(low, high).mul_(factor).round_().mul_(scale)
    result = values * factor if clip is None else values.clamp(*clip).mul_(factor)
    result.round_().add_(zero_point).clamp_(qmin, qmax).sub_(zero_point).mul_(scale)
    return result


def laid_out(tensor: Tensor, like: Tensor) -> Tensor:
    """Return ``tensor`` with exactly the strides of ``like``.

    Arithmetic loses the layout of depthwise and 1x1 weights, for which NCHW and NHWC mean the same; convolutions choose
    theirs by the strides.
    """
    return tensor if tensor.stride() == like.stride() else torch.empty_like(like).copy_(tensor)


def inside(grad: Tensor, values: Tensor, low: Tensor, high: Tensor, clip: Clip = None) -> Tensor:
    """Return ``grad`` where ``low < values < high``, and within ``clip``, else 0."""
    if values.is_cpu:  # one pass; elsewhere reading the ends would wait for the device
        ends = float(low), float(high)
        if clip is not None:
            ends = max(ends[0], clip[0]), min(ends[1], clip[1])
        return cast(Tensor, torch.ops.aten.hardtanh_backward(grad, values, *ends))
    if clip is not None:
        low, high = low.clamp(min=clip[0]), high.clamp(max=clip[1])
    return grad * ((values > low) & (values < high))


def _gathered(terms: Tensor, like: Tensor, axis: int, scheme: Scheme) -> Tensor:
    """Return the sums over what shares a scale, in the shape of the scales."""
    if like.dim() == 0:
        return terms.sum()
    if scheme.group_size is not None:
        groups = torch.arange(terms.shape[axis], device=terms.device) // scheme.group_size
        return torch.zeros_like(like).index_add_(axis, groups, terms)
    return terms.transpose(0, axis).flatten(1).sum(1)
