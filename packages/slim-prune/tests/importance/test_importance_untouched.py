"""Looking at data leaves no trace, reads no more than asked, and keeps nothing of it."""

from __future__ import annotations

import gc
import random
import weakref

import importance_hand as hand
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import slim_prune
from slim_core.data import TensorSource
from slim_core.errors import SlimError
from slim_core.testing.workloads import differences, fingerprint
from slim_prune.errors import PlanError
from slim_prune.importance.passes import Reading, batches, gradients

ON_DATA = ["taylor", "fisher", "hessian", "apoz", "activation"]


@pytest.mark.parametrize("name", ON_DATA)
@pytest.mark.parametrize("training", [True, False])
def test_model_gradients_modes_buffers_and_generators_are_as_before(name, training) -> None:
    model = hand.joined().train(training)
    model.norm.eval()  # modes differ between modules
    model.back.weight.requires_grad_(False)
    data = hand.data()
    hand.Squares().loss(model(data[0][0]), data[0]).backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    tensors = {n: id(p.grad) for n, p in model.named_parameters() if p.grad is not None}
    before, states = fingerprint(model), (torch.get_rng_state(), random.getstate(), np.random.get_state())
    hand.scores(name, hand.context(model, data))
    assert differences(before, fingerprint(model)) == []
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), states[2], strict=True))
    for parameter_name, parameter in model.named_parameters():
        if parameter_name in gradients:
            assert id(parameter.grad) == tensors[parameter_name]
            assert torch.equal(parameter.grad, gradients[parameter_name])
        else:
            assert parameter.grad is None


class Counting(nn.Module):
    """Changes a buffer and an attribute in every forward, whatever its mode."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 5)
        self.register_buffer("calls", torch.zeros(()))
        self.last_seen = None

    def forward(self, x):
        self.calls += 1
        self.last_seen = x.detach()
        return self.last(torch.relu(self.first(x)))


@pytest.mark.parametrize("name", ON_DATA)
def test_what_a_forward_stores_is_taken_back(name) -> None:
    model = Counting()
    hand.scores(name, hand.context(model, hand.data(shape=(6,))))
    assert float(model.calls) == 0
    assert model.last_seen is None


@pytest.mark.parametrize("name", ON_DATA)
def test_a_failure_in_the_middle_leaves_no_trace_either(name) -> None:
    class Failing(hand.Squares):
        calls = 0

        def inputs(self, batch):
            Failing.calls += 1
            if Failing.calls == 2:
                raise RuntimeError("in the task")
            return super().inputs(batch)

    model = hand.joined().train()
    ctx = hand.context(model, hand.data(), Failing())
    before, state, collecting = fingerprint(model), torch.get_rng_state(), gc.isenabled()
    with pytest.raises(RuntimeError, match="in the task"):
        hand.scores(name, ctx)
    assert differences(before, fingerprint(model)) == []
    assert torch.equal(torch.get_rng_state(), state)
    assert gc.isenabled() == collecting


class Endless:
    """Batches without end; counts what is asked for, and watches whether they are let go of."""

    def __init__(self, shape=(6,), size=4) -> None:
        self.shape, self.size, self.asked = shape, size, 0
        self.alive: list[weakref.ref] = []
        self.most = 0

    def __iter__(self):
        while True:
            self.asked += 1
            inputs, targets = torch.randn(self.size, *self.shape), torch.randn(self.size, 5)
            self.alive = [ref for ref in self.alive if ref() is not None]
            self.most = max(self.most, len(self.alive))
            self.alive.append(weakref.ref(inputs))
            yield inputs, targets
            del inputs, targets


@pytest.mark.parametrize("name", ON_DATA)
def test_an_endless_source_is_read_as_far_as_asked_and_batches_are_let_go(name) -> None:
    source = Endless()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5)).eval()
    ctx = hand.context(model, source, example_inputs=(torch.randn(2, 6),))
    hand.scores({"name": name, "samples": 70}, ctx)
    assert source.asked == 18  # 17 full batches of four, and half of one
    assert source.most <= 2
    source.asked = 0
    hand.scores({"name": name, "samples": None, "batches": 5}, ctx)
    assert source.asked == 5


def test_the_last_batch_is_cut_to_the_samples_asked() -> None:
    ctx = hand.context(nn.Linear(6, 5), hand.data(batches=3, size=4, shape=(6,)))
    sizes = [len(batch[0]) for batch in batches(ctx, ctx.train, Reading(samples=6), "x")]
    assert sizes == [4, 2]
    singles = [len(batch[0]) for batch in batches(ctx, ctx.train, Reading(batches=2, per="sample"), "x")]
    assert singles == [1] * 8
    with pytest.raises(SlimError, match="samples must be at least 1, not 0"):
        Reading(samples=0).check("x")


def test_augmentation_is_left_out_and_the_epoch_stays() -> None:
    inputs, targets = torch.randn(12, 6), torch.randn(12, 5)
    source = TensorSource(inputs, targets, 4, augment=lambda batch, generator: batch * 0)
    source.set_epoch(3)
    ctx = hand.context(nn.Linear(6, 5), source, example_inputs=(inputs[:2],))
    read = torch.cat([batch[0] for batch in batches(ctx, source, Reading(), "x")])
    assert torch.equal(read, inputs)
    assert source.epoch == 3


@pytest.mark.parametrize("own", [True, False])
def test_a_shuffled_loader_gives_the_same_scores_every_time(own) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5)).eval()
    generator = torch.Generator().manual_seed(1) if own else None
    data = TensorDataset(torch.randn(64, 6), torch.randn(64, 5))
    loader = DataLoader(data, batch_size=8, shuffle=True, generator=generator)
    ctx = hand.context(model, loader, example_inputs=(torch.randn(2, 6),))
    state = generator.get_state() if own else None
    first = hand.scores({"name": "taylor", "samples": 24}, ctx)
    torch.randn(5)
    again = hand.scores({"name": "taylor", "samples": 24}, ctx)
    assert np.array_equal(first["0"], again["0"])
    assert not own or torch.equal(generator.get_state(), state)
    other = hand.context(model, loader, example_inputs=(torch.randn(2, 6),), seed=9)
    assert not np.array_equal(hand.scores({"name": "taylor", "samples": 24}, other)["0"], first["0"])


class Watching:
    """A progress that writes down what it is told."""

    def __init__(self) -> None:
        self.tracks: list[tuple[str, float | None, float]] = []

    def track(self, description, total=None):
        from contextlib import contextmanager

        @contextmanager
        def open_():
            done = [0.0]

            class Track:
                def advance(self, amount=1.0, **fields) -> None:
                    done[0] += amount

            yield Track()
            self.tracks.append((description, total, done[0]))

        return open_()

    def note(self, line: str) -> None:
        raise AssertionError(line)


@pytest.mark.parametrize(
    ("criterion", "total"),
    [
        ("taylor", 3),
        ("apoz", 3),
        ("hessian", 3),
        ({"name": "fisher", "samples": 10}, 10),
        ({"name": "taylor", "batches": 2}, 2),
    ],
)
def test_progress_adds_up(criterion, total) -> None:
    progress = Watching()
    hand.scores(criterion, hand.context(hand.joined(), hand.data(), progress=progress))
    name = criterion if isinstance(criterion, str) else criterion["name"]
    assert progress.tracks == [(f"importance {name}", total, total)]


@pytest.mark.parametrize("name", ON_DATA)
def test_a_plan_prepares_a_criterion_once(name) -> None:
    source = Endless((3, 4, 4))
    model = hand.joined()
    slim_prune.plan(model, (torch.randn(1, 3, 4, 4),), ratios={"*": 0.5}, round_to=1, task=hand.Squares(), train=source,
                    importance={"name": name, "batches": 3, "samples": None})  # fmt: skip
    assert source.asked == 3


@pytest.mark.parametrize("name", ON_DATA)
def test_a_plan_without_data_says_what_is_missing_before_it_begins(name) -> None:
    class Slow(nn.Module):
        def forward(self, x):
            raise AssertionError("the model is run")

    with pytest.raises(PlanError, match=f"importance '{name}' needs a task and training data: there is none"):
        slim_prune.plan(Slow(), (torch.randn(1, 3),), {"macs": 0.5}, importance=name)


def test_the_gradients_of_a_pass_are_gone_before_the_next_are_made() -> None:
    refs: list[weakref.ref] = []

    class Watching(hand.Squares):
        def loss(self, outputs, batch):
            assert [ref for ref in refs if ref() is not None] == []
            return super().loss(outputs, batch)

    ctx = hand.context(hand.joined(), hand.data(), Watching())
    passes = gradients(ctx, Reading(), "x")
    for _, weights, found in passes:
        assert found.keys() <= weights.keys()
        refs += [weakref.ref(gradient) for gradient in found.values()]
    assert len(refs) == 3 * len(weights)
