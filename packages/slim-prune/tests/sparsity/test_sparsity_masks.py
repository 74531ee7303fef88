"""Masks in one's own loop: held after every step, outside the state dict, gone when removed."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import sparsity_nets as nets
import torch
from torch import nn

from slim_core.testing.workloads import fingerprint
from slim_prune import sparsity
from slim_prune.sparsity import SparsityError, SparsityMasks


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    optimizer.zero_grad()
    model(torch.randn(4, 3, 6, 6, generator=generator)).square().mean().backward()
    optimizer.step()


@pytest.fixture
def masks() -> SparsityMasks:
    return sparsity.plan(nets.mixed(), sparsity=0.8).masks


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_zeros_stay_after_every_step_and_training_is_that_of_masking_by_hand(masks, kind) -> None:
    def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
        if kind == "sgd":
            return torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.01)
        return torch.optim.AdamW(model.parameters(), 0.01)

    model, twin = nets.mixed(), nets.mixed()
    optimizer, other = optimizer_of(model), optimizer_of(twin)
    with masks.attach(model, optimizer):
        with torch.no_grad():
            for name, mask in masks.items():
                twin.get_parameter(name)[~mask] = 0
        for seed in range(5):
            step(model, optimizer, seed)
            step(twin, other, seed)
            with torch.no_grad():
                for name, mask in masks.items():
                    twin.get_parameter(name)[~mask] = 0
            assert masks.violations(model) == 0
    for (name, mine), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(mine, theirs), name
    assert masks.violations(model) == 0
    step(model, optimizer, 9)
    assert masks.violations(model) > 0  # removed: momentum moves them again


def test_masks_are_in_no_state_dict_and_leave_no_hook(masks) -> None:
    model = nets.mixed()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    names, marks = list(model.state_dict()), set(fingerprint(model))
    handle = masks.attach(model, optimizer, gradients=True)
    assert list(model.state_dict()) == names
    assert set(fingerprint(model)) == marks
    copy.deepcopy(model)
    handle.remove()
    assert not optimizer._optimizer_step_post_hooks
    assert all(not p._backward_hooks for p in model.parameters())


def test_gradients_of_masked_weights_are_zero_where_that_is_asked(masks) -> None:
    model = nets.mixed()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    with masks.attach(model, optimizer, gradients=True):
        step(model, optimizer, 0)
        for name, mask in masks.items():
            parameter = model.get_parameter(name)
            assert not parameter.grad[~mask].any()
            assert not optimizer.state[parameter]["momentum_buffer"][~mask].any()
            assert parameter.grad[mask].any()
    step(model, optimizer, 1)
    assert any(bool(model.get_parameter(name).grad[~mask].any()) for name, mask in masks.items())


def test_without_an_optimizer_the_loop_calls_step(masks) -> None:
    model = nets.mixed()
    handle = masks.attach(model)
    assert masks.violations(model) == 0
    with torch.no_grad():
        model.conv.weight.add_(1)
    handle.step()
    assert masks.violations(model) == 0


def test_masks_can_be_exchanged_while_they_are_held(masks) -> None:
    model = nets.mixed()
    handle = masks.attach(model, gradients=True)
    tighter = sparsity.plan(model, sparsity=0.9, previous=masks).masks
    handle.update(tighter)
    assert tighter.violations(model) == 0
    assert handle.masks == tighter
    with pytest.raises(SparsityError):
        handle.update(SparsityMasks({"conv.weight": torch.ones(1, dtype=torch.bool)}))
    assert handle.masks == tighter


def test_zero_is_set_where_infinity_or_nan_stood() -> None:
    model = nn.Linear(3, 1, bias=False)
    model.weight = nn.Parameter(torch.tensor([[float("nan"), float("inf"), -1.0]]))
    SparsityMasks({"weight": np.zeros((1, 3), bool)}).apply_(model)
    assert model.weight.tolist() == [[0.0, 0.0, 0.0]]
    assert not torch.signbit(model.weight).any()


def test_figures_and_masks_of_zeros_that_are_there() -> None:
    model = nets.mixed()
    plan = sparsity.plan(model, sparsity=0.6)
    found = SparsityMasks.of(plan.apply(model))
    assert found == plan.masks
    rows = found.statistics()
    assert sum(row["kept"] for row in rows) == found.kept
    assert sum(row["total"] for row in rows) == found.total
    assert found.sparsity == pytest.approx(1 - found.kept / found.total)
    assert [row["sparsity"] for row in rows] == [1 - row["kept"] / row["total"] for row in rows]


def test_an_optimizer_of_another_model_and_masks_that_do_not_fit_are_refused(masks) -> None:
    model = nets.mixed()
    with pytest.raises(SparsityError, match="none of the masked weights"):
        masks.attach(model, torch.optim.SGD(nets.mixed().parameters(), 0.1))
    with pytest.raises(SparsityError, match="no such weight"):
        masks.attach(nn.Linear(2, 2))


def test_a_wrapped_model_is_looked_through(masks) -> None:
    model = nets.mixed()
    masks.apply_(nn.DataParallel(model))
    assert masks.violations(model) == 0
