"""Masks that hold during training, and the callback for ``fit``."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import twin_hand as hand

import slim_prune
from slim_core.graph import analyse
from slim_core.testing.workloads import tiny_workload
from slim_core.training import Ema, FitConfig, fit
from slim_prune.edits import state_of
from slim_prune.errors import PlanError
from slim_prune.prune_plan import PrunePlan
from slim_prune.schedules.masks import MaskCallback, Masks


@pytest.fixture
def workload():
    return tiny_workload()


@pytest.fixture
def half(workload) -> PrunePlan:
    return slim_prune.plan(workload.model, workload.example_inputs, ratios={"*": 0.5}, round_to=1)


def removed_parts(model, plan: PrunePlan):
    state = state_of(model)
    for edit in plan.edits.tensors:
        if not edit.name.endswith("running_var"):
            yield edit.name, state[edit.name].detach().index_select(edit.dim, torch.from_numpy(edit.removed))


@pytest.mark.parametrize("name", ["momentum", "adamw"])
def test_masked_training_is_the_training_of_the_pruned_model(workload, half, name) -> None:
    model = copy.deepcopy(workload.model).double()
    inputs = (torch.randn(8, 3, 8, 8, dtype=torch.float64),)
    optimizer = hand.made(name, model)
    hand.train_step(model, optimizer, inputs, 0)
    small, small_optimizer = hand.twin_of(model, optimizer, name)
    half.apply(small, inplace=True, optimizer=small_optimizer)
    with half.mask_during_training(model, optimizer) as masked:
        for number in range(1, 4):
            assert masked is model
            mine = hand.train_step(model, optimizer, inputs, number)
            assert mine == pytest.approx(hand.train_step(small, small_optimizer, inputs, number), rel=1e-10)
            assert all(not bool(part.any()) for _, part in removed_parts(model, half))
    for (_, left), (_, right) in zip(state_of(half.apply(model)).items(), state_of(small).items(), strict=True):
        assert hand.same(left.detach(), right.detach(), 1e-10)


def test_nothing_is_held_after_the_masks_are_removed(workload, half) -> None:
    model = workload.model
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    names = list(model.state_dict())
    masks = half.mask_during_training(model, optimizer)
    assert list(model.state_dict()) == names
    masks.remove()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    model.train()
    model(*workload.example_inputs).square().sum().backward()
    optimizer.step()
    assert any(bool(part.any()) for _, part in removed_parts(model, half))


def test_without_an_optimizer_apply_is_the_loops_own_duty(workload, half) -> None:
    model = workload.model
    masks = half.mask_during_training(model)
    optimizer = torch.optim.Adam(model.parameters())
    model(*workload.example_inputs).square().sum().backward()
    optimizer.step()
    masks.apply()
    masks.apply_to_state(optimizer)
    assert all(not bool(part.any()) for _, part in removed_parts(model, half))
    for edit in half.edits.tensors:
        tensor = state_of(model)[edit.name]
        if tensor in optimizer.state:
            moment = optimizer.state[tensor]["exp_avg"].index_select(edit.dim, torch.from_numpy(edit.removed))
            assert not bool(moment.any())


def test_an_average_is_masked(workload, half) -> None:
    average = Ema(workload.model, 0.9)
    Masks(workload.model, half.edits).apply_to_average(average)
    for edit in half.edits.tensors:
        part = average.average[edit.name].index_select(edit.dim, torch.from_numpy(edit.removed))
        assert bool(part.any()) == edit.name.endswith("running_var")


def test_the_callback_trains_what_the_cut_leaves(workload, half) -> None:
    """``fit`` under masks, then the cut, against the cut, then ``fit``: the same weights, averages and all."""
    config = FitConfig(epochs=2, lr=0.05, ema=0.9, clip_norm=1.0, channels_last=False, device="cpu")
    masked = fit(workload, config, callbacks=[MaskCallback(half)]).workload.model
    assert all(not bool(part.any()) for _, part in removed_parts(masked, half))
    small = fit(workload.with_model(half.apply(workload.model)), config).workload.model
    for (_, left), (_, right) in zip(state_of(half.apply(masked)).items(), state_of(small).items(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


def test_masks_of_another_model_are_refused(half) -> None:
    with pytest.raises(PlanError):
        half.mask_during_training(tiny_workload(width=8).model)


def test_masks_cover_whole_groups(workload, half) -> None:
    """The oracle of masked evaluation, after the masks have been applied once."""
    coupling = analyse(workload.model, workload.example_inputs)
    by_hand = copy.deepcopy(workload.model)
    hand.HandMasks(by_hand, coupling, half.kept).weights()
    Masks(workload.model, half.edits).apply()
    assert all(torch.equal(t, state_of(by_hand)[name]) for name, t in state_of(workload.model).items())
    assert np.all([len(kept) for kept in half.kept.values()])
