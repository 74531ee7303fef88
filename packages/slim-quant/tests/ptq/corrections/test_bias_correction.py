"""Bias corrections: channel means as in the float network; clipped Gaussians against numerical integrals."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))

from correction_nets import Separable, calibrated, close, correct, correct_float, images, uneven

from slim_quant import Scheme, quantize
from slim_quant.graph import tap
from slim_quant.preparation import finish, prepare
from slim_quant.ptq.corrections.absorption import Moments, response
from slim_quant.ptq.corrections.bias_analytic import clipped_mean
from slim_quant.schemes import on_grid


def means(model: nn.Module, x: Tensor, names: list[str]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}

    def keep(name: str, value: Tensor) -> None:
        found[name] = value.double().mean((0, 2, 3)) if value.dim() == 4 else value.double().mean(0)

    tap(model, x, {name: (lambda value, name=name: keep(name, value)) for name in names})  # type: ignore[arg-type]
    return found


def test_every_layer_has_the_means_of_the_float_network() -> None:
    torch.manual_seed(0)
    model, x = Separable().eval(), images(64)
    exact = prepare(model, (x,), target="generic")
    layers = [layer for place in exact.placement.weights for layer in place.layers]
    found = calibrated(model, x, Scheme(3, True, "per_channel"))
    correct("bias_correction", found)
    result = finish(found).model
    before, after = means(exact.graph, x, layers), means(result, x, layers)
    for layer in layers:
        torch.testing.assert_close(after[layer], before[layer], rtol=0, atol=2e-6)


def test_weights_are_left_to_the_rounding() -> None:
    torch.manual_seed(0)
    model, x = Separable().eval(), images(16)
    found = calibrated(model, x)
    before = {name: tensor.clone() for name, tensor in found.prepared.graph.state_dict().items()}
    correct("bias_correction", found)
    after = found.prepared.graph.state_dict()
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]) == name.endswith("weight")


@pytest.mark.parametrize("name", ["bias_correction"])
def test_a_layer_without_bias_gets_one_that_the_record_names(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU())
    x = images(32) + 1
    result = quantize(model, [x], example_inputs=(x,), weight=Scheme(2, True, "per_channel"), samples=32,
                      corrections=[name])  # fmt: skip
    assert result.model.state_dict()["0.bias"].shape == (4,)
    assert result.transform.data["edits"] == [{"kind": "bias", "layer": "conv2d"}]
    plain = quantize(model, [x], example_inputs=(x,), weight=Scheme(2, True, "per_channel"), samples=32)
    assert result.report.sqnr_db > plain.report.sqnr_db


def test_a_network_with_few_bits_comes_closer() -> None:
    torch.manual_seed(0)
    model, x = Separable().eval(), images(128) + 0.5
    options = {"example_inputs": (x,), "weight": Scheme(3, True, "per_channel"), "samples": 128, "target": "generic"}
    plain = quantize(model, [x], **options).report.sqnr_db
    assert quantize(model, [x], corrections=["bias_correction"], **options).report.sqnr_db > plain + 3


@settings(max_examples=60, deadline=None)
@given(st.floats(-4, 4), st.floats(0.05, 3), st.sampled_from([(0.0, math.inf), (0.0, 6.0), (-1.0, 1.0),
                                                              (-math.inf, 2.0)]))  # fmt: skip
def test_the_mean_of_a_clipped_gaussian_is_its_integral(
    mean: float, deviation: float, bounds: tuple[float, float]
) -> None:
    points = np.linspace(mean - 12 * deviation, mean + 12 * deviation, 200_001)
    density = np.exp(-0.5 * ((points - mean) / deviation) ** 2) / (deviation * math.sqrt(2 * math.pi))
    expected = np.trapezoid(np.clip(points, *bounds) * density, points)
    found = clipped_mean(torch.tensor([mean]), torch.tensor([deviation]), *bounds)
    assert float(found) == pytest.approx(expected, abs=1e-5)


def test_a_constant_is_clipped_as_it_is() -> None:
    found = clipped_mean(torch.tensor([-1.0, 2.0, 9.0]), torch.zeros(3), 0.0, 6.0)
    assert found.tolist() == [0.0, 2.0, 6.0]


class Gaussian(nn.Module):
    """A layer whose norm's outputs are exactly Gaussian on Gaussian inputs, a ReLU, a layer."""

    def __init__(self, channels: int = 6) -> None:
        super().__init__()
        self.first = nn.Linear(channels, channels, bias=False)
        self.norm = nn.BatchNorm1d(channels, eps=0.0)
        self.second = nn.Linear(channels, 4)
        with torch.no_grad():
            self.first.weight.copy_(torch.eye(channels))
            self.norm.weight.copy_(torch.linspace(0.5, 2, channels))
            self.norm.bias.copy_(torch.linspace(-1, 2, channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.norm(self.first(x))))


def test_the_analytic_correction_moves_the_bias_by_the_exact_expectation() -> None:
    torch.manual_seed(0)
    model, x = Gaussian().eval(), torch.randn(64, 6)
    found = calibrated(model, x, Scheme(3, True, "per_channel"))
    context = correct("bias_correction_analytic", found)
    gain, shift = model.norm.weight.detach().double(), model.norm.bias.detach().double()
    points = torch.linspace(-10, 10, 100_001, dtype=torch.float64)
    density = torch.exp(-0.5 * points.square()) / math.sqrt(2 * math.pi)
    mean = torch.trapezoid(torch.relu(shift + gain * points[:, None]) * density[:, None], points, dim=0)
    exact = model.second.weight.detach()
    error = on_grid(exact, *found.weights["second.weight"], Scheme(3, True, "per_channel")) - exact
    expected = model.second.bias.detach().double() - error.double() @ mean
    bias = found.prepared.graph.state_dict()["second.bias"].double()
    torch.testing.assert_close(bias, expected, rtol=0, atol=1e-6)
    assert any("first" in note for note in context.notes)  # nothing is known of what it reads


def test_the_analytic_correction_agrees_with_the_measured_one_on_many_samples() -> None:
    torch.manual_seed(0)
    model, x = Gaussian().eval(), torch.randn(60_000, 6)
    options = {"example_inputs": (x[:8],), "weight": Scheme(3, True, "per_channel"),
               "activation": Scheme(8, False), "samples": len(x), "target": "generic"}  # fmt: skip
    analytic = quantize(model, [x], corrections=["bias_correction_analytic"], **options).model
    float_mean = model(x).mean(0).detach()
    with torch.no_grad():
        assert float((analytic(x).mean(0) - float_mean).abs().max()) < 0.02
        plain = quantize(model, [x], **options).model
        assert float((plain(x).mean(0) - float_mean).abs().max()) > 0.05


def test_depthwise_chains_are_corrected_without_data() -> None:
    torch.manual_seed(0)
    model, x = uneven(Separable()), images(8)
    found = calibrated(model, x)
    context = correct("bias_correction_analytic", found)
    (note,) = [line for line in context.notes if "make up" in line]
    assert "5 layers" in note  # all but the stem, through the mean before the head too
    assert any("features.0.0" in line for line in context.notes)


def test_a_constant_input_gives_the_response_of_a_layer() -> None:
    torch.manual_seed(0)
    for layer, side in [(nn.Conv2d(4, 6, 3, groups=2), 5), (nn.ConvTranspose2d(4, 6, 1, groups=2), 5),
                        (nn.Conv2d(4, 4, 3, groups=4), 5)]:  # fmt: skip
        x = torch.randn(1, 4, 1, 1).expand(1, 4, side, side).contiguous()
        prepared = prepare(layer, (x,), target="generic")
        node = next(item for item in prepared.nodes.values() if item.op == "call_function")
        with torch.no_grad():
            expected = (layer(x) - layer.bias.view(1, -1, 1, 1))[0, :, 1, 1]
        torch.testing.assert_close(response(prepared, node, x[0, :, 0, 0]).float(), expected, rtol=1e-5, atol=1e-6)


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 5, 1), nn.Conv2d(5, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


def test_absorption_changes_nothing_where_the_relu_lets_all_through() -> None:
    torch.manual_seed(0)
    model, x = Pair(), torch.rand(32, 3, 8, 8)  # a sum of three uniform values stays within three deviations
    with torch.no_grad():
        model.first.bias.add_(20.0)
    prepared = prepare(model, (x,))
    correct_float("bias_absorption", prepared, x, width=3.0)
    with torch.no_grad():
        assert close(prepared.graph(x), model(x))
    state = prepared.graph.state_dict()
    outputs = nn.functional.conv2d(x, model.first.weight, model.first.bias).detach()
    constant = outputs.mean((0, 2, 3)) - 3 * outputs.transpose(0, 1).flatten(1).std(1, unbiased=False)
    torch.testing.assert_close(state["first.bias"], model.first.bias.detach() - constant, rtol=1e-4, atol=1e-4)
    assert float(state["first.bias"].max()) < 8


def test_absorption_takes_the_statistics_of_the_norm() -> None:
    torch.manual_seed(0)
    model, x = Gaussian().eval(), torch.randn(16, 6)
    with torch.no_grad():
        model.norm.bias.copy_(torch.tensor([10.0, 0.0, 6.0, 3.0, 9.0, -1.0]))
    prepared = prepare(model, (x,))
    before = prepared.graph.state_dict()["first.bias"].clone()
    correct_float("bias_absorption", prepared, x)
    expected = (model.norm.bias - 3 * model.norm.weight).clamp(min=0).detach()
    torch.testing.assert_close(before - prepared.graph.state_dict()["first.bias"], expected)
    moved = prepared.graph.state_dict()["second.bias"] - model.second.bias.detach()
    torch.testing.assert_close(moved, model.second.weight.detach() @ expected)


def test_layers_that_pad_keep_what_they_read() -> None:
    torch.manual_seed(0)
    model, x = uneven(Separable()), images(8)
    prepared = prepare(model, (x,))
    before = {name: tensor.clone() for name, tensor in prepared.graph.state_dict().items()}
    context = correct_float("bias_absorption", prepared, x)
    assert torch.equal(prepared.graph.state_dict()["features.0.0.bias"], before["features.0.0.bias"])
    assert any("pads with zeros" in note for note in context.notes)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=5), st.integers(0, 1000))
def test_streamed_moments_are_those_of_everything(sizes: list[int], seed: int) -> None:
    batches = [torch.randn(size, 3, 2, 2, generator=torch.Generator().manual_seed(seed + at)) + 100
               for at, size in enumerate(sizes)]  # fmt: skip
    moments = Moments(1)
    for batch in batches:
        moments.update(batch)
    rows = torch.cat(batches).transpose(0, 1).flatten(1).double()
    mean, deviation = moments.result()
    torch.testing.assert_close(mean, rows.mean(1).float())
    torch.testing.assert_close(deviation, rows.std(1, unbiased=False).float(), rtol=1e-4, atol=1e-5)
