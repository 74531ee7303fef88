"""The arithmetic of training: values against torch, gradients against formulas and finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from slim_quant.qat.activations import gradient_factor
from slim_quant.qat.functions import FakeQuantize, LearnedFakeQuantize, Relative, WeightOnGrid
from slim_quant.schemes import Scheme, on_grid, qparams


def draw(count: int, spread: float, seed: int = 0) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed)) * spread


@settings(max_examples=60, deadline=None)
@given(
    bits=st.integers(2, 8), symmetric=st.booleans(), low=st.floats(-50, 0), width=st.floats(1e-3, 100),
    seed=st.integers(0, 1000),
)  # fmt: skip
def test_values_and_gradients_are_those_of_torch(
    bits: int, symmetric: bool, low: float, width: float, seed: int
) -> None:
    scheme = Scheme(bits, symmetric)
    scale, zero_point = qparams(torch.tensor(low), torch.tensor(low + width), scheme)
    values = torch.cat([draw(500, width, seed), (torch.arange(-300, 300) + 0.5) * scale])  # with ties
    grad = draw(len(values), 1.0, 7)
    found = values.clone().requires_grad_()
    mine = FakeQuantize.apply(found, scale, zero_point.float(), scheme.qmin, scheme.qmax, None)
    mine.backward(grad)
    other = values.clone().requires_grad_()
    torchs = torch.fake_quantize_per_tensor_affine(other, scale, zero_point, scheme.qmin, scheme.qmax)
    torchs.backward(grad)
    assert torch.equal(mine, torchs)
    away = (
        (values / scale).frac().abs() - 0.5
    ).abs() > 1e-3  # a tie at the very end is in for one and out for the other
    assert torch.equal(found.grad[away], other.grad[away])


def lsq(values: Tensor, scale: Tensor, zero_point: float, qmin: int, qmax: int, factor: float) -> Tensor:
    """LSQ as its paper writes it, from detached parts: autograd differentiates the rest."""
    scale = scale * factor + (scale - scale * factor).detach()
    level = (values / scale).clamp(qmin - zero_point, qmax - zero_point)
    return (level + (level.round() - level).detach()) * scale


@pytest.mark.parametrize(
    ("bits", "symmetric", "zero_point"), [(8, True, 0), (4, True, 0), (8, False, 0), (3, False, 5)]
)
def test_the_gradients_of_lsq_are_those_of_its_formula(bits: int, symmetric: bool, zero_point: int) -> None:
    scheme, values, grad = Scheme(bits, symmetric), draw(400, 1.0).double(), draw(400, 1.0, 3).double()
    found, written = [], []
    for function, kept in ((None, found), (lsq, written)):
        v = values.clone().requires_grad_()
        s = torch.tensor(2.0 / 2**bits, dtype=torch.float64, requires_grad=True)
        if function is None:
            zero = torch.tensor(float(zero_point), dtype=torch.float64)
            result = LearnedFakeQuantize.apply(v, s, None, zero, scheme.qmin, scheme.qmax, 0.01, True, None)
        else:
            result = function(v, s, float(zero_point), scheme.qmin, scheme.qmax, 0.01)
        (result * grad).sum().backward()
        kept.extend([result.detach(), v.grad, s.grad])
    for one, other in zip(found, written, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("offset", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_gradients_are_the_slopes_of_the_surrogate(offset: bool, residual: bool) -> None:
    """With the roundings held as constants, the quantizer is smooth: its slopes by finite differences."""
    scheme, values, grad = Scheme(4, False), draw(300, 1.0).double(), draw(300, 1.0, 3).double()
    scale, shift = torch.tensor(0.11, dtype=torch.float64), torch.tensor(-0.55, dtype=torch.float64)
    zero_point = torch.round(-shift / scale)
    low, high = ((end - zero_point) * scale for end in (scheme.qmin, scheme.qmax))
    within = (values > low) & (values < high)
    remainder = torch.round(values / scale) - values / scale  # what the rounding adds, held

    def surrogate(s: Tensor, b: Tensor) -> Tensor:
        inner = (values / s + remainder) * s if residual else values + remainder * scale
        ends = torch.where(values <= low, float(scheme.qmin), float(scheme.qmax)).double()
        outer = ends * s + b if offset else (ends - zero_point) * s
        return (torch.where(within, inner, outer) * grad).sum()

    s, b = scale.clone().requires_grad_(), shift.clone().requires_grad_()
    result = LearnedFakeQuantize.apply(
        values, s, b if offset else None, zero_point, scheme.qmin, scheme.qmax, 1.0, residual, None
    )
    (result * grad).sum().backward()
    step = 1e-6
    slope = (surrogate(scale + step, shift) - surrogate(scale - step, shift)) / (2 * step)
    assert float(s.grad) == pytest.approx(float(slope), rel=1e-6)
    if offset:
        slope = (surrogate(scale, shift + step) - surrogate(scale, shift - step)) / (2 * step)
        assert float(b.grad) == pytest.approx(float(slope), rel=1e-6)


def test_pact_moves_the_clipping_value_by_what_is_clipped_alone() -> None:
    values, grad = torch.tensor([-1.0, 0.3, 1.5, 2.5, 9.0]), torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])
    alpha = torch.tensor(2.0, requires_grad=True)
    result = LearnedFakeQuantize.apply(values, alpha / 255, None, torch.tensor(0.0), 0, 255, 1.0, False, None)
    (result * grad).sum().backward()
    assert float(alpha.grad) == pytest.approx(8 + 16)


@pytest.mark.parametrize("clip", [(0.0, float("inf")), (0.0, 0.6), (-0.4, 0.3)])
@pytest.mark.parametrize("zero_point", [0, 6])
def test_a_relu_in_the_same_pass_is_a_relu_before(clip: tuple[float, float], zero_point: int) -> None:
    scheme, grad = Scheme(4, False), draw(400, 1.0, 3)
    found = []
    for fused in (True, False):
        v = draw(400, 1.0).requires_grad_()
        s, b = torch.tensor(0.09, requires_grad=True), torch.tensor(-0.09 * zero_point, requires_grad=True)
        zero, before = torch.tensor(float(zero_point)), v if fused else v.clamp(*clip)
        ends, own = (scheme.qmin, scheme.qmax), clip if fused else None
        learned = LearnedFakeQuantize.apply(before, s, b, zero, *ends, 0.5, True, own)
        fixed = FakeQuantize.apply(before, s.detach(), zero, *ends, own)
        ((learned + 2 * fixed) * grad).sum().backward()
        found.append((learned.detach(), fixed.detach(), v.grad, s.grad, b.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scheme", [
    Scheme(4, True), Scheme(4, True, "per_channel"), Scheme(4, False, "per_channel"), Scheme(4, True, "per_group", 5),
])  # fmt: skip
def test_weights_lie_on_their_grid_and_have_the_gradients_of_lsq(scheme: Scheme) -> None:
    weight, grad = draw(8 * 12, 1.0).view(8, 12).double(), draw(8 * 12, 1.0, 3).view(8, 12).double()
    axis = 1 if scheme.granularity == "per_group" else 0
    shape = {"per_tensor": (), "per_channel": (8,), "per_group": (8, 3)}[scheme.granularity]
    start = 0.1 + 0.1 * torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    zero = torch.full(shape, 0 if scheme.symmetric else 7, dtype=torch.int32)
    found, scale = weight.clone().requires_grad_(), start.clone().requires_grad_()
    result = WeightOnGrid.apply(found, scale, zero, scheme, axis, 0.5)
    (result * grad).sum().backward()
    assert torch.equal(result, on_grid(weight, start, zero, scheme, axis))
    wide = {
        "per_tensor": lambda s: s,
        "per_channel": lambda s: s[:, None],
        "per_group": lambda s: s.repeat_interleave(5, 1)[:, :12],
    }[scheme.granularity]
    written, own = weight.clone().requires_grad_(), start.clone().requires_grad_()
    (lsq(written, wide(own), float(zero.flatten()[0]), scheme.qmin, scheme.qmax, 0.5) * grad).sum().backward()
    torch.testing.assert_close(found.grad, written.grad)
    torch.testing.assert_close(scale.grad, own.grad)


def test_a_relative_value_moves_as_far_as_the_value_itself_would() -> None:
    start, slope, lr = torch.tensor([0.002, 3.0]), torch.tensor([1e-3, 0.5]), 0.1
    ratio = torch.ones(2, requires_grad=True)
    (Relative.apply(ratio, start) * slope).sum().backward()
    moved = (ratio.detach() - lr * ratio.grad) * start
    torch.testing.assert_close(moved, start - lr * slope)


def test_a_relative_value_moves_by_at_most_the_learning_rate_of_where_it_began() -> None:
    ratio = torch.ones((), requires_grad=True)
    (Relative.apply(ratio, torch.tensor(0.002)) * 500.0).backward()
    assert float(ratio.grad) == 1.0


def test_the_factor_is_that_of_the_paper() -> None:
    assert gradient_factor(576, Scheme(4, True)) == pytest.approx(1 / math.sqrt(576 * 7))
    assert gradient_factor(1, Scheme(8, False)) == pytest.approx(1 / math.sqrt(255))
