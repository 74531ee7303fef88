"""Network slimming: the penalty by hand, in one's own loop and in ``fit``, and what it leads to."""

from __future__ import annotations

import copy

import importance_hand as hand
import pytest
import torch
from torch import nn

import slim_prune
from slim_core.errors import PatternError, SlimError
from slim_core.registry import Registry
from slim_core.technique import Run
from slim_core.training import FitConfig, fit
from slim_core.workload import Workload
from slim_prune.importance.slimming import Slimming, norm_scales, scale_penalty
from slim_prune.importance.slimming_step import SlimmingConfig, SlimmingTraining


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.more = nn.Sequential(nn.Conv2d(8, 6, 1), nn.BatchNorm2d(6), nn.ReLU())
        self.plain = nn.BatchNorm2d(6, affine=False)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        return self.head(self.plain(self.more(self.body(x))).mean((2, 3)))


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = Small()
    with torch.no_grad():
        for scale in norm_scales(model).values():
            scale.normal_()
    return model


def workload(model) -> Workload:
    data = hand.data(batches=4, size=8)
    return Workload(model, (data[0][0],), task=hand.Squares(), train=data)


def test_the_scales_of_affine_norms_are_found(model) -> None:
    assert list(norm_scales(model)) == ["body.1.weight", "more.1.weight"]
    assert norm_scales(model)["body.1.weight"] is model.body[1].weight
    assert list(norm_scales(model, include=["body"])) == ["body.1.weight"]
    assert list(norm_scales(model, exclude=["body.*"])) == ["more.1.weight"]


def test_a_norm_in_two_places_counts_once(model) -> None:
    model.more[1] = model.body[1]
    assert list(norm_scales(model)) == ["body.1.weight"]


def test_patterns_that_match_nothing_are_errors(model) -> None:
    with pytest.raises(PatternError, match="did you mean 'body'"):
        norm_scales(model, include=["boddy"])
    with pytest.raises(SlimError, match="Sequential has no batch norm"):
        norm_scales(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(SlimError, match="above 0"):
        Slimming(0.0)


def test_the_penalty_and_its_gradient_by_hand(model) -> None:
    scales = norm_scales(model)
    penalty = scale_penalty(scales.values())
    assert penalty.item() == pytest.approx(sum(float(s.detach().abs().sum()) for s in scales.values()))
    (0.3 * penalty).backward()
    for scale in scales.values():
        assert torch.equal(scale.grad, 0.3 * scale.detach().sign())


def test_fit_takes_the_steps_of_a_loop_by_hand(model) -> None:
    """Plain SGD on loss + strength * sum |scale|, step by step."""
    reference = copy.deepcopy(model).train()
    task, data = hand.Squares(), hand.data(batches=4, size=8)
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.05)
    for batch in data:
        optimizer.zero_grad()
        task.loss(reference(batch[0]), batch).backward()
        for scale in norm_scales(reference).values():
            scale.grad += 0.02 * scale.detach().sign()
        optimizer.step()
    config = FitConfig(epochs=1, lr=0.05, optimizer="sgd", momentum=0.0, weight_decay=0.0, schedule="constant",
                       device="cpu")  # fmt: skip
    trained = fit(workload(model), config, callbacks=[Slimming(0.02)]).workload.model
    for (name, actual), expected in zip(trained.named_parameters(), reference.parameters(), strict=True):
        assert torch.allclose(actual, expected, atol=1e-6), name


def test_scales_become_small_and_the_history_says_how_many(model) -> None:
    config = FitConfig(epochs=25, lr=0.05, optimizer="sgd", weight_decay=0.0, schedule="constant", device="cpu")
    plain = fit(workload(model), config)
    slim = fit(workload(model), config, callbacks=[Slimming(0.3, include=["body"])])

    def size(result, name):
        return float(norm_scales(result.workload.model)[name].detach().abs().mean())

    assert size(slim, "body.1.weight") < 0.2 * size(plain, "body.1.weight")
    assert size(slim, "more.1.weight") > 0.2 * size(plain, "more.1.weight")
    scales = norm_scales(slim.workload.model)["body.1.weight"].detach().abs()
    assert slim.history[-1]["small_scales"] == pytest.approx(float((scales < 0.01).double().mean()))
    assert "small_scales" not in plain.history[-1]


def test_the_smallest_scales_are_the_ones_that_are_pruned(model) -> None:
    plan = slim_prune.plan(model.eval(), (torch.randn(1, 3, 4, 4),), ratios={"*": 0.5}, round_to=1,
                           importance="bn_scale")  # fmt: skip
    for layer, norm in (("body.0", model.body[1]), ("more.0", model.more[1])):
        kept = set(plan.kept[layer])
        assert kept == set(norm.weight.detach().abs().topk(len(kept)).indices.tolist())


def test_a_recipe_step_trains_with_the_penalty_and_reports_the_scales(model, tmp_path) -> None:
    config = SlimmingConfig.model_validate(
        {"strength": 0.3, "include": ["body"], "fit": {"epochs": 3, "lr": 0.05, "device": "cpu"}}
    )
    run = Run(folder=tmp_path, seed=0, registry=Registry())
    result = SlimmingTraining().run(workload(model), config, run)
    by_hand = fit(workload(model), config.fit, callbacks=[Slimming(0.3, include=["body"])]).workload.model
    expected, found = by_hand.state_dict(), result.workload.model.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert result.workload.transforms == ()
    scales = found["body.1.weight"].abs()
    (row,) = result.details["layers"]
    assert row["name"] == "body.1.weight"
    assert row["scales"] == 8
    assert row["below 0.01"] == int((scales < 0.01).sum())
    assert row["median scale"] == pytest.approx(float(scales.median()))
    assert result.notes == (f"{row['below 0.01']} of 8 norm scales are below 0.01, in 1 layers",)


def test_a_rehearsal_finds_patterns_that_match_nothing(model, tmp_path) -> None:
    run = Run(folder=tmp_path, seed=0, registry=Registry())
    with pytest.raises(PatternError, match="did you mean 'body'"):
        SlimmingTraining().rehearse(workload(model), SlimmingConfig(include=["boddy"]), run)
    given = workload(model)
    assert SlimmingTraining().rehearse(given, SlimmingConfig(), run) is given
