"""Composed plans: one plan from the original to the final model that equals applying one plan after the other."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import nn

import slim_prune
from slim_core import checkpoint
from slim_core.graph import analyse
from slim_core.plugins import load_plugins
from slim_core.testing.networks import Network
from slim_core.testing.oracle import assert_equals_masked_original
from slim_core.testing.strategies import networks
from slim_core.testing.workloads import TinyNet, tiny_workload
from slim_prune.composition import compose_attributes, compose_tensors
from slim_prune.edits import AttributeEdit, TensorEdit, state_of
from slim_prune.errors import PlanError
from slim_prune.prune_plan import PrunePlan
from slim_prune.record import ChannelsReplayer

relaxed = settings(
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)


def edit(name: str, dim: int, total: int, *kept: int) -> TensorEdit:
    return TensorEdit(name, dim, total, np.array(kept))


def test_kept_indices_are_composed_by_hand() -> None:
    first = (edit("a", 0, 8, 1, 3, 4, 7), edit("b", 1, 8, 1, 3, 4, 7))
    second = (edit("a", 0, 4, 0, 3), edit("a", 1, 5, 2), edit("c", 0, 3, 0, 1))
    composed = {(e.name, e.dim): (e.total, e.kept.tolist()) for e in compose_tensors(first, second)}
    assert composed == {
        ("a", 0): (8, [1, 7]),
        ("a", 1): (5, [2]),
        ("b", 1): (8, [1, 3, 4, 7]),
        ("c", 0): (3, [0, 1]),
    }


def test_attributes_are_composed_by_hand() -> None:
    first = (AttributeEdit("a", "out_channels", 8, 4), AttributeEdit("n", "normalized_shape", (8,), (4,)))
    second = (AttributeEdit("a", "out_channels", 4, 2), AttributeEdit("b", "groups", 6, 3))
    composed = {(e.module, e.name): (e.before, e.after) for e in compose_attributes(first, second)}
    assert composed == {("a", "out_channels"): (8, 2), ("n", "normalized_shape"): ((8,), (4,)), ("b", "groups"): (6, 3)}


def test_parts_that_do_not_follow_are_refused() -> None:
    with pytest.raises(PlanError, match="expects 3 indices, and the first one leaves 4"):
        compose_tensors([edit("a", 0, 8, 0, 1, 2, 3)], [edit("a", 0, 3, 0)])
    with pytest.raises(PlanError, match="expects 5, and the first one leaves 4"):
        compose_attributes([AttributeEdit("a", "groups", 8, 4)], [AttributeEdit("a", "groups", 5, 2)])


def halves(model, inputs, share: float, **options) -> PrunePlan:
    return slim_prune.plan(model, inputs, ratios={"*": share}, round_to=1, **options)


def same_models(left: nn.Module, right: nn.Module) -> None:
    mine, theirs = state_of(left), state_of(right)
    assert list(mine) == list(theirs)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())
    for (path, module), (_, other) in zip(left.named_modules(), right.named_modules(), strict=True):
        sizes = {k: v for k, v in vars(module).items() if type(v) in (int, tuple)}
        assert sizes == {k: v for k, v in vars(other).items() if type(v) in (int, tuple)}, path


@settings(relaxed, max_examples=15)
@given(
    network=networks(max_blocks=3),
    shares=st.lists(st.sampled_from([0.3, 0.6, 0.9]), min_size=2, max_size=3),
    seed=st.integers(0, 9),
)
def test_a_composed_plan_equals_one_plan_after_the_other(network: Network, shares: list[float], seed: int) -> None:
    model, plans = network.module, []
    for number, share in enumerate(shares):
        if not analyse(model, network.example_inputs).groups:
            break
        plans.append(halves(model, network.example_inputs, share, importance={"name": "random", "seed": seed + number}))
        model = plans[-1].apply(model)
    if not plans:
        return
    composed = slim_prune.compose(*plans)
    at_once = composed.apply(network.module)
    same_models(at_once, model)
    again = PrunePlan.from_json(composed.to_json())
    same_models(again.apply(network.module), model)
    assert composed.before == plans[0].before
    assert composed.after == plans[-1].after
    replayed = ChannelsReplayer().replay(copy.deepcopy(network.module), composed.transform(), network.example_inputs)
    same_models(replayed, model)
    coupling = analyse(network.module, network.example_inputs)
    units = {group.name: group.units for group in coupling.groups}
    if all(units.get(group.name) == group.units for group in composed.groups):  # no group has changed its units
        assert_equals_masked_original(
            network.module, at_once, coupling, composed.kept, network.example_inputs, rtol=1e-5
        )


def test_three_plans_are_composed_from_either_side() -> None:
    workload = tiny_workload()
    plans, model = [], workload.model
    for share in (0.8, 0.7, 0.6):
        plans.append(halves(model, workload.example_inputs, share))
        model = plans[-1].apply(model)
    left = plans[0].then(plans[1]).then(plans[2])
    right = plans[0].then(plans[1].then(plans[2]))
    assert left.edits == right.edits
    assert {k: v.tolist() for k, v in left.kept.items()} == {k: v.tolist() for k, v in right.kept.items()}
    same_models(left.apply(workload.model), model)


def test_costs_budgets_and_notes_speak_of_the_original() -> None:
    workload = tiny_workload(width=32)
    first = slim_prune.plan(workload.model, workload.example_inputs, {"macs": 0.6}, round_to=1)
    middle = first.apply(workload.model)
    second = slim_prune.plan(middle, workload.example_inputs, {"macs": 0.5}, round_to=1, importance="l2")
    composed = first.then(second)
    assert composed.before["macs"] == first.before["macs"]
    assert composed.after["macs"] == second.after["macs"]
    assert composed.budget["macs"] == pytest.approx(0.5 * second.before["macs"] / first.before["macs"])
    assert composed.importance == "l1, then l2"
    notes = [note for note in composed.notes if note.startswith("macs: ")]
    assert len(notes) == 1
    assert f"{second.after['macs']:,.0f} of {first.before['macs']:,.0f}" in notes[0]


def test_of_two_bounds_on_one_cost_the_tighter_one_is_kept() -> None:
    workload = tiny_workload(width=32)
    first = slim_prune.plan(workload.model, workload.example_inputs, {"macs": 0.5}, round_to=1)
    second = slim_prune.plan(first.apply(workload.model), workload.example_inputs, {"params": 0.5}, round_to=1)
    third = slim_prune.plan(
        second.apply(first.apply(workload.model)), workload.example_inputs, {"macs": 1.0}, round_to=1
    )
    composed = slim_prune.compose(first, second, third)
    assert composed.budget["macs"] == pytest.approx(third.before["macs"] / first.before["macs"])
    assert composed.budget["params"] == pytest.approx(0.5 * second.before["params"] / first.before["params"])


def test_a_plan_for_another_model_is_refused() -> None:
    workload = tiny_workload()
    plan = halves(workload.model, workload.example_inputs, 0.5)
    with pytest.raises(PlanError, match="second plan is for shape"):
        plan.then(plan)
    other = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(PlanError, match="only one of the two plans knows"):
        plan.then(halves(other, (torch.randn(2, 4),), 0.5))


class Grouped(nn.Module):
    """A grouped convolution, which becomes an ordinary one when a single group is left."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.conv = nn.Conv2d(8, 8, 3, groups=2)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        return self.head(torch.relu(self.conv(torch.relu(self.stem(x)))))


def test_a_group_whose_units_change_on_the_way_still_composes() -> None:
    model, inputs = Grouped(), (torch.randn(2, 3, 6, 6),)
    coupling = analyse(model, inputs)
    first = slim_prune.plan(model, inputs, ratios={"*": 0.5}, round_to=1)
    middle = first.apply(model)
    second = slim_prune.plan(middle, inputs, ratios={"*": 0.5}, round_to=1)
    composed = first.then(second)
    same_models(composed.apply(model), second.apply(middle))
    assert PrunePlan.from_json(composed.to_json()).edits == composed.edits
    assert {g.name for g in composed.groups} >= {g.name for g in coupling.groups}


@pytest.mark.parametrize("transforms", ["one", "several"])
def test_checkpoints_of_models_pruned_in_steps_rebuild(transforms: str, tmp_path) -> None:
    registry = load_plugins(select=["slim-prune"]).registry
    workload = tiny_workload()
    current, plans = workload, []
    for share in (0.8, 0.7, 0.6):
        plans.append(halves(current.model, current.example_inputs, share))
        current = current.with_model(plans[-1].apply(current.model), plans[-1].transform())
    if transforms == "one":
        current = workload.with_model(current.model, slim_prune.compose(*plans).transform())
    assert len(current.transforms) == (1 if transforms == "one" else 3)
    checkpoint.save(current, tmp_path / "model.safetensors")
    again = checkpoint.load(tmp_path / "model.safetensors", registry=registry, factory=TinyNet)
    same_models(again.model, current.model)
    assert len(again.transforms) == len(current.transforms)
