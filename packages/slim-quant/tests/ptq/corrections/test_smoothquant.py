"""SmoothQuant: exact in float, the paper's factors, and outliers that are smaller after it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))

from correction_nets import Encoder, close, correct_float, images, uneven

from slim_core.errors import SlimError
from slim_quant import quantize
from slim_quant.preparation import prepare
from slim_quant.ptq.corrections import make_correction


@pytest.mark.parametrize("strength", [0.0, 0.5, 0.8, 1.0])
def test_the_network_computes_the_same(strength: float) -> None:
    torch.manual_seed(0)
    model, x = uneven(Encoder()), torch.randn(8, 5, 6)
    prepared = prepare(model, (x,))
    correct_float("smoothquant", prepared, x, strength=strength)
    with torch.no_grad():
        assert close(prepared.graph(x), model(x))


def test_factors_are_those_of_the_paper() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 4))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, 30.0, 0.2, 1.0, 5.0, 1.0]))
    x = torch.randn(32, 6)
    prepared = prepare(model, (x,))
    correct_float("smoothquant", prepared, x, strength=0.7)
    with torch.no_grad():
        seen = model[0](x).abs().amax(0)
    weight = model[1].weight.detach()
    factor = seen**0.7 / weight.abs().amax(0) ** 0.3
    state = prepared.graph.state_dict()
    torch.testing.assert_close(state["1.weight"], weight * factor)
    torch.testing.assert_close(state["0.weight"], model[0].weight.detach() / factor)
    torch.testing.assert_close(state["0.bias"], model[0].bias.detach() / factor)


def test_layers_that_read_the_same_norm_share_its_factors() -> None:
    torch.manual_seed(0)

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.one, self.other = nn.LayerNorm(5), nn.Linear(5, 3), nn.Linear(5, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.norm(x)
            return torch.cat([torch.sigmoid(self.one(x)), torch.tanh(self.other(x))], 1)

    model, x = Two(), torch.randn(32, 5)
    prepared = prepare(model, (x,), target="generic")
    correct_float("smoothquant", prepared, x)
    largest = torch.maximum(model.one.weight.abs().amax(0), model.other.weight.abs().amax(0)).detach()
    factor = (model.norm(x).detach().abs().amax(0) / largest).sqrt()
    torch.testing.assert_close(prepared.graph.state_dict()["one.weight"], model.one.weight.detach() * factor)
    torch.testing.assert_close(prepared.graph.state_dict()["other.weight"], model.other.weight.detach() * factor)


def test_the_values_of_an_attention_are_smoothed_through_it() -> None:
    torch.manual_seed(0)
    model, x = uneven(Encoder()), torch.randn(8, 5, 6)
    prepared = prepare(model, (x,))
    before = {name: tensor.clone() for name, tensor in prepared.graph.state_dict().items()}
    correct_float("smoothquant", prepared, x)
    after = prepared.graph.state_dict()
    width = 16
    ratio = after["layers.0.qkv.bias"] / before["layers.0.qkv.bias"]
    torch.testing.assert_close(ratio[: 2 * width], torch.ones(2 * width))  # queries and keys
    factor = (after["layers.0.out.weight"] / before["layers.0.out.weight"])[0]
    torch.testing.assert_close(1 / ratio[2 * width :], factor)
    assert float((factor - 1).abs().max()) > 0.01
    assert torch.equal(after["layers.0.down.weight"], before["layers.0.down.weight"])  # behind a GELU


def test_outliers_cost_less() -> None:
    torch.manual_seed(0)
    model, x = Encoder(), torch.randn(64, 5, 6)
    with torch.no_grad():
        for layer in model.layers:
            for norm, reader in ((layer.norm1, layer.qkv), (layer.norm2, layer.up)):
                norm.weight[3] = 60.0  # what large language models learn: a channel of very large values
                reader.weight[:, 3] /= 60.0
    plain = quantize(model, [x], example_inputs=(x,), samples=64, observer="min_max").report.sqnr_db
    smooth = quantize(model, [x], example_inputs=(x,), samples=64, observer="min_max",
                      corrections=["smoothquant"]).report.sqnr_db  # fmt: skip
    assert smooth > plain + 3


def test_convolutions_are_left_alone() -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)), images(4)
    prepared = prepare(model, (x,))
    before = {name: tensor.clone() for name, tensor in prepared.graph.state_dict().items()}
    correct_float("smoothquant", prepared, x)
    assert all(torch.equal(tensor, before[name]) for name, tensor in prepared.graph.state_dict().items())


def test_strength_out_of_range_is_an_error() -> None:
    with pytest.raises(SlimError, match="strength"):
        make_correction({"name": "smoothquant", "strength": 1.5})
