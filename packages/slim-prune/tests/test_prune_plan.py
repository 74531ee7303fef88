"""The plan as data: JSON, comparison, checks, tables; and applying it."""

from __future__ import annotations

import copy
import dataclasses
import json
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from slim_prune.edits import Edits
from slim_prune.errors import PlanError
from slim_prune.prune_plan import GroupPlan, PrunePlan


def test_json_round_trip_gives_an_equal_plan(plan, tmp_path) -> None:
    path = tmp_path / "plan.json"
    plan.save(path)
    again = PrunePlan.load(path)
    assert again.to_json() == plan.to_json()
    assert again.edits == plan.edits
    assert again.kept["a"].dtype == np.int64
    assert json.loads(path.read_text())["version"] == 2


def test_a_loaded_plan_prunes_the_same(net, plan, tmp_path) -> None:
    plan.save(tmp_path / "plan.json")
    first, second = plan.apply(net), PrunePlan.load(tmp_path / "plan.json").apply(net)
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


CHANGES = {
    "unknown key": (lambda d: d.update(colour="red"), "colour"),
    "a newer version": (lambda d: d.update(version=3), "has version 3, and this slim-prune reads versions up to 2"),
    "no version": (lambda d: d.pop("version"), "'version' is no number"),
    "a version that is true": (lambda d: d.update(version=True), "'version' is no number"),
    "a budget that says nothing": (lambda d: d.update(budget={"macs": "much"}), "budget for 'macs'"),
    "details that are no object": (lambda d: d.update(details=[]), "details"),
    "another format": (lambda d: d.update(format="x"), "format"),
    "missing key": (lambda d: d.pop("groups"), "groups"),
    "text for units": (lambda d: d["groups"][0].update(units="6"), "groups.0.units"),
    "unsorted units": (lambda d: d["groups"][0].update(kept=[2, 1]), "ascending"),
    "unit out of range": (lambda d: d["groups"][0].update(kept=[0, 6]), "within 0..5"),
    "nothing kept": (lambda d: d["groups"][0].update(kept=[]), "no index is kept"),
    "index out of range": (lambda d: d["indices"].update(kept0=[0, 9]), "within 0..5"),
    "no such array": (lambda d: d["indices"].clear(), "no index array"),
    "infinite cost": (lambda d: d["before"].update(macs=float("inf")), "before.macs"),
}


@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES)
def test_wrong_json_is_refused_and_names_the_key(plan, change, message) -> None:
    data = copy.deepcopy(plan.to_json())
    change(data)
    with pytest.raises(PlanError, match=message):
        PrunePlan.from_json(data)


def test_a_plan_of_version_1_is_read_and_written_as_2(plan) -> None:
    old = copy.deepcopy(plan.to_json())
    del old["details"]
    old["version"] = 1
    again = PrunePlan.from_json(old)
    assert again.to_json() == plan.to_json()
    assert old["version"] == 1  # what was given is left as it is


def test_what_a_budget_reached_is_told_as_figures(plan) -> None:
    (bound,) = plan.reached
    assert (bound.cost, bound.original, bound.limit, bound.value) == ("macs", 100.0, 50.0, 50.0)
    assert (bound.kept, bound.distance) == (0.5, 0.0)
    several = dataclasses.replace(
        plan,
        budget={"params": "400", "macs": "60%", "unknown": 0.5},
        before={"macs": 100.0, "params": 1000.0},
        after={"macs": 54.0, "params": 300.0},
    )
    assert [(b.cost, b.limit, round(b.distance, 12)) for b in several.reached] == [
        ("params", 400.0, 0.25),
        ("macs", 60.0, 0.1),
    ]
    assert str(several.reached[1]) == "macs: 54 of 100 (54.0%), 10.00% below the limit of 60"
    assert several.reached[0].to_json() == {
        "cost": "params", "original": 1000.0, "limit": 400.0, "value": 300.0, "distance": 0.25
    }  # fmt: skip
    assert dataclasses.replace(plan, budget={}).reached == ()


def test_a_picture_is_an_svg_file_with_the_plans_numbers(plan) -> None:
    tree = ElementTree.fromstring(plan.picture())
    assert tree.tag == "{http://www.w3.org/2000/svg}svg"
    texts = [element.text for element in tree.iter() if element.text]
    assert "HandNet: l1, uniform" in texts
    assert "macs: 50 of 100 (50.0%), limit 50" in texts
    assert any("3 / 6" in text for text in texts)
    bars = {
        element.get("class"): float(element.get("width"))
        for element in tree.iter()
        if element.get("class") in ("whole", "kept")
    }
    assert bars["kept"] / bars["whole"] == pytest.approx(0.5, rel=1e-3)


def test_a_picture_escapes_what_a_file_brings(plan) -> None:
    hostile = dataclasses.replace(plan, model_class="<script>&", importance='"')
    assert "<script>" not in hostile.picture()
    ElementTree.fromstring(hostile.picture())


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format": 1}'])
def test_files_that_are_no_plan_are_refused(tmp_path, text) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(PlanError, match=r"plan\.json"):
        PrunePlan.load(tmp_path / "plan.json")


def test_a_plan_is_not_written_into_a_missing_folder(plan, tmp_path) -> None:
    with pytest.raises(PlanError, match="there is no folder"):
        plan.save(tmp_path / "a" / "plan.json")
    with pytest.raises(PlanError, match="cannot be written"):
        plan.save(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_is_one_clear_error(tmp_path) -> None:
    with pytest.raises(PlanError, match="cannot be read"):
        PrunePlan.load(tmp_path / "none.json")


def test_summary_counts_channels(plan) -> None:
    assert plan.summary() == [{"name": "a", "kept": 3, "total": 6}]


def test_show_names_groups_costs_and_notes(plan) -> None:
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(plan.show())
    text = console.export_text()
    for part in ("HandNet", "macs", "50.0%", "a note", "l1"):
        assert part in text


def with_kept(plan: PrunePlan, kept: list[int]) -> PrunePlan:
    other = copy.copy(plan)
    object.__setattr__(other, "groups", (GroupPlan("a", 6, 1, np.array(kept)),))
    return other


def test_diff_counts_what_both_keep(plan) -> None:
    (row,) = plan.diff(with_kept(plan, [0, 1]))
    assert (row.name, row.units, row.first, row.second, row.common) == ("a", 6, 3, 2, 1)
    assert plan.diff(with_kept(plan, [0, 2, 5])) == []


def test_diff_of_a_group_that_the_other_plan_leaves_alone(plan) -> None:
    other = copy.copy(plan)
    object.__setattr__(other, "groups", ())
    (row,) = plan.diff(other)
    assert (row.first, row.second, row.common) == (3, 6, 3)


def test_diff_of_plans_for_different_models_is_refused(plan) -> None:
    other = copy.copy(plan)
    object.__setattr__(other, "shapes", {})
    with pytest.raises(PlanError, match="different models"):
        plan.diff(other)


def grow_head(net) -> None:
    net.head = nn.Linear(4, 5)


def add_layer(net) -> None:
    net.extra = nn.Linear(2, 2)


def drop_layer(net) -> None:
    del net.head


def untie(net) -> None:
    net.c.weight = nn.Parameter(net.c.weight.detach().clone())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (grow_head, r"expects shape \(3, 4\)"),
        (add_layer, "'extra.weight', which the plan does not know"),
        (drop_layer, "no 'head.weight'"),
        (untie, "tied"),
    ],
)
def test_a_model_that_the_plan_was_not_made_for_is_refused_untouched(net, plan, change, message) -> None:
    change(net)
    before = copy.deepcopy(net.state_dict())
    for apply in (plan.apply, lambda m: plan.apply(m, inplace=True), plan.apply_reversibly, plan.mask, plan.masked):
        with pytest.raises(PlanError, match=message):
            apply(net)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_a_plan_for_an_already_pruned_model_is_refused(net, plan) -> None:
    pruned = plan.apply(net)
    with pytest.raises(PlanError, match="expects shape"):
        plan.apply(pruned)


def test_an_optimizer_with_a_copy_is_refused(net, plan) -> None:
    with pytest.raises(PlanError, match="a copy was asked"):
        plan.apply(net, optimizer=torch.optim.SGD(net.parameters(), 0.1))


def test_a_plan_whose_result_would_not_run_is_refused_before_the_cut(net, plan) -> None:
    broken = copy.copy(plan)
    tensors = tuple(edit for edit in plan.edits.tensors if edit.name not in ("b.weight", "c.weight"))
    object.__setattr__(broken, "edits", Edits(tensors, plan.edits.attributes))
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(PlanError, match="does not run"):
        broken.apply(net, inplace=True)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_a_plan_whose_result_would_have_other_outputs_is_refused(net, plan) -> None:
    other = copy.copy(plan)
    object.__setattr__(other, "outputs", ((2, 4),))
    with pytest.raises(PlanError, match="outputs of shapes"):
        other.apply(net)


def test_applying_leaves_the_training_mode_and_the_generator_alone(net, plan) -> None:
    net.train()
    state = torch.get_rng_state()
    pruned = plan.apply(net)
    assert pruned.training
    assert torch.equal(torch.get_rng_state(), state)
    assert net.norm.num_batches_tracked == 0


def test_frozen_parameters_stay_frozen(net, plan) -> None:
    net.a.weight.requires_grad_(False)
    assert not plan.apply(net).a.weight.requires_grad
    assert not plan.apply(net, inplace=True).a.weight.requires_grad
