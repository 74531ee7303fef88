"""Activations rounded by the range of the batch: against ``DynamicQuantizeLinear`` of ONNX written out in numpy."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from slim_quant.dynamic.rounding import integer_product, rounded


def drawn(rows: int, columns: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 3 + shift


def dynamic_quantize_linear(x: np.ndarray) -> tuple[np.ndarray, np.float32, int]:
    """Return integers, scale and zero point, in the words of the operator's definition."""
    low, high = np.float32(min(x.min(), 0)), np.float32(max(x.max(), 0))
    scale = np.float32((high - low) / np.float32(255))
    scale = np.float32(1) if scale == 0 else scale
    zero = int(np.clip(np.rint(np.float32(0 - low / scale)), 0, 255))
    return np.clip(np.rint(x / scale) + zero, 0, 255).astype(np.int64), scale, zero


shifts = st.sampled_from([0.0, 20.0, -20.0, 0.3])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(1, 30), st.integers(0, 2**30), shifts)
def test_a_tensor_is_rounded_as_onnx_says(rows: int, columns: int, seed: int, shift: float) -> None:
    x = drawn(rows, columns, seed, shift)
    integers, scale = rounded(x)
    expected, step, zero = dynamic_quantize_linear(x.numpy())
    assert float(scale) == step
    assert np.array_equal(integers.numpy(), expected - zero)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(1, 30), st.integers(0, 2**30), shifts)
def test_each_token_has_a_scale_and_half_a_step_of_error(rows: int, columns: int, seed: int, shift: float) -> None:
    x = drawn(rows, columns, seed, shift)
    integers, scale = rounded(x, "per_token")
    assert scale.shape == (rows, 1)
    assert int(integers.abs().max()) <= 127
    assert bool(((integers * scale - x).abs() <= 0.5 * scale * (1 + 1e-5)).all())


def test_zeros_and_empty_batches_are_exact() -> None:
    for activations in ("per_tensor", "per_token"):
        assert bool((rounded(torch.zeros(2, 3), activations)[0] == 0).all())  # type: ignore[arg-type]
        assert rounded(torch.zeros(0, 3), activations)[0].shape == (0, 3)  # type: ignore[arg-type]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(1, 200), st.integers(1, 6), st.integers(0, 2**30))
def test_products_are_those_of_integers(rows: int, columns: int, outputs: int, seed: int) -> None:
    x = drawn(rows, columns, seed)
    weight = torch.randint(-127, 128, (outputs, columns), generator=torch.Generator().manual_seed(seed)).float()
    scale = torch.rand(outputs, 1, generator=torch.Generator().manual_seed(seed + 1)) + 0.01
    integers, step, zero = dynamic_quantize_linear(x.numpy())
    exact = (integers - zero) @ weight.numpy().astype(np.int64).T
    expected = exact.astype(np.float32) * (step * scale.numpy().reshape(-1))
    assert np.array_equal(integer_product(x, weight, scale).numpy(), expected)
