"""Equalization: the same function, even ranges, the paper's closed form for a pair."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))

from correction_nets import Encoder, Separable, close, correct_float, images, uneven

from slim_quant import Scheme, quantize
from slim_quant.preparation import prepare
from slim_quant.ptq.corrections.streams import find_streams


def test_a_pair_of_layers_has_the_closed_form_of_the_paper() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    x = torch.randn(8, 4)
    prepared = prepare(model, (x,))
    correct_float("equalization", prepared, x, iterations=100, tolerance=1e-9)
    first, second = model[0].weight.detach(), model[2].weight.detach()
    factor = (first.abs().amax(1) / second.abs().amax(0)).sqrt()
    state = prepared.graph.state_dict()
    torch.testing.assert_close(state["0.weight"], first / factor[:, None], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(state["0.bias"], model[0].bias.detach() / factor, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(state["2.weight"], second * factor, rtol=1e-5, atol=1e-6)
    assert torch.equal(state["2.bias"], model[2].bias.detach())


@pytest.mark.parametrize("target", ["onnxruntime", "generic"])
def test_depthwise_chains_compute_the_same_and_end_with_even_ranges(target: str) -> None:
    torch.manual_seed(0)
    model, x = uneven(Separable()), images()
    prepared = prepare(model, (x,), target=target)
    correct_float("equalization", prepared, x, iterations=200, tolerance=1e-6)
    with torch.no_grad():
        assert close(prepared.graph(x), model(x))
    state = prepared.graph.state_dict()
    stem = state["features.0.0.weight"].abs().amax((1, 2, 3))
    depthwise = state["features.1.0.0.weight"].abs().amax((1, 2, 3))
    point = state["features.1.1.0.weight"]
    torch.testing.assert_close(stem, depthwise, rtol=1e-3, atol=0)
    torch.testing.assert_close(depthwise, point.abs().amax((0, 2, 3)), rtol=1e-3, atol=0)
    torch.testing.assert_close(point.abs().amax((1, 2, 3)), state["features.2.0.0.weight"].abs().amax((1, 2, 3)),
                               rtol=1e-3, atol=0)  # fmt: skip


def test_a_network_with_uneven_channels_is_saved() -> None:
    """The reason for equalization: with a scale per tensor, what is in small channels would be rounded away."""
    torch.manual_seed(0)
    x = images()
    even = prepare(Separable().eval(), (x,)).graph
    uneven_ = prepare(even, (x,)).graph
    streams = find_streams(uneven_)
    factors = torch.where(torch.from_numpy(streams.free()), 10 ** torch.empty(streams.count).uniform_(-1.5, 1.5), 1.0)
    streams.apply(uneven_, factors)
    options = {"example_inputs": (x,), "weight": Scheme(8, True, "per_tensor"), "samples": len(x)}
    plain = quantize(uneven_, [x], **options).report.sqnr_db
    restored = quantize(uneven_, [x], corrections=["equalization"], **options).report.sqnr_db
    assert restored > plain + 10
    assert restored > quantize(even, [x], **options).report.sqnr_db - 3


class Everything(nn.Module):
    """Residual adds, concatenation, channel splits, flattening, grouped and transposed convolutions, a gate."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.grouped = nn.Conv2d(channels, channels, 3, padding=1, groups=groups)
        self.up = nn.ConvTranspose2d(channels, channels, 2, 2, groups=groups)
        self.left, self.right = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1, bias=False)
        self.gate = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.last = nn.Conv2d(channels, channels, 1)
        self.hidden = nn.Linear(channels * 4, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.grouped(x))
        x = nn.functional.avg_pool2d(nn.functional.leaky_relu(self.up(x), 0.1), 2)
        y = torch.cat([self.left(x), self.right(x)], 1)
        y = y * torch.sigmoid(self.gate(y.mean((2, 3), keepdim=True)))
        one, other = y.chunk(2, 1)
        x = nn.functional.max_pool2d(torch.relu(self.last(nn.functional.silu(one)) + other), 2)
        return self.head(torch.relu(self.hidden(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1))))


@settings(max_examples=6, deadline=None)
@given(st.sampled_from([(4, 1), (4, 2), (6, 3), (4, 4)]), st.integers(0, 1000))
def test_every_network_computes_the_same(sizes: tuple[int, int], seed: int) -> None:
    torch.manual_seed(seed)
    model = Everything(*sizes)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(10 ** torch.empty(len(parameter), *[1] * (parameter.dim() - 1)).uniform_(-1, 1))
    x = images(4)
    prepared = prepare(model.eval(), (x,), target="generic")
    before = {name: tensor.clone() for name, tensor in prepared.graph.state_dict().items()}
    correct_float("equalization", prepared, x)
    with torch.no_grad():
        assert close(prepared.graph(x), model(x))
    after = prepared.graph.state_dict()
    assert not torch.equal(after["stem.weight"], before["stem.weight"])
    assert torch.equal(after["head.bias"], before["head.bias"])


def test_what_can_be_scaled_and_what_not() -> None:
    x = images(4)
    prepared = prepare(Everything(4, 2).eval(), (x,), target="generic")
    streams = find_streams(prepared.graph)
    free = streams.free()
    able = {(use.name, use.kind) for use in streams.uses if free[use.labels].all()}
    names = {name for name, _ in able}
    assert ("stem.weight", "write") in able
    assert ("grouped.weight", "read") in able
    assert ("up.weight", "read") in able
    assert ("hidden.weight", "read") in able  # its 16 inputs are the 4 channels of last, four times
    assert ("head.weight", "write") not in able  # the model's outputs
    assert ("stem.weight", "read") not in able  # the model's inputs
    assert ("last.weight", "read") not in able  # SiLU is not homogeneous
    assert "gate.weight" not in names  # a sigmoid reads it, and what it reads is half frozen
    by_use = {(use.name, use.kind): use.labels for use in streams.uses}
    assert by_use["hidden.weight", "read"].tolist() == by_use["last.weight", "write"].repeat(4).tolist()


def test_layers_that_share_a_weight_are_scaled_once() -> None:
    torch.manual_seed(0)

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.inner(torch.relu(self.inner(x))))
            return self.head(x)

    model, x = Shared(), torch.randn(16, 4)
    prepared = prepare(model, (x,))
    correct_float("equalization", prepared, x)
    with torch.no_grad():
        assert close(prepared.graph(x), model(x))


def test_a_transformer_computes_the_same() -> None:
    torch.manual_seed(0)
    model, x = uneven(Encoder()), torch.randn(8, 5, 6)
    prepared = prepare(model, (x,))
    before = prepared.graph.state_dict()["layers.0.qkv.weight"].clone()
    correct_float("equalization", prepared, x)
    with torch.no_grad():
        assert close(prepared.graph(x), model(x))
    assert not torch.equal(prepared.graph.state_dict()["layers.0.qkv.weight"], before)


def test_statistics_of_folded_batch_norms_are_scaled_too() -> None:
    torch.manual_seed(0)
    model, x = uneven(Separable()), images()
    prepared = prepare(model, (x,))
    stem = next(node for node in prepared.nodes.values() if "statistics" in node.meta)
    mean, deviation = stem.meta["statistics"]
    bias = prepared.graph.state_dict()["features.0.0.bias"].clone()
    correct_float("equalization", prepared, x)
    scaled = prepared.graph.state_dict()["features.0.0.bias"] / bias
    torch.testing.assert_close(stem.meta["statistics"][0], mean * scaled)
    torch.testing.assert_close(stem.meta["statistics"][1], deviation * scaled)
