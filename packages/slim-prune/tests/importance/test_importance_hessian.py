"""The Hessian criterion against exact diagonals."""

from __future__ import annotations

import importance_hand as hand
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from slim_core.data import generator
from slim_prune.importance.hessian import Hessian, _signs


class Diagonal(nn.Module):
    """The sum of squares of ``Wx`` with one input: the Hessian over W is diagonal."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Linear(1, 6, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight(x).pow(2).sum(1, keepdim=True)


def test_one_probe_is_exact_where_the_hessian_is_diagonal() -> None:
    torch.manual_seed(0)
    model, data = Diagonal().eval(), hand.data(batches=3, size=4, shape=(1,), outputs=1)
    ctx = hand.context(model, data, hand.First())
    square = np.mean([batch[0].double().square().mean().item() for batch in data])
    weights = model.weight.weight.detach().double().numpy()[:, 0]
    # the loss is mean(x^2) sum(w_j^2): without unit j it is less by exactly that much
    found = hand.scores({"name": "hessian", "probes": 1}, ctx)["weight"]
    assert found == pytest.approx(square * weights**2, rel=1e-5)


def network() -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Conv2d(1, 4, 2), nn.Softplus(), nn.Conv2d(4, 4, 1, groups=2), nn.Softplus(), nn.Flatten(), nn.Linear(16, 2)
    ).eval()


def exact(model: nn.Module, task, batch) -> tuple[Tensor, dict[str, slice]]:
    """The whole Hessian over all parameters end to end, in double precision, and where each parameter stands."""
    shapes = {name: p.shape for name, p in model.named_parameters()}
    ends = np.cumsum([shape.numel() for shape in shapes.values()]).tolist()
    where = {name: slice(end - shape.numel(), end) for (name, shape), end in zip(shapes.items(), ends, strict=True)}
    batch = tuple(t.double() for t in batch)

    def loss(flat: Tensor) -> Tensor:
        parameters = {name: flat[where[name]].reshape(shape) for name, shape in shapes.items()}
        return task.loss(functional_call(model, parameters, batch[0]), batch)

    flat = torch.cat([p.detach().double().reshape(-1) for p in model.parameters()])
    return torch.autograd.functional.hessian(loss, flat), where


def per_unit(ctx, group, where: dict[str, slice], diagonal: Tensor) -> np.ndarray:
    """Half of the diagonal times the squared weight, added up unit by unit."""
    shapes = {name: ctx.tensors[name].shape for name in where}
    values = {
        name: 0.5 * diagonal[place].reshape(shapes[name]) * ctx.tensors[name].double().square()
        for name, place in where.items()
    }
    return np.array([sum(sum(member) for member in members) for members in hand.unit_parts(group, values)])


def test_every_probe_is_the_product_with_the_exact_hessian() -> None:
    model, (batch,) = network(), hand.data(batches=1, size=6, shape=(1, 3, 3), outputs=2)
    ctx = hand.context(model, [batch], seed=5)
    hessian, where = exact(model, ctx.task, batch)
    signs, probes = generator(5, 1), []
    for _ in range(3):
        z = torch.cat([_signs(p, signs).reshape(-1) for p in model.parameters()]).double()
        probes.append(z * (hessian @ z))
    found = hand.scores({"name": "hessian", "probes": 3}, ctx)
    for group in ctx.coupling.groups:
        expected = per_unit(ctx, group, where, sum(probes) / 3)
        assert found[group.name] == pytest.approx(expected, rel=1e-3, abs=1e-5 * np.abs(expected).max())


def test_many_probes_come_close_to_the_exact_diagonal() -> None:
    model, (batch,) = network(), hand.data(batches=1, size=6, shape=(1, 3, 3), outputs=2)
    ctx = hand.context(model, [batch])
    hessian, where = exact(model, ctx.task, batch)
    found = hand.scores({"name": "hessian", "probes": 300}, ctx)
    # a single probe is off by the off-diagonal part: that is what the deviation of the mean follows from
    flat = torch.cat([p.detach().double().reshape(-1) for p in model.parameters()])
    for group in ctx.coupling.groups:
        expected = per_unit(ctx, group, where, hessian.diagonal())
        for unit in range(group.units):
            member_of = torch.zeros(len(flat), dtype=torch.float64)
            marks = {name: torch.zeros_like(ctx.tensors[name]) for name in where}
            for member in group.members:
                for index in member.indices[unit]:
                    marks[member.name].select(member.dim, int(index)).fill_(1.0)
            member_of = torch.cat([marks[name].reshape(-1) for name in where]).double() * flat.square() * 0.5
            off = member_of[:, None] * (hessian - hessian.diagonal().diag())
            deviation = float(((off + off.T) ** 2).triu().sum().sqrt()) / 300**0.5
            assert abs(found[group.name][unit] - expected[unit]) < 4 * deviation


def test_probes_of_batches_are_averaged() -> None:
    """Two batches with one probe each: the mean of what each gives alone, with the probes in order."""
    torch.manual_seed(0)
    model, data = Diagonal().eval(), hand.data(batches=2, size=4, shape=(1,), outputs=1)
    alone = [hand.scores("hessian", hand.context(model, [batch], hand.First()))["weight"] for batch in data]
    both = hand.scores("hessian", hand.context(model, data, hand.First()))["weight"]
    assert both == pytest.approx((alone[0] + alone[1]) / 2, rel=1e-5)


def test_it_depends_on_the_seed_alone() -> None:
    data = hand.data(batches=2, size=4, shape=(1, 3, 3), outputs=2)
    first, again, other = (hand.scores("hessian", hand.context(network(), data, seed=seed)) for seed in (3, 3, 4))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert any(not np.array_equal(first[name], other[name]) for name in first)


def test_a_linear_loss_has_no_curvature() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).eval()
    data = hand.data(batches=1, size=3, shape=(3,), outputs=2)
    ctx = hand.context(model, data, hand.First())
    found = hand.scores({"name": "hessian", "probes": 600}, ctx)["0"]
    scale = hand.scores({"name": "taylor", "power": "absolute"}, ctx)["0"].max()
    assert np.abs(found).max() < 0.1 * scale  # the diagonal is zero; only noise of the probes is left


def test_attention_and_hard_gates_have_second_derivatives_here() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = hand.joined()
            self.gate = nn.Linear(5, 8)
            self.last = nn.Linear(8, 5)

        def forward(self, x):
            x = self.gate(self.inner(x))
            return self.last(x * nn.functional.hardsigmoid(x))

    torch.manual_seed(1)
    ctx = hand.context(Gated().eval(), hand.data(batches=1))
    assert set(hand.scores("hessian", ctx)) == {group.name for group in ctx.coupling.groups}


def test_negative_scores_are_scaled_by_their_size() -> None:
    data = hand.data(batches=1, size=6, shape=(1, 3, 3), outputs=2)
    ctx = hand.context(network(), data)
    function = Hessian(normalize="mean", aggregate="first").prepare(ctx)
    for group in ctx.coupling.groups:
        values = function(group, ctx.tensors)
        assert float(values.abs().mean()) == pytest.approx(1.0)
