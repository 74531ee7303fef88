"""Criteria on random networks and on models of unusual make: every one gives what plain autograd gives."""

from __future__ import annotations

import importance_hand as hand
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from torch import nn

import slim_prune
from slim_core.graph import analyse
from slim_core.tasks import ClassificationTask
from slim_core.testing.networks import Network
from slim_core.testing.strategies import networks
from slim_core.testing.workloads import differences, fingerprint
from slim_core.workload import tensors_of


class MeanSquares(hand.Squares):
    """The mean square of every output, without targets."""

    def inputs(self, batch):
        return batch

    def loss(self, outputs, batch):
        return sum(out.square().mean() for out in tensors_of(outputs))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(network=networks(max_blocks=2))
def test_taylor_on_random_networks(network: Network) -> None:
    model, inputs = network.module, network.example_inputs
    assume(analyse(model, inputs).groups)
    ctx = hand.context(model, [inputs, tuple(t.flip(-1) for t in inputs)], MeanSquares(), example_inputs=inputs)
    before = fingerprint(model)
    found = hand.scores({"name": "taylor", "power": "absolute"}, ctx)
    assert differences(before, fingerprint(model)) == []
    passes = [(len(batch[0]), hand.gradients(model, ctx.task, batch)) for batch in ctx.train]
    expected = hand.by_hand(ctx, passes, "group", abs)
    for name in expected:
        assert found[name] == pytest.approx(expected[name], rel=5e-3, abs=1e-5 * max(expected[name].max(), 1e-3))


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile], ids=["DataParallel", "torch.compile"])
@pytest.mark.parametrize("name", ["taylor", "apoz", "hessian"])
def test_wrapped_models_are_looked_through(wrap, name) -> None:
    model, data = hand.joined(), hand.data(batches=2)
    options = {"ratios": {"*": 0.5}, "round_to": 1, "importance": name, "task": hand.Squares(), "train": data}
    plain = slim_prune.plan(model, (data[0][0],), **options)
    wrapped = slim_prune.plan(wrap(model), (data[0][0],), **options)
    assert all(np.array_equal(a, b) for a, b in zip(plain.kept.values(), wrapped.kept.values(), strict=True))


class Words(nn.Module):
    """Sparse gradients, keyword inputs, an output with logits, and a recurrent layer that stays as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8, sparse=True)
        self.mix = nn.Linear(8, 6)
        self.gru = nn.GRU(6, 4, batch_first=True)
        self.hidden, self.head = nn.Linear(4, 10), nn.Linear(10, 3)

    def forward(self, ids, scale):
        x = torch.relu(self.mix(self.embed(ids))) * scale[:, None, None]
        return {"logits": self.head(torch.relu(self.hidden(self.gru(x)[0][:, -1])))}


@pytest.fixture
def words():
    torch.manual_seed(0)
    batches = [
        {"ids": torch.randint(0, 11, (4, 5)), "scale": torch.rand(4) + 0.5, "labels": torch.randint(0, 3, (4,))}
        for _ in range(3)
    ]
    example = {name: batches[0][name][:2] for name in ("ids", "scale")}
    return Words().eval(), batches, example


@pytest.mark.parametrize("name", ["taylor", "fisher", "apoz", "activation", "hessian"])
def test_mappings_and_recurrent_layers(words, name) -> None:
    model, batches, example = words
    ctx = hand.context(model, batches, ClassificationTask(), example_inputs=example)
    found = hand.scores(name, ctx)
    assert {"hidden", "mix"} & set(found)
    if name != "taylor":
        return
    passes = []
    for batch in batches:
        model.zero_grad()
        ctx.task.loss(model(batch["ids"], batch["scale"]), batch).backward()
        grads = {n: p.grad.to_dense().double() for n, p in model.named_parameters()}
        passes.append((4, grads))
    expected = hand.by_hand(ctx, passes, "group", lambda x: x * x)
    for group in expected:
        assert found[group] == pytest.approx(expected[group], rel=1e-3)


class Parametrized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 5)
        nn.utils.parametrizations.weight_norm(self.first)

    def forward(self, x):
        return self.last(torch.relu(self.first(x)))


@pytest.mark.parametrize("name", ["l1", "fpgm", "taylor", "apoz", "hessian", "fisher"])
def test_parametrized_weights(name) -> None:
    torch.manual_seed(0)
    ctx = hand.context(Parametrized().eval(), hand.data(shape=(6,)))
    names = {m.name for group in ctx.coupling.groups for m in group.members}
    assert any("parametrizations" in member for member in names)
    assert all(np.isfinite(values).all() for values in hand.scores(name, ctx).values())


def test_the_chosen_channels_lose_less_than_random_ones() -> None:
    """On a trained network, what Taylor removes costs less than what chance removes."""
    from slim_core.training import FitConfig, fit
    from slim_core.workload import Workload

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))
    inputs = torch.randn(512, 10)
    targets = (inputs[:, :3] + 0.3 * inputs[:, 3:6].square()).argmax(1)
    data = [(inputs[n : n + 64], targets[n : n + 64]) for n in range(0, 512, 64)]
    task = ClassificationTask()
    workload = Workload(model, (inputs[:2],), task=task, train=data)
    trained = fit(workload, FitConfig(epochs=15, lr=0.05, device="cpu")).workload.model.eval()

    def loss(importance, seed=0) -> float:
        plan = slim_prune.plan(trained, (inputs[:2],), ratios={"*": 0.5}, round_to=1, importance=importance,
                               task=task, train=data, seed=seed)  # fmt: skip
        with torch.no_grad():
            return float(task.loss(plan.apply(trained)(inputs), (inputs, targets)))

    chance = np.mean([loss("random", seed) for seed in range(5)])
    for name in ("taylor", "fisher", "hessian", "apoz", "activation", "l1"):
        assert loss(name) < chance


@pytest.mark.parametrize("importance", ["l1", "taylor", {"name": "apoz", "samples": 5}])
def test_scores_without_a_plan_are_what_the_plan_goes_by(importance) -> None:
    model, data = hand.joined(), hand.data()
    given = {"task": hand.Squares(), "train": data}
    found = slim_prune.scores(model, (data[0][0],), importance, **given)
    plan = slim_prune.plan(model, (data[0][0],), ratios={"*": 0.5}, round_to=1, importance=importance, **given)
    for group in plan.groups:
        best = np.argsort(-found[group.name], kind="stable")[: len(group.kept)]
        assert np.array_equal(np.sort(best), group.kept)
    expected = hand.scores(importance, hand.context(model, data))
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_scores_without_data_are_an_error_before_the_model_is_run() -> None:
    from slim_prune.errors import PlanError

    with pytest.raises(PlanError, match="importance 'fisher' needs training data"):
        slim_prune.scores(nn.Identity(), (torch.zeros(1),), "fisher", task=hand.Squares())
