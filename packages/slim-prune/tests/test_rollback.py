"""Undoing a surgery restores every bit: parameters, buffers, gradients, attributes, optimizer, EMA, ties."""

from __future__ import annotations

import copy

import prune_hand as hand
import pytest
import torch
from torch.optim.swa_utils import AveragedModel

from slim_prune.errors import PlanError


def equal(left, right) -> bool:
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right) and left.dtype == right.dtype
    if isinstance(left, dict):
        return list(left) == list(right) and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(equal(a, b) for a, b in zip(left, right, strict=True))
    return left == right


def step(model, optimizer) -> None:
    model.train()
    optimizer.zero_grad()
    model(*hand.INPUTS).square().sum().backward()
    optimizer.step()


@pytest.fixture(params=["sgd", "adam"])
def trained(request, net):
    options = {"sgd": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9), "adam": lambda p: torch.optim.Adam(p, 0.01)}
    optimizer = options[request.param](net.parameters())
    step(net, optimizer)
    return net, optimizer, AveragedModel(net)


def test_rollback_after_training_restores_every_bit(trained, plan) -> None:
    net, optimizer, ema = trained
    model_before, optimizer_before = copy.deepcopy(net.state_dict()), copy.deepcopy(optimizer.state_dict())
    ema_before = copy.deepcopy(ema.state_dict())
    gradients = {name: parameter.grad.clone() for name, parameter in net.named_parameters()}
    objects = {name: id(parameter) for name, parameter in net.named_parameters(remove_duplicate=False)}

    undo = plan.apply_reversibly(net, optimizer=optimizer, ema=ema)
    for _ in range(3):
        step(net, optimizer)
        ema.update_parameters(net)
    optimizer.param_groups[0]["lr"] = 0.5
    assert net.a.weight.shape[0] == 3
    assert undo.rollback() is net

    assert equal(dict(net.state_dict()), dict(model_before))
    assert equal(optimizer.state_dict(), optimizer_before)
    assert equal(dict(ema.state_dict()), dict(ema_before))
    assert all(torch.equal(parameter.grad, gradients[name]) for name, parameter in net.named_parameters())
    assert objects == {name: id(parameter) for name, parameter in net.named_parameters(remove_duplicate=False)}
    assert (net.a.out_channels, net.norm.num_features, net.c.in_channels) == (6, 6, 6)
    assert net.b.weight is net.c.weight


def test_training_after_rollback_is_as_if_nothing_had_happened(trained, plan) -> None:
    net, optimizer, _ = trained
    twin = copy.deepcopy(net)
    twin_optimizer = type(optimizer)(
        twin.parameters(), **{k: v for k, v in optimizer.defaults.items() if k in ("lr", "momentum")}
    )
    twin_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    with plan.apply_reversibly(net, optimizer=optimizer) as smaller:
        step(smaller, optimizer)
    step(net, optimizer)
    step(twin, twin_optimizer)
    assert equal(dict(net.state_dict()), dict(twin.state_dict()))


def test_parameters_swapped_by_the_user_come_back(net, plan) -> None:
    before, weight = copy.deepcopy(net.state_dict()), net.a.weight
    undo = plan.apply_reversibly(net)
    net.a.weight = torch.nn.Parameter(torch.zeros_like(net.a.weight))
    undo.rollback()
    assert net.a.weight is weight
    assert equal(dict(net.state_dict()), dict(before))


def test_an_ema_mapping_comes_back(net, plan) -> None:
    average = {name: tensor.detach().clone() for name, tensor in net.named_parameters()}
    before = copy.deepcopy(average)
    undo = plan.apply_reversibly(net, ema=average)
    average["head.bias"].add_(1)
    assert average["a.bias"].shape == (3,)
    undo.rollback()
    assert equal(average, before)


def test_the_backup_is_in_no_state_dict_and_a_second_rollback_does_nothing(net, plan) -> None:
    names = list(net.state_dict())
    undo = plan.apply_reversibly(net)
    assert list(net.state_dict()) == names
    undo.rollback()
    net.head.bias.data.fill_(7)
    undo.rollback()
    assert undo.done
    assert net.head.bias.tolist() == [7, 7, 7]


def test_discarding_keeps_the_pruning(net, plan) -> None:
    undo = plan.apply_reversibly(net)
    undo.discard()
    undo.rollback()
    assert net.a.weight.shape[0] == 3


def test_an_exception_inside_the_block_restores_too(net, plan) -> None:
    with pytest.raises(ZeroDivisionError), plan.apply_reversibly(net):
        raise ZeroDivisionError
    assert net.a.out_channels == 6


def test_a_refused_surgery_leaves_nothing_behind(net, plan) -> None:
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(PlanError):
        plan.apply_reversibly(net, optimizer=torch.optim.SGD(hand.net().parameters(), 0.1))
    assert equal(dict(net.state_dict()), dict(before))


def test_slims_own_average_comes_back_with_its_count(trained, plan) -> None:
    from slim_core.training import Ema

    net, optimizer, _ = trained
    average = Ema(net, 0.9)
    average.update(net)
    before, updates = copy.deepcopy(average.average), average.updates
    undo = plan.apply_reversibly(net, optimizer=optimizer, ema=average)
    assert average.average["a.weight"].shape[0] == 3
    step(net, optimizer)
    average.update(net)
    average.average["head.bias"] = torch.zeros(3)
    undo.rollback()
    assert equal(average.average, before)
    assert average.updates == updates
    average.update(net)


def test_parameter_groups_stay_the_same_objects(trained, plan) -> None:
    """A scheduler, or the user's own code, may hold a group."""
    net, optimizer, _ = trained
    group, state = optimizer.param_groups[0], copy.deepcopy(optimizer.state_dict())
    with plan.apply_reversibly(net, optimizer=optimizer):
        group["lr"] = 3.0
        group["new"] = 1
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(2))]})
    assert optimizer.param_groups[0] is group
    assert len(optimizer.param_groups) == 1
    assert equal(optimizer.state_dict(), state)


def test_a_scheduler_goes_on_over_surgery_and_rollback(net, plan) -> None:
    optimizer = torch.optim.SGD(net.parameters(), 1.0, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    step(net, optimizer)
    undo = plan.apply_reversibly(net, optimizer=optimizer)
    step(net, optimizer)
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.5
    undo.rollback()
    assert optimizer.param_groups[0]["lr"] == 1.0


def test_two_cuts_are_undone_one_after_the_other(trained) -> None:
    import slim_prune

    net, optimizer, ema = trained
    before = copy.deepcopy((net.state_dict(), optimizer.state_dict(), ema.state_dict()))
    first = slim_prune.plan(net, hand.INPUTS, ratios={"a": 0.5}, round_to=1)
    outer = first.apply_reversibly(net, optimizer=optimizer, ema=ema)
    step(net, optimizer)
    middle = copy.deepcopy(net.state_dict())
    second = slim_prune.plan(net, hand.INPUTS, ratios={"a": 0.5}, round_to=1)
    with second.apply_reversibly(net, optimizer=optimizer, ema=ema):
        step(net, optimizer)
        assert net.a.out_channels == 2
    assert equal(dict(net.state_dict()), dict(middle))
    outer.rollback()
    assert equal(
        [dict(part) for part in (net.state_dict(), optimizer.state_dict(), ema.state_dict())],
        [dict(part) for part in before],
    )
