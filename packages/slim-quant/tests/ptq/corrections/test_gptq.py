"""GPTQ: against a plain numpy transcription of the paper's algorithm, and never worse than nearest rounding."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))

from correction_nets import FOUR, Separable, as_read, calibrated, correct, images

from slim_core.errors import SlimError
from slim_quant import Scheme, quantize
from slim_quant.ptq.corrections import make_correction
from slim_quant.ptq.corrections.gptq import gptq, squared_error, summed_hessian
from slim_quant.schemes import on_grid

Array = NDArray[np.float64]


def plain(weight: Array, hessian: Array, scale: Array, low: int, high: int, zero: Array, damping: float) -> Array:
    """Algorithm 1 of the paper without blocks, column by column, with the inverse updated by elimination."""
    work, result, count = weight.copy(), np.zeros_like(weight), weight.shape[1]
    matrix = hessian.copy()
    dead = np.diag(matrix) == 0
    level = damping * np.mean(np.diag(matrix))
    matrix[dead, dead] = 1
    work[:, dead] = 0
    inverse = np.linalg.inv(matrix + level * np.eye(count))
    for column in range(count):
        integers = np.clip(np.round(work[:, column] / scale[:, column]) + zero[:, column], low, high)
        result[:, column] = (integers - zero[:, column]) * scale[:, column]
        error = (work[:, column] - result[:, column]) / inverse[column, column]
        work[:, column + 1 :] -= np.outer(error, inverse[column, column + 1 :])
        inverse -= np.outer(inverse[:, column], inverse[column]) / inverse[column, column]
    return result


def problem(outputs: int, inputs: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(1, outputs, inputs, generator=generator, dtype=torch.float64)
    mixed = torch.randn(inputs, inputs, generator=generator, dtype=torch.float64)
    x = mixed @ torch.randn(inputs, 4 * inputs, generator=generator, dtype=torch.float64) + 1
    return weight, (2 / x.shape[1] * x @ x.T).unsqueeze(0)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 20), st.integers(1, 8), st.integers(0, 10**6), st.booleans())
def test_it_is_the_papers_algorithm_for_every_block(
    outputs: int, inputs: int, block: int, seed: int, symmetric: bool
) -> None:
    weight, hessian = problem(outputs, inputs, seed)
    scheme = Scheme(4, symmetric, "per_channel")
    scale = (weight.abs().amax(2, keepdim=True) / 7).expand_as(weight)
    zero = torch.zeros_like(weight) if symmetric else torch.full_like(weight, 8)
    found = gptq(weight, hessian, scale, zero, scheme, damping=0.01, block=block)
    expected = plain(weight[0].numpy(), hessian[0].numpy(), scale[0].numpy(), scheme.qmin, scheme.qmax,
                     zero[0].numpy(), 0.01)  # fmt: skip
    np.testing.assert_allclose(found[0].numpy(), expected, atol=1e-9)


def test_columns_in_order_of_size_are_the_algorithm_on_permuted_columns() -> None:
    weight, hessian = problem(4, 12, 0)
    scale = (weight.abs().amax(2, keepdim=True) / 7).expand_as(weight)
    order = torch.argsort(hessian[0].diagonal(), descending=True)
    found = gptq(weight, hessian, scale, torch.zeros_like(weight), FOUR, by_size=True)
    expected = plain(weight[0][:, order].numpy(), hessian[0][order][:, order].numpy(), scale[0].numpy(), -7, 7,
                     np.zeros((4, 12)), 0.01)  # fmt: skip
    np.testing.assert_allclose(found[0][:, order].numpy(), expected, atol=1e-9)


def test_groups_are_rounded_each_by_itself() -> None:
    parts = [problem(3, 9, seed) for seed in range(4)]
    weight, hessian = (torch.cat(items) for items in zip(*parts, strict=True))
    scale = (weight.abs().amax(2, keepdim=True) / 7).expand_as(weight)
    zero = torch.zeros_like(weight)
    together = gptq(weight, hessian, scale, zero, FOUR)
    single = [gptq(weight[at : at + 1], hessian[at : at + 1], scale[at : at + 1], zero[at : at + 1], FOUR)
              for at in range(4)]  # fmt: skip
    torch.testing.assert_close(together, torch.cat(single))


def test_an_input_that_is_always_zero_has_weights_of_zero() -> None:
    weight, hessian = problem(3, 6, 0)
    hessian[:, 2], hessian[:, :, 2] = 0, 0
    scale = (weight.abs().amax(2, keepdim=True) / 7).expand_as(weight)
    found = gptq(weight, hessian, scale, torch.zeros_like(weight), FOUR)
    assert float(found[:, :, 2].abs().max()) == 0
    assert torch.isfinite(found).all()


def test_hessian_and_error_are_those_of_the_outputs() -> None:
    torch.manual_seed(0)
    x, change = torch.randn(2, 5, 40), torch.randn(2, 3, 5)
    hessian = summed_hessian([x[:, :, :10], x[:, :, 10:]])
    torch.testing.assert_close(hessian, (2 / 40 * x @ x.transpose(1, 2)).double(), rtol=1e-5, atol=1e-5)
    expected = (change @ x).square().mean(2).double()
    torch.testing.assert_close(squared_error(change, hessian), expected, rtol=1e-4, atol=1e-5)


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 1000), st.sampled_from(["activation", "natural"]),
       st.sampled_from([FOUR, Scheme(2, True, "per_tensor"), Scheme(3, False, "per_channel"),
                        Scheme(4, True, "per_group", 4)]))  # fmt: skip
def test_no_output_of_a_layer_is_worse_than_with_nearest_rounding(seed: int, order: str, scheme: Scheme) -> None:
    torch.manual_seed(seed)
    model = nn.Linear(10, 6, bias=False)
    x = torch.randn(64, 10) @ torch.randn(10, 10)
    found = calibrated(model, x, scheme)
    exact = model.weight.detach().clone()
    (place,) = found.prepared.placement.weights
    nearest = on_grid(exact, *found.weights["weight"], scheme, place.along(scheme))
    correct("gptq", found, order=order)
    weight = found.prepared.graph.state_dict()["weight"]
    seen = as_read(found, x)

    def error(rounded: Tensor) -> Tensor:
        return (seen.double() @ (rounded - exact).double().T).square().sum(0)

    assert bool((error(weight) <= error(nearest) * (1 + 1e-5)).all())
    assert torch.equal(on_grid(weight, *found.weights["weight"], scheme, place.along(scheme)), weight)


def test_convolutions_come_closer_to_the_float_network() -> None:
    torch.manual_seed(0)
    model, x = Separable().eval(), images(128)
    options = {"example_inputs": (x,), "weight": Scheme(3, True, "per_channel"), "samples": 128, "target": "generic"}
    plain_ = quantize(model, [x], **options).report.sqnr_db
    rounded = quantize(model, [x], corrections=["gptq"], **options).report
    assert rounded.sqnr_db > plain_ + 3
    (note,) = [line for line in rounded.notes if line.startswith("gptq")]
    assert 0 < float(note.split("falls to ")[1].split(" %")[0]) < 100


def test_what_is_no_product_is_rounded_to_nearest_with_a_note() -> None:
    torch.manual_seed(0)
    model, x = nn.ConvTranspose2d(3, 4, 2, 2), images(8)
    found = calibrated(model, x)
    exact = model.weight.detach().clone()
    context = correct("gptq", found)
    expected = on_grid(exact, *found.weights["weight"], FOUR, 1)
    assert torch.equal(found.prepared.graph.state_dict()["weight"], expected)
    assert any("weight is rounded to nearest" in note for note in context.notes)


@pytest.mark.parametrize("options", [{"damping": 0.0}, {"block": 0}, {"order": "size"}])
def test_options_out_of_range_are_errors(options: dict[str, object]) -> None:
    with pytest.raises(SlimError):
        make_correction({"name": "gptq", **options})
