"""``quantize_dynamic`` on models: what becomes dynamic, and that it computes what numpy does."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence
from weight_nets import Encoder, Sequence, encoder, tokens

from slim_core.errors import ModelError, PatternError, SlimError
from slim_quant import Override, Scheme, quantize_dynamic, quantize_weights
from slim_quant.weight_only.packed import packed_weight
from slim_quant.weight_only.rounding import packed


class Forms(nn.Module):
    """The same product in every form that PyTorch has."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        turned = form in ("matmul", "at", "addmm", "mm")
        self.weight = nn.Parameter(torch.randn((16, 8) if turned else (8, 16)))
        self.bias = nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        if self.form == "linear":
            return F.linear(x, self.weight, self.bias)
        if self.form == "addmm":
            return torch.addmm(self.bias, x, self.weight)
        product = {"matmul": torch.matmul, "mm": torch.mm, "at": lambda a, b: a @ b}[self.form](x, self.weight)
        return product + self.bias


@pytest.mark.parametrize("activations", ["per_tensor", "per_token"])
@pytest.mark.parametrize("form", ["linear", "matmul", "at", "addmm", "mm"])
def test_every_form_of_a_product_computes_the_same(form: str, activations: Any) -> None:
    torch.manual_seed(0)
    net, x = Forms(form), torch.randn(5, 16)
    plain = nn.Linear(16, 8)
    with torch.no_grad():
        plain.weight.copy_(net.weight.t() if net.weight.shape == (16, 8) else net.weight)
        plain.bias.copy_(net.bias)
        ours, expected = (quantize_dynamic(model, (x,), activations=activations).model(x) for model in (net, plain))
        assert torch.allclose(ours, expected, atol=1e-6)
        assert not torch.equal(ours, net(x))


def test_a_linear_layer_is_what_numpy_computes() -> None:
    torch.manual_seed(0)
    net, x = nn.Linear(40, 12), torch.randn(3, 7, 40)
    model = quantize_dynamic(net, (x,)).model
    values, matrix = x.numpy(), net.weight.detach().numpy()
    step = np.float32((values.max() - values.min()) / np.float32(255))
    zero = np.rint(-values.min() / step)
    integers = np.clip(np.rint(values / step) + zero, 0, 255) - zero
    scales = (np.abs(matrix).max(1) / 127).astype(np.float32)
    rounded = np.clip(np.rint(matrix / scales[:, None]), -127, 127)
    expected = (integers @ rounded.T) * (step * scales) + net.bias.detach().numpy()
    with torch.no_grad():
        assert np.abs(model(x).numpy() - expected).max() < 1e-5


def test_attention_and_tied_weights_are_dynamic_without_a_list_of_layers() -> None:
    result = quantize_dynamic(encoder(), (tokens(),))
    names = {
        "words",
        "layer.self_attn.in_proj_weight",
        "layer.self_attn.out_proj",
        "layer.linear1",
        "layer.linear2",
        "turn",
    }
    assert {row["name"] for row in result.report.layers} == names
    assert result.report.notes == ()
    assert isinstance(result.model, Encoder)
    assert result.model.words.weight_packed is result.model.head.weight_packed
    assert result.sizes["quantized"] < 0.3 * result.sizes["float"]


@pytest.mark.parametrize("gradients", [True, False])
def test_fused_encoder_layers_do_not_pass_the_rounding_by(gradients: bool) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 2, 48, dropout=0.0, batch_first=True)
    net, x = nn.TransformerEncoder(layer, 2).eval(), torch.randn(2, 6, 32)
    model = quantize_dynamic(net, (x,)).model
    mask = torch.tensor([[False] * 6, [False] * 4 + [True] * 2])
    with torch.set_grad_enabled(gradients):
        found = model(x, src_key_padding_mask=mask)
        single = model.get_submodule("layers.0")(x)  # a part alone computes in integers too
    with torch.enable_grad():
        assert torch.equal(found, model(x, src_key_padding_mask=mask))
        assert torch.equal(single, model.get_submodule("layers.0")(x))
        assert not torch.equal(single, net.get_submodule("layers.0")(x))


def reference_lstm(net: nn.LSTM, x: np.ndarray) -> np.ndarray:
    """An integer LSTM in numpy: the input rounded once, the hidden state at each step."""

    def rounded(values: np.ndarray) -> tuple[np.ndarray, np.float32]:
        low, high = min(values.min(), 0), max(values.max(), 0)
        step = np.float32((high - low) / np.float32(255)) or np.float32(1)
        zero = np.clip(np.rint(-low / step), 0, 255)
        return np.clip(np.rint(values / step) + zero, 0, 255) - zero, step

    def product(values: np.ndarray, matrix: np.ndarray) -> np.ndarray:
        integers, step = rounded(values)
        scales = (np.abs(matrix).max(1) / 127).astype(np.float32)
        return (integers @ np.clip(np.rint(matrix / scales[:, None]), -127, 127).T) * (step * scales)

    def sigmoid(values: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-values))

    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    enter, recurrent, *biases = (getattr(net, name).detach().numpy() for name in names)
    steps = product(x.transpose(1, 0, 2), enter) + sum(biases)
    hidden = cell = np.zeros((x.shape[0], net.hidden_size), np.float32)
    outputs = []
    for step in steps:
        i, f, g, o = np.split(step + product(hidden, recurrent), 4, -1)
        cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
        hidden = sigmoid(o) * np.tanh(cell)
        outputs.append(hidden)
    return np.stack(outputs, 1)


def test_an_lstm_is_what_numpy_computes() -> None:
    torch.manual_seed(0)
    net, x = nn.LSTM(12, 16, batch_first=True), torch.randn(3, 9, 12)
    found = quantize_dynamic(net, (x,)).model(x)[0].detach().numpy()
    assert np.abs(found - reference_lstm(net, x.numpy())).max() < 1e-4
    assert np.abs(found - net(x)[0].detach().numpy()).max() > 1e-4


@pytest.mark.parametrize("kind", ["GRU", "RNN"])
def test_a_gru_computes_in_float_with_weights_on_the_grid(kind: str) -> None:
    torch.manual_seed(0)
    net, x = Sequence(kind, num_layers=2, bidirectional=True).eval(), torch.randn(3, 9, 12)
    result = quantize_dynamic(net, (x,), skip=["head"])
    grid = copy.deepcopy(net)
    with torch.no_grad():
        for name, parameter in grid.cell.named_parameters():
            if name.startswith("weight"):
                parameter.copy_(packed(parameter, 1, Scheme(8, True, "per_channel")).floats())
        assert torch.allclose(result.model(x), grid(x), atol=1e-6)
    assert any("computes in float with int8 weights" in note for note in result.report.notes)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("batch_first", [True, False])
def test_shapes_and_states_are_those_of_torch(kind: str, batch_first: bool) -> None:
    torch.manual_seed(0)
    net = getattr(nn, kind)(4, 6, num_layers=2, bidirectional=True, batch_first=batch_first)
    x = torch.randn(3, 5, 4)
    model = quantize_dynamic(net, (x,)).model
    state = torch.randn(4, 3 if batch_first else 5, 6)
    given = (state, state) if kind == "LSTM" else state
    for arguments in ((x,), (x, given)):
        (ours, ours_state), (theirs, theirs_state) = model(*arguments), net(*arguments)
        assert float((ours - theirs).abs().max()) < 0.1
        for one, other in zip(
            torch.utils._pytree.tree_leaves(ours_state), torch.utils._pytree.tree_leaves(theirs_state), strict=True
        ):
            assert float((one - other).abs().max()) < 0.1
    assert model(x[0])[0].shape == net(x[0])[0].shape


def test_packed_sequences_are_refused_with_what_to_do() -> None:
    net, x = nn.LSTM(4, 6, batch_first=True), torch.randn(3, 5, 4)
    model = quantize_dynamic(net, (x,)).model
    with pytest.raises(SlimError, match="packed sequences"):
        model(pack_padded_sequence(x, torch.tensor([5, 3, 2]), batch_first=True))


def test_a_recurrent_layer_keeps_no_float_weights() -> None:
    x = torch.randn(2, 5, 12)
    result = quantize_dynamic(Sequence(num_layers=2), (x,))
    cell = result.model.get_submodule("cell")
    assert cell._flat_weights == []
    assert not [name for name, parameter in cell.named_parameters() if parameter.dim() == 2]
    assert packed_weight(cell, "weight_hh_l1").layout.bits == 8
    assert result.model.double().float()(x).shape == (2, 5, 5)  # moving it rebuilds no list


def test_patterns_and_overrides_choose_layers() -> None:
    x = torch.randn(2, 5, 12)
    result = quantize_dynamic(Sequence(), (x,), skip=["cell"])
    assert [row["name"] for row in result.report.layers] == ["head"]
    assert "cell stays in float: it is skipped" in result.report.notes
    single = quantize_dynamic(
        Sequence(), (x,), overrides=[Override(match="head", weight=Scheme(8, True, "per_tensor"))]
    )
    assert single.model.get_submodule("head").weight_scale.shape == (1, 1)
    with pytest.raises(PatternError, match="matches no layer"):
        quantize_dynamic(Sequence(), (x,), include=["hed"])


def test_what_integer_products_do_not_take_is_refused() -> None:
    x = torch.randn(2, 5, 12)
    with pytest.raises(SlimError, match="quantize_weights"):
        quantize_dynamic(Sequence(), (x,), weight=Scheme(4, True, "per_channel"))
    with pytest.raises(SlimError, match="unknown activations"):
        quantize_dynamic(Sequence(), (x,), activations="per_channel")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="quantized already"):
        quantize_dynamic(quantize_weights(encoder(), (tokens(),)).model, (tokens(),))


class Projected(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTM(12, 16, proj_size=8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0])


def test_what_runtimes_do_not_have_stays_in_float_and_is_named() -> None:
    result = quantize_dynamic(Projected(), (torch.randn(2, 5, 12),))
    assert [row["name"] for row in result.report.layers] == ["head"]
    assert any(note.startswith("cell stays in float: it projects") for note in result.report.notes)
