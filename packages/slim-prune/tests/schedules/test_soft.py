"""Soft filter pruning against a loop written by hand, and what a silent channel is."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import slim_prune
from slim_core.graph import analyse
from slim_core.testing.oracle import outputs_of
from slim_core.testing.workloads import tiny_workload
from slim_core.training import Callback, FitConfig, fit
from slim_prune.edits import state_of
from slim_prune.errors import PlanError
from slim_prune.schedules.path import asymptotic
from slim_prune.schedules.soft import SoftPruning, silence_

CONFIG = FitConfig(epochs=3, lr=0.05, device="cpu", channels_last=False)


def chain() -> tuple[nn.Module, tuple, list]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4)
    )
    batches = [(torch.randn(4, 3, 8, 8), torch.randint(0, 4, (4,))) for _ in range(3)]
    return model, (torch.randn(1, 3, 8, 8),), batches


def filters(group, tensors):
    """The criterion of the paper: the norm of the filters that make the channels."""
    return tensors[f"{group.name}.weight"].flatten(1).norm(dim=1)


def epoch(model, optimizer, batches) -> None:
    for images, targets in batches:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), targets).backward()
        optimizer.step()


@pytest.mark.parametrize("grows", [True, False])
def test_the_loop_of_the_paper_by_hand(grows) -> None:
    """Rank filters by their norm, zero the smallest, train on, three times; then cut. Every bit is the same."""
    model, inputs, batches = chain()
    by_hand = copy.deepcopy(model)
    soft = SoftPruning(
        inputs, ratios={"0": 0.5, "2": 0.5}, importance=filters, asymptotic=grows, round_to=1, budget={"macs": 1.0}
    )
    soft.begin(model, epochs=3)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    theirs = torch.optim.SGD(by_hand.parameters(), 0.05, momentum=0.9)
    gone: dict[int, torch.Tensor] = {}
    for number in range(1, 4):
        epoch(model, optimizer, batches)
        step = soft.zero(number)
        epoch(by_hand, theirs, batches)
        rate = asymptotic(number / 3) if grows else 1.0
        with torch.no_grad():
            for layer in (0, 2):
                count = int(rate * (by_hand[layer].out_channels // 2) + 1e-9)
                gone[layer] = by_hand[layer].weight.flatten(1).norm(dim=1).argsort(stable=True)[:count]
                by_hand[layer].weight[gone[layer]] = 0
                by_hand[layer].bias[gone[layer]] = 0
        assert step.zeroed == sum(len(indices) for indices in gone.values())
        assert all(torch.equal(t, state_of(by_hand)[name]) for name, t in state_of(model).items())
    plan = soft.finish(optimizer=optimizer)
    for layer in (0, 2):
        kept = np.setdiff1d(np.arange(by_hand[layer].out_channels), gone[layer].numpy())
        assert plan.kept[str(layer)].tolist() == kept.tolist()
        assert torch.equal(model[layer].bias, by_hand[layer].bias[kept])
    assert optimizer.state[model[0].weight]["momentum_buffer"].shape == model[0].weight.shape


def test_a_silent_channel_is_what_the_cut_leaves_out() -> None:
    """With batch norm, a depthwise convolution and a residual add; consumers and scales keep their weights."""
    workload = tiny_workload()
    coupling = analyse(workload.model, workload.example_inputs)
    plan = slim_prune.plan(workload.model, workload.example_inputs, ratios={"*": 0.5}, round_to=1)
    model = copy.deepcopy(workload.model)
    silence_(model, coupling, plan.kept)
    expected = outputs_of(plan.mask(workload.model), workload.example_inputs, double=True)
    actual = outputs_of(copy.deepcopy(model), workload.example_inputs, double=True)
    torch.testing.assert_close(actual[0], expected[0], rtol=1e-12, atol=1e-12)
    assert torch.equal(model.stem[1].weight, workload.model.stem[1].weight)
    assert torch.equal(model.hidden.weight[plan.kept["hidden"]], workload.model.hidden.weight[plan.kept["hidden"]])
    assert torch.equal(model.depthwise.weight, workload.model.depthwise.weight)


def test_only_filters_are_zeroed_if_asked() -> None:
    workload = tiny_workload()
    coupling = analyse(workload.model, workload.example_inputs)
    kept = {group.name: np.arange(group.units // 2) for group in coupling.groups}
    model = copy.deepcopy(workload.model)
    silence_(model, coupling, kept, zero="filters")
    changed = {
        name for name, tensor in state_of(model).items() if not torch.equal(tensor, state_of(workload.model)[name])
    }
    assert changed == {"stem.0.weight", "depthwise.weight", "hidden.weight", "hidden.bias"}
    assert not bool(model.stem[0].weight[8:].any())


def test_zeroed_channels_go_on_learning_and_may_come_back() -> None:
    model, inputs, batches = chain()
    soft = SoftPruning(inputs, {"macs": 0.5}, importance=filters, asymptotic=False, round_to=1)
    soft.begin(model, epochs=4)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    epoch(model, optimizer, batches)
    soft.zero(1)
    zeroed = (model[0].weight.flatten(1).norm(dim=1) == 0).nonzero().flatten().tolist()
    assert zeroed
    epoch(model, optimizer, batches)
    assert all(bool(model[0].weight[channel].any()) for channel in zeroed)
    with torch.no_grad():
        model[0].weight[zeroed[0]] = 10.0
    step = soft.zero(2)
    assert bool(model[0].weight[zeroed[0]].any())
    assert step.changed >= 1


def test_a_second_model_is_planned_for_itself() -> None:
    """One object may serve several runs of a loop of one's own: the goal of the first is not that of the second."""
    soft = SoftPruning(chain()[1], {"macs": 0.5}, importance=filters, round_to=1)
    first, inputs, _ = chain()
    soft.begin(first, epochs=1)
    soft.zero(1)
    soft.finish()
    second, _, _ = chain()
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.copy_(parameter.flip(0))
    alone = SoftPruning(inputs, {"macs": 0.5}, importance=filters, round_to=1)
    expected = alone.begin(copy.deepcopy(second), epochs=1)
    goal = soft.begin(second, epochs=1)
    assert {name: units.tolist() for name, units in goal.kept.items()} == {
        name: units.tolist() for name, units in expected.kept.items()
    }
    assert soft.steps == []


def test_the_cut_at_the_end_changes_nothing_but_the_size() -> None:
    workload = tiny_workload()
    model = copy.deepcopy(workload.model)
    soft = SoftPruning(workload.example_inputs, {"macs": 0.4}, round_to=1)
    goal = soft.begin(model, epochs=2)
    soft.zero(2)
    before = outputs_of(copy.deepcopy(model), workload.example_inputs, double=True)
    plan = soft.finish()
    after = outputs_of(copy.deepcopy(model), workload.example_inputs, double=True)
    torch.testing.assert_close(after[0], before[0], rtol=1e-12, atol=1e-12)
    assert plan.after == goal.after
    assert plan.after["macs"] <= 0.4 * plan.before["macs"]
    assert plan.budget == {"macs": 0.4}
    assert (plan.importance, plan.allocation) == ("l1", "uniform")


def test_the_callback_does_what_the_loop_does_and_rates_follow_the_epochs() -> None:
    workload = tiny_workload()
    soft = SoftPruning(workload.example_inputs, {"macs": 0.4}, round_to=1)
    result = fit(workload, CONFIG, callbacks=[soft])
    assert [step.rate for step in soft.steps] == pytest.approx([asymptotic(1 / 3), asymptotic(2 / 3), 1.0])
    counts = [step.zeroed for step in soft.steps]
    assert counts == sorted(counts)
    assert counts[-1] == sum(g.units - len(g.kept) for g in soft.goal.groups)
    pruned = soft.applied_to(result.workload)
    assert len(pruned.transforms) == 1
    own = SoftPruning(workload.example_inputs, {"macs": 0.4}, round_to=1)
    full: dict[str, torch.Tensor] = {}

    class ByHand(Callback):
        def on_fit_start(self, state) -> None:
            own.begin(state.model, state.epochs)

        def on_epoch_end(self, state) -> None:
            own.zero(state.epoch)

        def on_fit_end(self, state) -> None:
            full.update(copy.deepcopy(state.model).state_dict())

    by_hand = fit(workload, CONFIG, callbacks=[ByHand()]).workload.model
    again = soft.plan.apply(by_hand)
    assert all(torch.equal(t, state_of(again)[name]) for name, t in state_of(pruned.model).items())


@pytest.mark.parametrize("every", [1, 2])
def test_a_killed_run_resumes_bit_for_bit(every, tmp_path) -> None:
    workload = tiny_workload()

    def soft() -> SoftPruning:
        return SoftPruning(workload.example_inputs, {"macs": 0.4}, round_to=1, every=every)

    class Die(Callback):
        def on_step_end(self, state) -> None:
            if state.step == 9:
                raise KeyboardInterrupt

    class Watch(Callback):
        pass

    Watch.__name__ = "Die"
    config = CONFIG.model_copy(update={"ema": 0.9})
    whole = soft()
    expected = fit(workload, config, callbacks=[whole, Watch()]).workload.model
    with pytest.raises(KeyboardInterrupt):
        fit(workload, config, callbacks=[soft(), Die()], folder=tmp_path)
    again = soft()
    result = fit(workload, config, callbacks=[again, Watch()], folder=tmp_path)
    assert result.resumed_at == 2
    assert again.steps == whole.steps
    assert [step.epoch for step in whole.steps] == ([1, 2, 3] if every == 1 else [2, 3])
    assert all(torch.equal(t, state_of(result.workload.model)[n]) for n, t in state_of(expected).items())


def test_calls_out_of_order_are_told() -> None:
    soft = SoftPruning((), {"macs": 0.5})
    with pytest.raises(PlanError, match="has not begun"):
        soft.zero(1)
    with pytest.raises(PlanError, match="nothing was cut yet"):
        soft.applied_to(tiny_workload())
    with pytest.raises(PlanError, match="every"):
        SoftPruning((), {"macs": 0.5}, every=0)
