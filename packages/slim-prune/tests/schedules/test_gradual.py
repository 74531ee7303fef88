"""Pruning in the middle of a training: real cuts equal masks, and a killed run resumes bit for bit."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
from torch import nn

import slim_prune
from slim_core.graph import record
from slim_core.graph.cost import cost
from slim_core.testing.workloads import tiny_workload
from slim_core.training import Callback, Ema, FitConfig, fit
from slim_prune.edits import state_of
from slim_prune.errors import PlanError
from slim_prune.schedules.gradual import GradualPruning, times

CONFIG = FitConfig(epochs=4, lr=0.05, ema=0.9, clip_norm=1.0, device="cpu", channels_last=False)


def macs(workload) -> int:
    return cost(record(workload.model, workload.example_inputs)).macs


def bits(model) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in state_of(model).items()}


def same_bits(left, right) -> bool:
    return left.keys() == right.keys() and all(torch.equal(tensor, right[name]) for name, tensor in left.items())


def gradual(workload, **options) -> GradualPruning:
    return GradualPruning(workload.example_inputs, {"macs": 0.4}, round_to=1, **{"steps": 3, **options})


class Watch(Callback):
    """Notes shapes at every step, and may end the run like a kill does."""

    def __init__(self, die_after: int | None = None) -> None:
        self.widths: list[int] = []
        self.die_after = die_after

    def on_step_end(self, state) -> None:
        assert all(p.shape == state.ema.average[n].shape for n, p in state.model.named_parameters())
        for parameter in state.model.parameters():
            assert state.optimizer.state[parameter]["momentum_buffer"].shape == parameter.shape
        self.widths.append(state.model.stem[0].out_channels)
        if self.die_after is not None and state.step + 1 == self.die_after:
            raise KeyboardInterrupt


def test_cuts_happen_when_they_are_due_and_the_budget_is_met() -> None:
    workload, watch = tiny_workload(), Watch()
    callback = gradual(workload, start=0.25, end=0.75)
    result = fit(workload, CONFIG, callbacks=[callback, watch])
    assert [step.at for step in callback.steps] == [4, 8, 12]
    pruned = callback.applied_to(result.workload)
    assert macs(pruned) <= 0.4 * macs(workload)
    assert callback.plan.after["macs"] == macs(pruned)
    assert callback.plan.budget == {"macs": 0.4}
    assert len(set(watch.widths[:4])) == 1
    assert watch.widths[0] == 16
    assert watch.widths[4] < 16
    assert watch.widths == sorted(watch.widths, reverse=True)
    assert len(pruned.transforms) == 1
    rebuilt = callback.plan.apply(workload.model)
    assert {n: t.shape for n, t in state_of(rebuilt).items()} == {n: t.shape for n, t in state_of(pruned.model).items()}


def test_epochs_and_fractions_of_epochs_can_be_given() -> None:
    workload = tiny_workload()
    callback = gradual(workload, at_epochs=[0.5, 1, 2.25])
    fit(workload, CONFIG, callbacks=[callback])
    assert [step.at for step in callback.steps] == [2, 4, 9]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_masks_until_the_end_come_to_what_real_cuts_come_to(optimizer) -> None:
    workload = tiny_workload()
    config = CONFIG.model_copy(update={"optimizer": optimizer, "lr": 0.02 if optimizer == "sgd" else 1e-3})
    cut, masked = gradual(workload), gradual(workload, masked=True)
    first = fit(workload, config, callbacks=[cut]).workload.model
    watch = []
    probe = type("Probe", (Callback,), {"on_step_end": lambda self, s: watch.append(s.model.stem[0].out_channels)})
    second = fit(workload, config, callbacks=[masked, probe()]).workload.model
    assert set(watch) == {16}
    assert cut.plan.edits == masked.plan.edits
    for name, tensor in state_of(first).items():
        torch.testing.assert_close(tensor, state_of(second)[name], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(("masked", "die_after"), [(False, 6), (True, 11)])
def test_a_killed_run_resumes_bit_for_bit(masked, die_after, tmp_path) -> None:
    workload = tiny_workload()
    whole = gradual(workload, masked=masked, start=0.1)
    expected = bits(fit(workload, CONFIG, callbacks=[whole, Callback()]).workload.model)
    killed = [gradual(workload, masked=masked, start=0.1), Watch(die_after)]
    with pytest.raises(KeyboardInterrupt):
        fit(workload, CONFIG, callbacks=killed, folder=tmp_path / "run")
    again = gradual(workload, masked=masked, start=0.1)
    result = fit(workload, CONFIG, callbacks=[again, Watch()], folder=tmp_path / "run")
    assert result.resumed_at == die_after // 4
    assert same_bits(bits(result.workload.model), expected)
    assert again.plan.edits == whole.plan.edits
    assert again.steps == whole.steps
    finished = gradual(workload, masked=masked, start=0.1)  # all done: nothing is trained, and the model is there
    result = fit(workload, CONFIG, callbacks=[finished, Watch()], folder=tmp_path / "run")
    assert result.resumed_at == 4
    assert same_bits(bits(result.workload.model), expected)
    shutil.rmtree(tmp_path / "run")


def test_a_loop_of_ones_own_does_what_the_callback_does() -> None:
    """Plain SGD in a handwritten loop and in ``fit``, with the same cuts."""
    workload = tiny_workload()
    config = FitConfig(
        epochs=2, lr=0.05, schedule="constant", weight_decay=0.0, ema=0.9, device="cpu", channels_last=False
    )
    callback = gradual(workload)
    expected = fit(workload, config, callbacks=[callback]).workload.model
    model = copy.deepcopy(workload.model).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, nesterov=True)
    average = Ema(model, 0.9)
    own = gradual(workload)
    own.begin(model, 8, optimizer=optimizer, ema=average)
    batches = [batch for _ in range(2) for batch in workload.train]
    for number, (images, targets) in enumerate(batches):
        own.step(number)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), targets).backward()
        optimizer.step()
        average.update(model)
    plan = own.finish()
    average.copy_to(model)
    assert plan.edits == callback.plan.edits
    for name, tensor in state_of(expected).items():
        torch.testing.assert_close(state_of(model)[name], tensor, rtol=1e-5, atol=1e-6)


def test_a_run_that_ends_early_still_meets_the_budget() -> None:
    workload = tiny_workload()
    stop = type("Stop", (Callback,), {"on_epoch_end": lambda self, state: setattr(state, "stop", True)})
    for masked in (False, True):
        callback = gradual(workload, end=1.0, steps=4, masked=masked)
        result = fit(workload, CONFIG, callbacks=[callback, stop()])
        assert macs(result.workload) <= 0.4 * macs(workload)


def test_training_draws_the_same_random_numbers_as_without() -> None:
    """Planning leaves the generators of the training alone."""
    workload = tiny_workload()
    seen: list[float] = []
    draw = type("Draw", (Callback,), {"on_step_end": lambda self, state: seen.append(float(torch.rand(())))})
    fit(workload, CONFIG, callbacks=[draw()])
    expected, seen[:] = list(seen), []
    fit(workload, CONFIG, callbacks=[gradual(workload, importance="random"), draw()])
    assert seen == expected


def test_the_same_callback_can_serve_a_second_run() -> None:
    workload = tiny_workload()
    callback = gradual(workload)
    first = bits(fit(workload, CONFIG, callbacks=[callback]).workload.model)
    assert same_bits(first, bits(fit(workload, CONFIG, callbacks=[callback]).workload.model))


def test_times_are_spread_evenly() -> None:
    assert times(3, 0, 10) == (0, 5, 10)
    assert times(1, 0, 10) == (10,)
    assert times(4, 1, 2) == (1, 2, 2, 2)


@pytest.mark.parametrize(
    "options", [{"steps": 0}, {"start": 0.6, "end": 0.5}, {"end": 1.5}, {"at_epochs": []}, {"at_epochs": [2, 1]}]
)
def test_times_out_of_order_are_refused(options) -> None:
    with pytest.raises(PlanError):
        GradualPruning((), {"macs": 0.5}, **options)


def test_a_loop_that_has_not_begun_is_told() -> None:
    with pytest.raises(PlanError, match="has not begun"):
        GradualPruning((), {"macs": 0.5}).step(0)
    with pytest.raises(PlanError, match="nothing was cut yet"):
        slim_prune.GradualPruning((), {"macs": 0.5}).applied_to(tiny_workload())


def test_several_processes_are_told_to_mask() -> None:
    from types import SimpleNamespace

    state = SimpleNamespace(processes=2)
    with pytest.raises(PlanError, match="several processes"):
        GradualPruning((), {"macs": 0.5}).on_fit_start(state)
