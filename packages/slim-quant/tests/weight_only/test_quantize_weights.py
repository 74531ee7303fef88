"""``quantize_weights`` on models: what is found, chosen, tied, kept and computed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from weight_nets import Encoder, encoder, tokens

from slim_core.errors import DataError, ModelError, PatternError, SlimError
from slim_quant import Override, Scheme, prepare, quantize_weights
from slim_quant.weight_only.packed import packed_names
from slim_quant.weight_only.rounding import packed

LAYERS = {
    "words",
    "layer.self_attn.in_proj_weight",
    "layer.self_attn.out_proj",
    "layer.linear1",
    "layer.linear2",
    "turn",
}


@pytest.fixture(scope="module")
def net() -> Encoder:
    return encoder()


def simulated(net: Encoder, scheme: Scheme) -> Encoder:
    """Return a float model whose weights stand on their grids."""
    model = copy.deepcopy(net)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                parameter.copy_(packed(parameter, 0 if name == "turn" else 1, scheme).floats())
    return model


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_model_computes_what_weights_on_the_grid_give(net: Encoder, bits: int) -> None:
    result = quantize_weights(net, (tokens(),), bits=bits, group_size=16, symmetric=False)
    with torch.no_grad():
        expected = simulated(net, Scheme(bits, False, "per_group", 16))(tokens())
        assert torch.equal(result.model(tokens()), expected)


def test_every_product_and_lookup_is_found_without_a_list_of_layers(net: Encoder) -> None:
    result = quantize_weights(net, (tokens(),))
    assert {row["name"] for row in result.report.layers} == LAYERS
    assert result.report.notes == ()


def test_the_given_model_stays_and_the_result_is_of_its_class(net: Encoder) -> None:
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    result = quantize_weights(net, (tokens(),), bits=4)
    assert type(net) is Encoder
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert isinstance(result.model, Encoder)
    assert isinstance(result.model.layer.linear1, nn.Linear)
    with torch.no_grad():
        assert torch.equal(result.model.twice(tokens(1, 12)), 2 * result.model(tokens(1, 12)))  # another length too


def test_memory_holds_packed_integers_and_no_float_copy(net: Encoder) -> None:
    result = quantize_weights(net, (tokens(),), bits=4)
    assert result.sizes["quantized"] < 0.2 * result.sizes["float"]
    assert not [name for name, parameter in result.model.named_parameters() if parameter.dim() == 2]
    assert result.model.words.weight_packed.shape == (50, 24)


def test_tied_weights_stay_one_tensor(net: Encoder) -> None:
    model = quantize_weights(net, (tokens(),), bits=4).model
    assert isinstance(model, Encoder)
    assert model.words.weight_packed is model.head.weight_packed
    assert model.words.weight_scale is model.head.weight_scale


def test_an_embedding_reads_only_the_rows_that_it_looks_up(net: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    model = quantize_weights(net, (tokens(),), bits=4).model
    expected = F.embedding(tokens(), model.words.weight)
    monkeypatch.setattr(type(model.words), "read_packed", lambda *_: pytest.fail("the table was dequantized"))
    assert torch.equal(model.words(tokens()), expected)


def test_copies_and_moves_work(net: Encoder) -> None:
    model = quantize_weights(net, (tokens(),), bits=4).model
    again = copy.deepcopy(model)
    with torch.no_grad():
        assert torch.equal(again(tokens()), model(tokens()))
        model.head.weight_scale.mul_(2)
        assert not torch.equal(again(tokens()), model(tokens()))
    assert copy.deepcopy(again).bfloat16().head.weight.dtype == torch.bfloat16


def test_what_stays_in_float_trains(net: Encoder) -> None:
    model = quantize_weights(net, (tokens(),), bits=4).model.train()
    model(tokens()).square().mean().backward()
    gradients = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert "layer.linear1.bias" in gradients
    assert "layer.norm1.weight" in gradients


def test_patterns_choose_layers_and_say_what_they_left(net: Encoder) -> None:
    result = quantize_weights(net, (tokens(),), include=["layer.*"], skip=["layer.linear2"])
    assert {row["name"] for row in result.report.layers} == {
        "layer.self_attn.in_proj_weight", "layer.self_attn.out_proj", "layer.linear1",
    }  # fmt: skip
    assert "layer.linear2 stays in float: it is skipped" in result.report.notes
    assert "turn stays in float: it is not included" in result.report.notes


def test_any_name_of_a_tied_weight_matches(net: Encoder) -> None:
    assert "head.weight" not in packed_names(quantize_weights(net, (tokens(),), skip=["head"]).model)


def test_overrides_change_single_layers_and_the_last_wins(net: Encoder) -> None:
    eight = Scheme(8, True, "per_channel")
    three = Scheme(3, True, "per_tensor")
    overrides = [
        Override(op="linear", weight=eight),
        Override(match="layer.linear*", weight=three),
        Override(match="turn", skip=True),
    ]
    result = quantize_weights(net, (tokens(),), bits=4, overrides=overrides)
    bits = {row["name"]: row["bits"] for row in result.report.layers}
    assert (bits["words"], bits["layer.linear1"], bits["layer.linear2"]) == (8, 3, 3)
    assert "turn" not in bits


class Lookup(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(10, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.words(x))


def test_embeddings_are_an_operator_of_their_own() -> None:
    x = torch.arange(10).view(2, 5)
    result = quantize_weights(
        Lookup(), (x,), bits=8, overrides=[Override(op="embedding", weight=Scheme(4, True, "per_channel"))]
    )
    assert {row["name"]: row["bits"] for row in result.report.layers} == {"words": 4, "head": 8}


@pytest.mark.parametrize(
    "options", [{"include": ["wrds"]}, {"skip": ["hed"]}, {"overrides": [Override(match="hed", skip=True)]}]
)
def test_a_pattern_that_matches_nothing_names_the_layers(net: Encoder, options: dict[str, Any]) -> None:
    with pytest.raises(PatternError, match="matches no layer") as caught:
        quantize_weights(net, (tokens(),), **options)
    assert "words" in str(caught.value)


@pytest.mark.parametrize("options", [{"bits": 9}, {"bits": 1}, {"group_size": 0}, {"clip": "best"}])
def test_settings_that_there_are_not_are_refused(net: Encoder, options: dict[str, Any]) -> None:
    with pytest.raises(SlimError):
        quantize_weights(net, (tokens(),), **options)


def test_a_quantized_model_is_refused_everywhere(net: Encoder) -> None:
    model = quantize_weights(net, (tokens(),)).model
    with pytest.raises(ModelError, match="quantized already"):
        quantize_weights(model, (tokens(),))
    with pytest.raises(ModelError, match="quantized already"):
        prepare(model, (tokens(),))


def test_a_model_without_such_layers_is_refused() -> None:
    with pytest.raises(ModelError, match="no linear layer or embedding"):
        quantize_weights(nn.Conv2d(3, 4, 3), (torch.zeros(1, 3, 8, 8),))


class Listed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ParameterList([torch.randn(16, 16)])
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x @ self.parts[0])


def test_what_cannot_hold_packed_weights_is_left_and_named() -> None:
    result = quantize_weights(Listed(), (torch.randn(2, 16),))
    assert [row["name"] for row in result.report.layers] == ["head"]
    assert result.report.notes == ("parts.0 stays in float: a ParameterList holds it",)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(32, 64), nn.Linear(64, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.relu(self.first(x)))


def correlated(count: int, seed: int) -> Tensor:
    mix = torch.randn(6, 32, generator=torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 6, generator=generator) @ mix + 0.1 * torch.randn(count, 32, generator=generator)


@pytest.mark.parametrize("group", [None, 16])
def test_gptq_beats_nearest_rounding_on_data_that_it_has_not_seen(group: int | None) -> None:
    torch.manual_seed(0)
    net, data = Two().eval(), [correlated(64, seed) for seed in range(4)]
    unseen = correlated(256, 99)
    plain, better = (
        quantize_weights(net, (data[0],), bits=3, group_size=group, symmetric=True, sample=unseen, **options)
        for options in ({}, {"correction": "gptq", "calibration": data, "samples": 256})
    )
    assert better.report.sqnr_db is not None
    assert plain.report.sqnr_db is not None
    assert better.report.sqnr_db > plain.report.sqnr_db + 1
    with torch.no_grad():  # the packed weights are those that were compared
        noise = (better.model(unseen) - net(unseen)).square().sum()
        signal = net(unseen).square().sum()
    assert float(10 * torch.log10(signal / noise)) == pytest.approx(better.report.sqnr_db, abs=0.01)


def test_a_correction_needs_data_and_must_round(net: Encoder) -> None:
    with pytest.raises(DataError, match="calibration data"):
        quantize_weights(net, (tokens(),), correction="gptq")
    with pytest.raises(SlimError, match="stage 'float'"):
        quantize_weights(net, (tokens(),), correction="equalization", calibration=[tokens()])
