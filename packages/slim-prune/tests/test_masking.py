"""Masks zero what a plan removes, come off without a trace, and compute what the pruned model computes."""

from __future__ import annotations

import copy

import numpy as np
import prune_hand as hand
import pytest
import torch

from slim_core.testing.oracle import assert_outputs_close, outputs_of
from slim_prune.edits import Edits, TensorEdit
from slim_prune.errors import PlanError
from slim_prune.masking import masked_copy

REMOVED = [1, 3, 4]


def test_the_masked_copy_is_zero_where_removed_and_equal_elsewhere(net, plan) -> None:
    masked = plan.mask(net)
    for name in ("a.weight", "a.bias", "norm.weight", "norm.bias", "norm.running_mean"):
        tensor, original = masked.state_dict()[name], net.state_dict()[name]
        assert not tensor[REMOVED].any(), name
        assert torch.equal(tensor[hand.KEPT], original[hand.KEPT]), name
    assert not masked.b.weight[:, REMOVED].any()
    assert torch.equal(masked.norm.running_var, net.norm.running_var)
    assert masked.b.weight is masked.c.weight


def test_the_masked_model_computes_what_the_pruned_one_computes(net, plan) -> None:
    masked = outputs_of(plan.mask(net), hand.INPUTS, double=True)
    pruned = outputs_of(plan.apply(net), hand.INPUTS, double=True)
    assert_outputs_close(pruned, masked, rtol=1e-12)


def test_masking_in_place_puts_the_bits_back(net, plan) -> None:
    before = copy.deepcopy(net.state_dict())
    with plan.masked(net) as masked:
        assert masked is net
        assert not net.a.weight[REMOVED].any()
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_masking_in_place_puts_the_bits_back_after_an_error(net, plan) -> None:
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(KeyError), plan.masked(net):
        raise KeyError
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_masks_do_not_fit_another_model(net, plan) -> None:
    net.a.weight = torch.nn.Parameter(torch.zeros(5, 3, 3, 3))
    with pytest.raises(PlanError, match=r"a\.weight"):
        plan.mask(net)


def mask_gradients(model, edits) -> None:
    """Keep masked channels at zero in training: hooks zero their gradients."""

    def zeroing(cuts):
        def hook(gradient):
            gradient = gradient.clone()
            for dim in cuts:
                gradient.index_fill_(dim, torch.tensor(REMOVED), 0)
            return gradient

        return hook

    named = dict(model.named_parameters(remove_duplicate=False))
    dims = {}
    for edit in edits.tensors:
        if edit.name in named:
            dims.setdefault(id(named[edit.name]), (named[edit.name], set()))[1].add(edit.dim)
    for tensor, cuts in dims.values():
        tensor.register_hook(zeroing(cuts))


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_training_goes_on_step_by_step_as_in_a_masked_run(net, plan, optimizer) -> None:
    """The pruned model with its cut optimizer state, against the masked original with masked gradients."""
    net = net.double()
    inputs = (hand.INPUTS[0].double(),)
    make = {
        "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.01),
        "adam": lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.01),
    }[optimizer]
    trained = make(net.parameters())
    for _ in range(2):  # so that there is optimizer state to cut
        train_step(net, trained, inputs)

    masked = plan.mask(net)
    masked_optimizer = make(masked.parameters())
    masked_optimizer.load_state_dict(copy.deepcopy(trained.state_dict()))
    state = dict(masked.named_parameters())
    for edit in plan.edits.tensors:  # moments of removed weights are gone in the pruned run, so they are zero here
        if edit.name in state:
            for value in masked_optimizer.state[state[edit.name]].values():
                if isinstance(value, torch.Tensor) and value.dim():
                    value.index_fill_(edit.dim, torch.tensor(REMOVED), 0)
    mask_gradients(masked, plan.edits)

    plan.apply(net, inplace=True, optimizer=trained)
    for number in range(6):
        first = train_step(net, trained, inputs)
        second = train_step(masked, masked_optimizer, inputs)
        assert first == pytest.approx(second, rel=1e-10), f"step {number}"
    assert torch.allclose(net.a.weight, masked.a.weight[hand.KEPT], rtol=1e-9, atol=1e-12)
    assert torch.allclose(net.norm.running_var, masked.norm.running_var[hand.KEPT], rtol=1e-9)
    assert not masked.a.weight[REMOVED].any()


def train_step(model, optimizer, inputs) -> float:
    model.train()
    optimizer.zero_grad()
    loss = (model(*inputs) - 1).square().mean()
    loss.backward()
    optimizer.step()
    return loss.item()


def test_the_direction_of_a_weight_norm_is_not_zeroed() -> None:
    """Its length is, so that the row is silent; zeroing both would divide zero by zero."""
    model = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(4, 3))
    kept = np.array([0, 2])
    names = ("parametrizations.weight.original0", "parametrizations.weight.original1", "bias")
    masked = masked_copy(model, Edits(tuple(TensorEdit(name, 0, 3, kept) for name in names), ()))
    x = torch.randn(5, 4)
    assert torch.equal(masked(x)[:, 1], torch.zeros(5))
    assert torch.allclose(masked(x)[:, kept], model(x)[:, kept])
