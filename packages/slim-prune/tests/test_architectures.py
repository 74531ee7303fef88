"""Whole architectures under a budget: planned, pruned, right, and still trainable."""

from __future__ import annotations

import copy

import pytest
import torch

import slim_prune
from slim_core.graph import Coupling, analyse
from slim_core.graph.record import Several
from slim_core.testing.families import FAMILIES, build
from slim_core.testing.kept_statistics import assert_equals_kept_statistics
from slim_core.testing.oracle import assert_equals_masked_original
from slim_core.workload import call, tensors_of

#: further inputs, on which the forward goes another way
ALSO = {"branching": lambda inputs: ((inputs[0] * 1e6,),)}


def prepared(name: str) -> tuple[torch.nn.Module, tuple[torch.Tensor, ...], object, Coupling]:
    model, inputs = build(name)
    also = ALSO[name](inputs) if name in ALSO else ()
    return model, inputs, Several((inputs, *also)) if also else inputs, analyse(model, inputs, also=also)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_at_half_the_macs(name: str) -> None:
    """The plan holds the budget, equals the masked original, and the smaller model learns."""
    model, inputs, every, coupling = prepared(name)
    before = copy.deepcopy(model.state_dict())
    plan = slim_prune.plan(model, inputs, {"macs": 0.5}, importance="l1", round_to=1, coupling=coupling)
    assert 0.35 < plan.after["macs"] / plan.before["macs"] <= 0.5
    pruned = plan.apply(model)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert_equals_kept_statistics(model, pruned, coupling, plan.kept, every, rtol=1e-5)
    if FAMILIES[name].exact and every is inputs:
        assert_equals_masked_original(model, pruned, coupling, plan.kept, inputs, rtol=1e-5)
    assert_learns(pruned, inputs)


def assert_learns(model: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    """One small step of plain gradient descent lowers a loss, and every parameter that takes part has a gradient."""
    model.eval()  # the same batch statistics before and after

    def loss() -> torch.Tensor:
        return sum(output.float().square().mean() for output in tensors_of(call(model, inputs)))

    first = loss()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(first, parameters, allow_unused=True)
    norm = sum(float(gradient.square().sum()) for gradient in gradients if gradient is not None) ** 0.5
    assert norm > 0
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                assert gradient.shape == parameter.shape
                parameter -= 1e-3 * gradient / norm
    assert float(loss()) < float(first)


def test_only_the_backbone_of_a_detector() -> None:
    """``include`` prunes inside the backbone and cuts what leaves it in the layers that take it too."""
    model, inputs = build("detector")
    plan = slim_prune.plan(model, inputs, ratios={"*": 0.5}, include=["backbone"], round_to=1)
    assert set(plan.kept) <= {group.name for group in analyse(model, inputs).groups}
    assert all(name.startswith("backbone.") for name in plan.kept)
    pruned = plan.apply(model)
    assert pruned.backbone.layer3.conv2.out_channels == 16
    assert (pruned.lateral[2].in_channels, pruned.lateral[2].out_channels) == (16, 16)
    assert pruned.score.weight.shape == model.score.weight.shape
    assert_equals_masked_original(model, pruned, analyse(model, inputs), plan.kept, inputs)


def test_a_backbone_that_is_planned_alone_fits_back_into_its_detector() -> None:
    model, inputs = build("detector")
    plan = slim_prune.plan(model.backbone, inputs, ratios={"*": 0.5}, round_to=1)
    assert plan.kept
    smaller = copy.deepcopy(model)
    smaller.backbone = plan.apply(model.backbone)
    assert [tuple(level[0].shape) for level in smaller(*inputs)] == [tuple(level[0].shape) for level in model(*inputs)]
    coupling = analyse(model.backbone, inputs)
    assert_equals_masked_original(model.backbone, smaller.backbone, coupling, plan.kept, inputs)


@pytest.mark.parametrize("name", ["lstm", "weight_norm", "gpt", "torch_transformer"])
def test_a_smaller_model_is_rebuilt_from_its_record(name: str) -> None:
    """What torch keeps beside the parameters (flat weights, widths) follows in place, in copies and in a replay."""
    from slim_prune.edits import edits_of
    from slim_prune.record import ChannelsReplayer, to_transform
    from slim_prune.surgery import copy_and_operate, operate

    model, inputs, _, coupling = prepared(name)
    plan = slim_prune.plan(model, inputs, ratios={"*": 0.5}, round_to=1, coupling=coupling)
    edits = edits_of(model, coupling, plan.kept)
    expected = copy_and_operate(model, edits)
    in_place = copy.deepcopy(model)
    operate(in_place, edits)
    fresh, _ = build(name, seed=1)
    replayed = ChannelsReplayer().replay(fresh, to_transform(edits), inputs)
    replayed.load_state_dict(expected.state_dict(), assign=True)
    with torch.no_grad():
        wanted = tensors_of(call(expected, inputs))
        for other in (in_place, replayed):
            for left, right in zip(tensors_of(call(other.eval(), inputs)), wanted, strict=True):
                assert torch.equal(left, right)
