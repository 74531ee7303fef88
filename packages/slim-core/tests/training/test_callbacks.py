from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from slim_core.training import Callback, FitConfig, fit

HOOKS = [name for name in vars(Callback) if name.startswith("on_")] + ["loss"]


class Log(Callback):
    def __init__(self) -> None:
        self.calls: list[str] = []

    def __getattribute__(self, name: str):
        if name in HOOKS:
            object.__getattribute__(self, "calls").append(name)
        return object.__getattribute__(self, name)


def test_the_order_of_the_hooks(workload):
    log = Log()
    fit(workload, FitConfig(epochs=2), callbacks=[log])
    step = ["on_step_start", "loss", "on_backward_end", "on_step_end"]
    epoch = ["on_epoch_start", *step * 6, "on_epoch_end"]
    assert log.calls == ["on_fit_start", *epoch, *epoch, "on_fit_end"]


def test_every_hook_is_documented():
    assert [name for name in HOOKS if not getattr(Callback, name).__doc__] == []


class Mask(Callback):
    """Keeps the first filter at zero, whatever momentum and decay do."""

    def on_step_end(self, state) -> None:
        with torch.no_grad():
            state.model[0].weight[0] = 0


def test_a_mask_holds_in_the_weights_and_in_their_average(workload):
    with torch.no_grad():
        workload.model[0].weight[0] = 0
    model = fit(workload, FitConfig(epochs=2, ema=0.9), callbacks=[Mask()]).workload.model
    assert torch.equal(model[0].weight[0], torch.zeros(1, 3, 3))
    assert model[0].weight[1].abs().sum() > 0


class Penalty(Callback):
    """Adds a subgradient of the L1 norm to the gradients."""

    def on_backward_end(self, state) -> None:
        state.model[0].weight.grad.add_(0.1 * state.model[0].weight.sign())


class Term(Callback):
    """The same as a term of the loss."""

    def loss(self, outputs, batch, state) -> Tensor:
        return 0.1 * state.model[0].weight.abs().sum()


def test_a_penalty_on_gradients_equals_the_term_of_the_loss(workload):
    config = FitConfig(epochs=2, channels_last=False)
    one, two = (fit(workload, config, callbacks=[cb]).workload.model for cb in (Penalty(), Term()))
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


class Teach(Callback):
    """Replaces the task's loss altogether."""

    def on_fit_start(self, state) -> None:
        state.task_weight = 0.0

    def loss(self, outputs, batch, state) -> Tensor:
        return outputs.square().mean()


def test_the_tasks_loss_can_be_replaced(workload):
    history = fit(workload, FitConfig(epochs=8, lr=0.1), callbacks=[Teach()]).history
    assert history[-1]["loss"] < 0.1 * history[0]["loss"]
    assert history[-1]["val_loss"] == pytest.approx(1.3863, abs=0.05), "logits near zero: log 4"


class Stop(Callback):
    def on_epoch_end(self, state) -> None:
        state.stop = state.epoch == 2


def test_a_callback_ends_the_run_and_the_end_is_remembered(workload, tmp_path):
    one = fit(workload, FitConfig(epochs=5), callbacks=[Stop()], folder=tmp_path)
    two = fit(workload, FitConfig(epochs=5), callbacks=[Stop()], folder=tmp_path)
    assert (len(one.history), two.history, two.resumed_at) == (2, one.history, 2)


class Freeze(Callback):
    def on_epoch_start(self, state) -> None:
        for module in state.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()


def test_frozen_statistics_stay(workload):
    model = fit(workload, FitConfig(epochs=1), callbacks=[Freeze()]).workload.model
    assert torch.equal(model[1].running_mean, torch.zeros(8))


class Shrink(Callback):
    """Takes the last feature of a hidden layer away after each epoch, from model, optimizer and average."""

    def __init__(self, die: bool = False) -> None:
        self.die, self.cut = die, 0

    def on_resume(self, state, tensors) -> None:
        assert state.epoch == 0  # nothing is restored yet
        for _ in range(int(tensors["cut"])):
            self._shrink(state)

    def on_epoch_end(self, state) -> None:
        self._shrink(state)

    def on_step_end(self, state) -> None:
        if self.die and state.epoch == 2:
            raise KeyboardInterrupt

    def state(self) -> dict[str, Tensor]:
        return {"cut": torch.tensor(self.cut)}

    def _shrink(self, state) -> None:
        self.cut += 1
        state.loss = state.outputs = None  # a graph that is alive remembers the shapes
        first, second = state.model[0], state.model[2]
        for name, parameter, dim in (
            ("0.weight", first.weight, 0),
            ("0.bias", first.bias, 0),
            ("2.weight", second.weight, 1),
        ):
            left = torch.arange(parameter.shape[dim] - 1)
            parameter.grad = None
            parameter.data = parameter.data.index_select(dim, left)
            state.ema.average[name] = state.ema.average[name].index_select(dim, left)
            for key, value in state.optimizer.state.get(parameter, {}).items():
                state.optimizer.state[parameter][key] = value.index_select(dim, left)


def test_a_callback_that_shrinks_the_model_resumes_bit_for_bit(tmp_path):
    from slim_core.tasks import ClassificationTask
    from slim_core.workload import Workload

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    batches = [(torch.randn(8, 4), torch.randint(0, 3, (8,))) for _ in range(3)]
    work = Workload(model, (torch.randn(1, 4),), task=ClassificationTask(), train=batches)
    config = FitConfig(epochs=4, ema=0.9)
    whole = fit(work, config, callbacks=[Shrink()]).workload.model
    assert whole[0].weight.shape == (4, 4)
    with pytest.raises(KeyboardInterrupt):
        fit(work, config, callbacks=[Shrink(die=True)], folder=tmp_path)
    again = fit(work, config, callbacks=[Shrink()], folder=tmp_path)
    assert again.resumed_at == 2
    assert all(
        torch.equal(left, right)
        for left, right in zip(again.workload.model.parameters(), whole.parameters(), strict=True)
    )
