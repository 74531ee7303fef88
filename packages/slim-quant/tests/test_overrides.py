"""Settings for single layers: what they match, what they set, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from slim_core.errors import PatternError, SlimError
from slim_quant import Override, Scheme, prepare, quantize

FOUR = Scheme(4, True, "per_channel")
GROUPS = Scheme(4, True, "per_group", 8)


def bits(net: nn.Module, x: Tensor, *overrides: Override) -> dict[str, int]:
    prepared = prepare(net, (x,), overrides=overrides)
    return {name.removesuffix(".weight"): scheme.bits for name, scheme in prepared.weights.items()}


def test_a_glob_and_an_operator_each_name_layers_and_together_both_must_hold(net: nn.Module, x: Tensor) -> None:
    few = Override(op="linear", weight=FOUR)
    assert {name for name, count in bits(net, x, few).items() if count == 4} == {"hidden", "head"}
    few = Override(match="h*", op="linear", weight=FOUR)
    assert {name for name, count in bits(net, x, few).items() if count == 4} == {"hidden", "head"}
    few = Override(match="*e*", op="conv", weight=FOUR)
    assert {name for name, count in bits(net, x, few).items() if count == 4} == {"stem", "depthwise", "left"}


def test_depthwise_convolutions_can_be_named(net: nn.Module, x: Tensor) -> None:
    found = bits(net, x, Override(op="depthwise", weight=FOUR))
    assert {name for name, count in found.items() if count == 4} == {"depthwise"}


def test_the_later_override_wins(net: nn.Module, x: Tensor) -> None:
    found = bits(net, x, Override(op="conv", weight=FOUR), Override(match="point", weight=Scheme(6, True)))
    assert (found["stem"], found["point"], found["head"]) == (4, 6, 8)


def test_an_activation_scheme_is_of_what_the_layer_reads(net: nn.Module, x: Tensor) -> None:
    prepared = prepare(net, (x,), overrides=[Override(match="point", activation=Scheme(6, False))])
    assert {name for name, scheme in prepared.activations.items() if scheme.bits == 6} == {"hardtanh"}


def test_a_layers_observers_are_its_own(net: nn.Module, x: Tensor) -> None:
    batches = [torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(1))]
    batches[0][0, 0, 0, 0] = 1000.0
    cut = Override(match="stem", observer={"name": "percentile", "share": 0.99})
    plain = quantize(net, batches, example_inputs=(x,), observer="min_max").model
    other = quantize(net, batches, example_inputs=(x,), observer="min_max", overrides=[cut]).model
    scales = [float(model.get_buffer("activation_quant.x.scale")) for model in (plain, other)]
    assert scales[1] < scales[0] / 50
    rest = [name for name, _ in plain.named_buffers() if name.startswith("activation_quant.") and ".x." not in name]
    assert len(rest) > 10
    assert all(torch.equal(plain.get_buffer(name), other.get_buffer(name)) for name in rest)


def test_skipping_by_operator_leaves_it_in_float(net: nn.Module, x: Tensor) -> None:
    prepared = prepare(net, (x,), skip=["op:add", "stem"], overrides=[Override(op="linear", skip=True)])
    assert not any(name.startswith(("stem", "head", "hidden")) for name in prepared.weights)
    assert sum("is skipped" in note for note in prepared.notes) == 4
    places = {item.node for item in prepared.placement.activations}
    assert "add" not in places


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (Override(match="heads", skip=True), "skip pattern 'heads' matches no layer"),
        (Override(match="heads", weight=FOUR), "override 'heads' matches no layer"),
        (Override(match="stem", op="linear", weight=FOUR), "override 'stem' and op linear matches no layer"),
        (Override(op="embedding", weight=FOUR), "override op embedding matches no layer"),
    ],
)
def test_what_matches_nothing_is_an_error_that_lists_layers(
    net: nn.Module, x: Tensor, override: Override, message: str
) -> None:
    with pytest.raises(PatternError, match=message) as caught:
        prepare(net, (x,), overrides=[override])
    assert "head" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "needs a pattern"),
        ({"match": "*"}, "sets nothing"),
        ({"op": "convolution", "skip": True}, "unknown operator 'convolution'"),
        ({"match": "*", "activation": FOUR}, "per tensor only"),
    ],
)
def test_overrides_that_mean_nothing_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(SlimError, match=message):
        Override(**fields)


def test_groups_are_for_matrices(net: nn.Module, x: Tensor) -> None:
    with pytest.raises(SlimError, match=r"stem\.weight cannot be quantized per group"):
        prepare(net, (x,), overrides=[Override(op="conv", weight=GROUPS)])


@pytest.mark.parametrize("size", [8, 5, 64])
def test_weights_per_group_are_on_the_grid_of_their_group(net: nn.Module, x: Tensor, size: int) -> None:
    """Also where the last group is shorter, or one group takes all."""
    scheme = Scheme(4, True, "per_group", size)
    result = quantize(net, [x], example_inputs=(x,), overrides=[Override(op="linear", weight=scheme)])
    for name in ("hidden", "head"):
        weight = result.model.get_parameter(f"{name}.weight").detach()
        scale = result.model.get_buffer(f"{name}.weight_scale")
        assert scale.shape == (weight.shape[0], -(-weight.shape[1] // size))
        original = getattr(net, name).weight.detach()
        for group, part in enumerate(original.split(size, 1)):
            assert torch.equal(scale[:, group], part.abs().amax(1) / 7)
            integers = torch.round(part / scale[:, group, None]).clamp(-7, 7)
            assert torch.equal(weight.split(size, 1)[group], integers * scale[:, group, None])


def test_the_simulation_per_group_computes_with_the_grouped_weights(net: nn.Module, x: Tensor) -> None:
    result = quantize(net, [x], example_inputs=(x,), overrides=[Override(op="linear", weight=GROUPS)])
    before = result.model(x)
    assert torch.equal(result.model(x), before)
    with torch.no_grad():
        result.model.head.weight.add_(result.model.head.weight_scale.repeat_interleave(8, 1) * 0.3)
    assert torch.equal(result.model(x), before)  # less than half a step is rounded away
