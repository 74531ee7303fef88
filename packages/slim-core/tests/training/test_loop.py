from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from slim_core.data import TensorSource
from slim_core.errors import DataError, ModelError, SlimError
from slim_core.registry import Registry
from slim_core.tasks import ClassificationTask
from slim_core.technique import Run
from slim_core.training import Callback, Ema, FitConfig, FitState, evaluate, fit
from slim_core.training.technique import FitTechnique
from slim_core.workload import Workload

QUIET = {"channels_last": False}


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(one: nn.Module, two: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_fit_does_what_the_loop_written_out_does(workload):
    """Cosine, momentum, decay on weights only, clipping and the moving average, with torch's own parts."""
    config = FitConfig(epochs=3, lr=0.1, clip_norm=0.5, ema=0.9, weight_decay=0.01, seed=4, **QUIET)
    result = fit(workload, config)

    model = workload.model
    model.train()
    weights = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.SGD(
        [{"params": weights, "weight_decay": 0.01}, {"params": others, "weight_decay": 0}], 0.1, 0.9, nesterov=True
    )
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3 * len(workload.train))
    ema, losses = Ema(model, 0.9), []
    for epoch in range(3):
        workload.train.set_epoch(epoch)
        for inputs, targets in workload.train:
            loss = functional.cross_entropy(model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            cosine.step()
            ema.update(model)
            losses.append(loss.item())
    ema.copy_to(model)
    trained = result.workload.model.state_dict()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(trained[name], value, rtol=1e-4, atol=1e-6)
    per_epoch = np.array(losses).reshape(3, -1).mean(1)
    assert [row["loss"] for row in result.history] == pytest.approx(per_epoch.tolist(), rel=1e-5)


def test_the_model_learns_and_the_history_says_so(workload):
    result = fit(workload, FitConfig(epochs=6, lr=0.1))
    assert [row["epoch"] for row in result.history] == [1, 2, 3, 4, 5, 6]
    last = result.history[-1]
    figures = evaluate(result.workload.model, workload.task, workload.val)
    assert figures["top1"] > 0.9
    assert (last["top1"], last["val_loss"]) == (figures["top1"], pytest.approx(figures["loss"], rel=1e-5))
    assert last["loss"] < result.history[0]["loss"]


def test_a_copy_is_trained_and_the_rest_of_the_workload_kept(workload):
    before = state(workload.model)
    result = fit(workload, FitConfig(epochs=1))
    assert all(torch.equal(value, before[name]) for name, value in workload.model.state_dict().items())
    assert result.workload.train is workload.train
    assert not equal(result.workload.model, workload.model)


def test_inplace_trains_the_model_itself(workload):
    before = state(workload.model)
    result = fit(workload, FitConfig(epochs=1), inplace=True)
    assert result.workload.model is workload.model
    assert not torch.equal(before["0.weight"], workload.model[0].weight)


def test_mode_and_layout_come_back(workload):
    workload.model.eval()
    model = fit(workload, FitConfig(epochs=1, channels_last=True)).workload.model
    assert not model.training
    assert all(parameter.is_contiguous() for parameter in model.parameters())


def test_the_same_seed_gives_the_same_bytes_and_another_one_does_not(make_workload):
    config = FitConfig(epochs=2, mixup=0.2, ema=0.9)
    one, two = (fit(make_workload(dropout=0.3), config).workload.model for _ in range(2))
    other = fit(make_workload(dropout=0.3), config.model_copy(update={"seed": 1})).workload.model
    assert equal(one, two)
    assert not equal(one, other)


def test_the_callers_generators_are_left_alone(workload):
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    expected = torch.rand(1), np.random.rand(), random.random()
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    fit(workload, FitConfig(epochs=1))
    assert (torch.rand(1), np.random.rand(), random.random()) == expected


def test_channels_last_computes_the_same(workload):
    trained = [fit(workload, FitConfig(epochs=1, channels_last=flag)).workload.model for flag in (True, False)]
    for one, two in zip(*(model.state_dict().values() for model in trained), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


class Views(nn.Module):
    """Flattens its feature map with ``view``, which NHWC tensors refuse."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc = nn.Conv2d(1, 3, 3, padding=1), nn.Linear(192, 4)

    def forward(self, x):
        x = self.conv(x)
        return self.fc(x.view(len(x), -1))


def test_a_model_that_cannot_be_held_as_nhwc_trains_contiguous_and_that_is_said(workload):
    workload = replace(workload, model=Views())
    shown = Steps()
    model = fit(workload, FitConfig(epochs=1), progress=shown).workload.model
    assert equal(model, fit(workload, FitConfig(epochs=1, channels_last=False)).workload.model)
    assert shown.notes == ["channels_last is left off: the model's forward does not run with it"]
    with pytest.raises(RuntimeError, match="view"):
        fit(workload, FitConfig(epochs=1, channels_last=True))


def test_mixed_modes_come_back_after_training_in_place(workload):
    workload.model.train()
    workload.model[1].eval()
    fit(workload, FitConfig(epochs=1), inplace=True)
    assert [module.training for module in workload.model][:3] == [True, False, True]


def test_amp_runs_in_bfloat16_and_keeps_float_weights(workload):
    seen = []

    class Look(Callback):
        def loss(self, outputs, batch, state):
            seen.append(outputs.dtype)

    model = fit(workload, FitConfig(epochs=3, lr=0.1, amp=True), callbacks=[Look()]).workload.model
    assert set(seen) == {torch.bfloat16}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert evaluate(model, workload.task, workload.val)["top1"] > 0.8


def test_mixup_feeds_probabilities(workload):
    targets = []

    class Look(Callback):
        def on_step_start(self, state):
            targets.append(state.batch[1])

    fit(workload, FitConfig(epochs=1, mixup=0.4), callbacks=[Look()])
    torch.testing.assert_close(targets[0].sum(1), torch.ones(16))
    assert targets[0].shape == (16, 4), "the number of classes comes from the model's output"


def test_eval_every_skips_epochs_but_never_the_last(workload):
    history = fit(workload, FitConfig(epochs=5, eval_every=2)).history
    assert ["top1" in row for row in history] == [False, True, False, True, True]


def test_without_validation_data_the_history_has_the_training_figures(workload):
    history = fit(replace(workload, val=None), FitConfig(epochs=1)).history
    assert set(history[0]) == {"epoch", "loss", "lr", "images_per_s"}


def test_any_iterable_of_batches_trains_also_of_unknown_length(workload):
    def batches():
        yield from workload.train

    class Stream:
        def __iter__(self):
            return batches()

    history = fit(replace(workload, train=Stream()), FitConfig(epochs=4, lr=0.1, warmup_epochs=2)).history
    assert [row["lr"] for row in history] == pytest.approx([0.05, 0.1, 0.1, 0.05])  # the schedule moves per epoch
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(*[workload.train.inputs, workload.train.targets]), 16, True
    )
    assert fit(replace(workload, train=loader), FitConfig(epochs=6, lr=0.1)).history[-1]["top1"] > 0.9


def test_a_shuffling_loader_without_a_seed_is_deterministic_because_epochs_are_seeded(workload):
    data = torch.utils.data.TensorDataset(workload.train.inputs, workload.train.targets)
    one, two = (
        fit(replace(workload, train=torch.utils.data.DataLoader(data, 16, shuffle=True)), FitConfig(epochs=1))
        for _ in range(2)
    )
    assert equal(one.workload.model, two.workload.model)


class KeywordNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, pixel_values=None):
        return {"logits": self.fc(pixel_values)}


def test_mapping_batches_and_outputs_train_with_mixup():
    torch.manual_seed(0)
    inputs = torch.randn(64, 4)
    batches = [{"pixel_values": part, "labels": (part[:, 0] > 0).long()} for part in inputs.split(16)]
    workload = Workload(KeywordNet(), {"pixel_values": inputs[:1]}, ClassificationTask(), batches, batches)
    result = fit(workload, FitConfig(epochs=20, lr=0.5, mixup=0.1))
    assert result.history[-1]["top1"] > 0.95


class Explodes(Callback):
    def on_step_end(self, state: FitState) -> None:
        if state.step == 3:
            with torch.no_grad():
                next(state.model.parameters()).fill_(float("nan"))


def test_a_loss_that_is_not_finite_is_named_with_its_step(workload):
    with pytest.raises(ModelError, match=r"loss is nan at step 4 \(epoch 1\)") as caught:
        fit(workload, FitConfig(epochs=1), callbacks=[Explodes()])
    assert "lower lr" in str(caught.value)


def test_what_is_missing_is_named(workload):
    with pytest.raises(DataError, match="training data"):
        fit(replace(workload, train=None), FitConfig())
    with pytest.raises(DataError, match="a task"):
        fit(replace(workload, task=None), FitConfig())
    with pytest.raises(DataError, match="training data is an iterator"):
        fit(replace(workload, train=iter(workload.train)), FitConfig())
    with pytest.raises(DataError, match="validation data is an iterator"):
        fit(replace(workload, val=iter(workload.val)), FitConfig())
    with pytest.raises(DataError, match="empty"):
        fit(replace(workload, train=[]), FitConfig())
    with pytest.raises(ModelError, match="no trainable"):
        fit(replace(workload, model=workload.model.requires_grad_(False)), FitConfig())


def test_a_task_that_cannot_be_mixed_is_named(workload):
    class Own(ClassificationTask):
        with_pair = property()  # type: ignore[assignment]

    with pytest.raises(SlimError, match="mixup does not know"):
        fit(replace(workload, task=Own()), FitConfig(mixup=0.2))


def test_a_batch_of_one_source_with_drop_last(workload):
    train = TensorSource(workload.train.inputs, workload.train.targets, 64, drop_last=True)
    states = []

    class Count(Callback):
        def on_step_end(self, state):
            states.append((state.epoch, state.step))

    fit(replace(workload, train=train), FitConfig(epochs=2), callbacks=[Count()])
    assert states == [(0, 0), (1, 1)]


def test_an_exported_module_trains(workload):
    dynamic = ({0: torch.export.Dim.AUTO},)
    program = torch.export.export(workload.model.train(), (torch.zeros(16, 1, 8, 8),), dynamic_shapes=dynamic)
    exported = program.module()
    result = fit(replace(workload, model=exported), FitConfig(epochs=1))
    before = dict(workload.model.named_parameters())
    assert not all(torch.equal(p, before[name]) for name, p in result.workload.model.named_parameters())
    assert result.history[0]["loss"] == pytest.approx(fit(workload, FitConfig(epochs=1)).history[0]["loss"], rel=1e-4)


def test_fine_tuning_as_a_step_of_a_recipe(workload, tmp_path):
    run = Run(tmp_path, 3, Registry())
    step = FitTechnique().run(workload, FitTechnique.Config(epochs=2), run)
    assert [row["epoch"] for row in step.details["history"]] == [1, 2]
    assert step.workload.transforms == workload.transforms
    assert equal(step.workload.model, fit(workload, FitConfig(epochs=2, seed=3)).workload.model), (
        "the run's seed counts"
    )
    again = FitTechnique().run(workload, FitTechnique.Config(epochs=2), run)
    assert equal(again.workload.model, step.workload.model)
    assert again.details == step.details, "a finished step is read back, its timings included"


class Steps:
    """A progress display that keeps what it is told."""

    def __init__(self):
        self.total, self.done, self.fields, self.notes = None, 0.0, {}, []

    def track(self, description, total=None):
        from contextlib import contextmanager

        @contextmanager
        def opened():
            self.total = total
            yield self

        return opened()

    def advance(self, amount=1.0, **fields):
        self.done += amount
        self.fields.update(fields)

    def note(self, line):
        self.notes.append(line)


def test_progress_is_told_steps_loss_metric_and_speed(workload):
    shown = Steps()
    fit(workload, FitConfig(epochs=2), progress=shown)
    assert (shown.total, shown.done) == (12, 12)
    assert set(shown.fields) == {"loss", "top1", "images_per_s"}
