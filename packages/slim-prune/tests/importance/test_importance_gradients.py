"""Taylor and Fisher against plain autograd, unit by unit, and against the change of the loss itself."""

from __future__ import annotations

import copy

import importance_hand as hand
import numpy as np
import pytest
import torch
from torch import nn

from slim_core.errors import DataError, ModelError, SlimError
from slim_core.graph.shrink import shrink
from slim_prune import importance as importances
from slim_prune.errors import PlanError


def batchwise(model, task, data):
    return [(len(batch[0]), hand.gradients(model, task, batch)) for batch in data]


def samplewise(model, task, data):
    singles = [tuple(t[n : n + 1] for t in batch) for batch in data for n in range(len(batch[0]))]
    return [(1, hand.gradients(model, task, single)) for single in singles]


@pytest.fixture(scope="module")
def ctx():
    return hand.context(hand.joined(), hand.data())


def test_the_model_has_what_the_references_are_to_cover(ctx) -> None:
    width = {(m.name, m.dim): m.indices.shape[1] for group in ctx.coupling.groups for m in group.members}
    assert width["qkv.weight", 0] > 1  # a head
    width = {name: several for (name, _), several in width.items()}
    assert {"stem.weight", "back.weight", "grouped.weight", "raw", "qkv.weight", "head.weight"} <= width.keys()
    assert width["stem.weight"] == 2  # equal positions of the groups of the grouped convolution
    assert width["head.weight"] == 16  # flattened


@pytest.mark.parametrize("joint", ["group", "member", "weight"])
@pytest.mark.parametrize(("power", "function"), [("squared", lambda x: x * x), ("absolute", abs)])
def test_taylor_against_backward_unit_by_unit(ctx, joint, power, function) -> None:
    found = hand.scores({"name": "taylor", "joint": joint, "power": power}, ctx)
    expected = hand.by_hand(ctx, batchwise(ctx.model, ctx.task, ctx.train), joint, function)
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-7 * expected[name].max())


@pytest.mark.parametrize("joint", ["group", "member", "weight"])
def test_fisher_against_a_loop_over_samples(ctx, joint) -> None:
    found = hand.scores({"name": "fisher", "joint": joint}, ctx)
    expected = hand.by_hand(ctx, samplewise(ctx.model, ctx.task, ctx.train), joint, lambda x: 0.5 * x * x)
    for name in expected:
        assert found[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-7 * expected[name].max())


def test_fisher_of_batches(ctx) -> None:
    found = hand.scores({"name": "fisher", "per": "batch"}, ctx)
    expected = hand.by_hand(ctx, batchwise(ctx.model, ctx.task, ctx.train), "weight", lambda x: 0.5 * x * x)
    for name in expected:
        assert found[name] == pytest.approx(expected[name], rel=1e-3)


def test_taylor_of_samples_is_twice_the_group_fisher(ctx) -> None:
    taylor = hand.scores({"name": "taylor", "per": "sample"}, ctx)
    fisher = hand.scores({"name": "fisher", "joint": "group"}, ctx)
    for name in taylor:
        assert taylor[name] == pytest.approx(2 * fisher[name], rel=1e-6)


def linear() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(6, 7, bias=False), nn.Linear(7, 3, bias=False)).eval()


def test_taylor_is_the_change_of_the_loss_of_a_linear_model() -> None:
    """The loss is linear in each layer: removing a unit changes it by what one layer's gradient times weight says."""
    model, data = linear(), hand.data(batches=1, size=5, shape=(6,), outputs=3)
    task = hand.First(torch.tensor([1.0, -2.0, 0.5]))
    ctx = hand.context(model, data, task)
    (group,) = ctx.coupling.groups
    with torch.no_grad():
        before = float(task.loss(model(data[0][0]), data[0]))
        changes = []
        for unit in range(7):
            kept = np.delete(np.arange(7), unit)
            smaller = shrink(copy.deepcopy(model), ctx.coupling, {group.name: kept})
            changes.append(float(task.loss(smaller(data[0][0]), data[0])) - before)
    first = hand.scores({"name": "taylor", "power": "absolute", "joint": "member", "aggregate": "first"}, ctx)
    assert first[group.name] == pytest.approx(np.abs(changes), rel=1e-4)
    # both layers tell the same change, and the group adds them up
    both = hand.scores({"name": "taylor", "power": "absolute"}, ctx)
    assert both[group.name] == pytest.approx(2 * np.abs(changes), rel=1e-4)
    squared = hand.scores({"name": "taylor"}, ctx)
    assert squared[group.name] == pytest.approx(4 * np.square(changes), rel=1e-3)


def test_closed_form_of_the_linear_model_over_batches() -> None:
    """Gradient times weight of a unit: (c . W2[:, j]) (W1[j] . mean x); the batches' squares are averaged."""
    model, data = linear(), hand.data(batches=4, size=3, shape=(6,), outputs=3)
    c = torch.tensor([1.0, -2.0, 0.5])
    first, second = (layer.weight.detach().double().numpy() for layer in model)
    means = [batch[0].double().mean(0).numpy() for batch in data]
    change = np.array([(c.double().numpy() @ second) * (first @ mean) for mean in means])  # (batches, units)
    ctx = hand.context(model, data, hand.First(c))
    found = hand.scores({"name": "taylor", "joint": "member", "aggregate": "first"}, ctx)
    assert found["0"] == pytest.approx(np.square(change).mean(0), rel=1e-4)


def test_batches_count_by_their_samples() -> None:
    model, (batch, small) = linear(), hand.data(batches=2, size=6, shape=(6,), outputs=3)
    small = tuple(t[:2] for t in small)
    ctx = hand.context(model, [batch, small])
    expected = hand.by_hand(ctx, batchwise(model, ctx.task, ctx.train), "group", lambda x: x * x)
    assert hand.scores("taylor", ctx)["0"] == pytest.approx(expected["0"], rel=1e-4)


def test_members_are_normalized_and_aggregated() -> None:
    model, data = linear(), hand.data(batches=1, size=5, shape=(6,), outputs=3)
    ctx = hand.context(model, data)
    found = hand.gradients(model, ctx.task, data[0])
    parts = np.array([
        (found["0.weight"] * model[0].weight.double()).sum(1).detach().numpy() ** 2,
        (found["1.weight"] * model[1].weight.double()).sum(0).detach().numpy() ** 2,
    ])  # fmt: skip
    for aggregate, combine in (("mean", np.mean), ("sum", np.sum), ("max", np.max), ("prod", np.prod)):
        got = hand.scores({"name": "taylor", "joint": "member", "normalize": "max", "aggregate": aggregate}, ctx)
        assert got["0"] == pytest.approx(combine(parts / parts.max(1, keepdims=True), axis=0), rel=1e-3)
    assert hand.scores({"name": "taylor", "normalize": "mean"}, ctx)["0"].mean() == pytest.approx(1.0)


def test_frozen_parameters_count_too(ctx) -> None:
    """A backbone that is not trained can be pruned: what is asked is what the loss depends on."""
    model = hand.joined()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    frozen = hand.scores("taylor", hand.context(model, ctx.train))
    free = hand.scores("taylor", ctx)
    for name in free:
        assert frozen[name] == pytest.approx(free[name], rel=1e-6)
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("outer", [torch.no_grad, torch.inference_mode])
def test_callers_without_gradients_get_the_same_scores(ctx, outer) -> None:
    free = hand.scores("taylor", ctx)
    with outer():
        again = hand.scores("taylor", ctx)
    for name in free:
        assert np.array_equal(again[name], free[name])


def test_tied_weights_are_counted_once(ctx) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.mlp = nn.Embedding(9, 8), nn.Linear(8, 8)
            self.head = nn.Linear(8, 9, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x):
            return self.head(torch.relu(self.mlp(self.embed(x)))).sum(1)

    torch.manual_seed(0)
    model = Tied().eval()
    generator = torch.Generator().manual_seed(3)
    data = [(torch.randint(0, 9, (4, 3), generator=generator), torch.randn(4, 9, generator=generator))]
    tied = hand.context(model, data)
    assert tied.coupling.groups
    expected = hand.by_hand(tied, batchwise(model, tied.task, data), "group", lambda x: x * x)
    found = hand.scores("taylor", tied)
    for name in expected:
        assert found[name] == pytest.approx(expected[name], rel=1e-3)


def test_a_group_that_the_loss_does_not_depend_on_is_an_error() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.main, self.side = linear(), linear()

        def forward(self, x):
            return self.main(x), self.side(x)

    class OfTheFirst(hand.Squares):
        def loss(self, outputs, batch):
            return super().loss(outputs[0], batch)

    ctx = hand.context(Two().eval(), hand.data(batches=1, shape=(6,), outputs=3), OfTheFirst())
    with pytest.raises(PlanError, match="the loss depends on none of its weights"):
        hand.scores("taylor", ctx)


class Broken(hand.Squares):
    def __init__(self, loss) -> None:
        self._loss = loss

    def loss(self, outputs, batch):
        return self._loss(super().loss(outputs, batch))


@pytest.mark.parametrize("name", ["taylor", "fisher", "hessian"])
@pytest.mark.parametrize(
    ("loss", "kind", "message"),
    [
        (lambda loss: loss * float("nan"), PlanError, "the loss on the training data is nan"),
        (lambda loss: loss.detach(), PlanError, "does not depend on the model's parameters"),
        (lambda loss: loss[None], SlimError, r"shape \(1,\); it must be a scalar"),
    ],
)
def test_a_loss_that_is_of_no_use_is_an_error(name, loss, kind, message) -> None:
    ctx = hand.context(linear(), hand.data(batches=1, shape=(6,), outputs=3), Broken(loss))
    with pytest.raises(kind, match=message):
        hand.scores(name, ctx)


@pytest.mark.parametrize("name", ["taylor", "fisher", "hessian", "apoz", "activation"])
def test_data_that_does_not_fit_is_an_error_that_names_the_criterion(name) -> None:
    model, data = linear(), hand.data(batches=1, shape=(5,), outputs=3)
    ctx = hand.context(model, data, example_inputs=(torch.randn(2, 6),))
    with pytest.raises(ModelError, match=f"importance '{name}'.*fails on the"):
        hand.scores(name, ctx)


@pytest.mark.parametrize("name", ["taylor", "fisher", "hessian", "apoz", "activation"])
def test_missing_data_is_an_error_that_says_what_to_give(name) -> None:
    ctx = hand.context(linear(), None, example_inputs=(torch.randn(2, 6),))
    with pytest.raises(PlanError, match=f"importance '{name}' needs training data") as caught:
        hand.scores(name, ctx)
    assert "train=…" in (caught.value.hint or "")
    _, criterion = importances.resolve(name)
    with pytest.raises(PlanError, match="needs a task and training data"):
        importances.check_data(name, criterion)
    importances.check_data(name, criterion, task=hand.Squares(), train=[])


@pytest.mark.parametrize("name", ["taylor", "fisher", "hessian", "apoz", "activation"])
def test_empty_data_is_an_error(name) -> None:
    with pytest.raises(DataError, match=f"importance '{name}' found no batch"):
        hand.scores(name, hand.context(linear(), [], example_inputs=(torch.randn(2, 6),)))


@pytest.mark.parametrize("name", ["taylor", "fisher", "hessian", "apoz", "activation"])
def test_an_iterator_is_refused_before_it_is_used_up(name) -> None:
    source = iter(hand.data(batches=2, shape=(6,), outputs=3))
    with pytest.raises(DataError, match="read only once"):
        hand.scores(name, hand.context(linear(), source, example_inputs=(torch.randn(2, 6),)))
    assert len(list(source)) == 2


@pytest.mark.parametrize("name", ["taylor", "fisher", "hessian", "apoz", "activation"])
def test_a_model_without_weights_is_an_error(name) -> None:
    ctx = hand.context(
        linear().to("meta"), hand.data(batches=1, shape=(6,), outputs=3), example_inputs=(torch.randn(2, 6),)
    )
    with pytest.raises(PlanError, match="on the meta device"):
        hand.scores(name, ctx)
