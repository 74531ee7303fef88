"""BN scale: which scales count, and what happens to groups without."""

from __future__ import annotations

import importance_hand as hand
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from slim_prune.errors import PlanError
from slim_prune.importance.norms import scale_names


class Normed(nn.Module):
    """A stream with two batch norms (one a function on raw parameters), a PReLU, a layer norm and a plain layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.slope = nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.PReLU(6)
        self.back = nn.Conv2d(6, 6, 1)
        self.scale, self.shift = nn.Parameter(torch.rand(6) + 0.5), nn.Parameter(torch.zeros(6))
        self.register_buffer("mean", torch.zeros(6))
        self.register_buffer("var", torch.ones(6))
        self.plain, self.laid, self.layer_norm = nn.Linear(6, 8), nn.Linear(8, 9), nn.LayerNorm(9)
        self.head = nn.Linear(9, 5)

    def forward(self, x):
        x = self.slope(self.norm(self.first(x)))
        x = x + F.batch_norm(self.back(x), self.mean, self.var, self.scale, self.shift)
        x = F.relu(self.plain(x.mean((2, 3))))
        return self.head(F.relu(self.layer_norm(self.laid(x))))


@pytest.fixture
def ctx():
    torch.manual_seed(0)
    model = Normed().eval()
    with torch.no_grad():
        model.norm.weight.normal_()
        model.layer_norm.weight.normal_()
    return hand.context(model, hand.data())


def group_of(ctx, weight: str) -> str:
    (name,) = {g.name for g in ctx.coupling.groups for m in g.members if m.name == weight and m.kind == "out"}
    return name


def test_scales_are_found_by_what_the_forward_computes(ctx) -> None:
    assert scale_names(ctx.coupling.graph) == {"norm.weight", "scale"}
    assert scale_names(ctx.coupling.graph, "norm") == {"norm.weight", "scale", "layer_norm.weight"}


def test_the_norms_of_a_stream_are_averaged(ctx) -> None:
    found = hand.scores({"name": "bn_scale", "normalize": "none"}, ctx)
    gammas = [ctx.tensors[name].abs().double().numpy() for name in ("norm.weight", "scale")]
    assert found[group_of(ctx, "first.weight")] == pytest.approx(np.mean(gammas, axis=0))
    largest = hand.scores({"name": "bn_scale", "normalize": "max", "aggregate": "max"}, ctx)
    expected = np.max([gamma / gamma.max() for gamma in gammas], axis=0)
    assert largest[group_of(ctx, "first.weight")] == pytest.approx(expected)


def test_groups_without_are_scored_by_their_weights_and_named(ctx) -> None:
    found, by_weight = hand.scores("bn_scale", ctx), hand.scores("l1", ctx)
    for weight in ("plain.weight", "laid.weight"):
        assert found[group_of(ctx, weight)] == pytest.approx(by_weight[group_of(ctx, weight)])
    assert ctx.notes == ["importance bn_scale: scored by l1, because they pass no batch norm: plain, laid"]


def test_groups_without_can_be_refused(ctx) -> None:
    with pytest.raises(PlanError, match="no batch norm") as caught:
        hand.scores({"name": "bn_scale", "otherwise": "error"}, ctx)
    assert caught.value.where in ("channel group 'plain'", "channel group 'laid'")


def test_layer_norms_count_when_asked(ctx) -> None:
    found = hand.scores({"name": "bn_scale", "norms": "any", "normalize": "none"}, ctx)
    assert found[group_of(ctx, "laid.weight")] == pytest.approx(ctx.tensors["layer_norm.weight"].abs().numpy())


def test_a_flattened_norm_counts_once_per_unit() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 5)).eval()
    with torch.no_grad():
        model[2].weight.normal_()
    ctx = hand.context(model, hand.data())
    found = hand.scores({"name": "bn_scale", "normalize": "none"}, ctx)["0"]
    assert found == pytest.approx(model[2].weight.detach().abs().reshape(4, 16).sum(1).numpy(), rel=1e-5)
