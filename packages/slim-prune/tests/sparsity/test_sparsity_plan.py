"""Plans of sparsity: figures, selection, applying, rolling back, files."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import safetensors.numpy
import sparsity_nets as nets
import torch
from torch import nn

from slim_core.errors import BudgetError, DataError, PatternError
from slim_core.tasks import ClassificationTask
from slim_core.testing.workloads import differences, fingerprint, tiny_workload
from slim_prune import sparsity
from slim_prune.sparsity import NM, Block, SparsityError, SparsityPlan, Unstructured
from slim_prune.sparsity.targets import find_targets

SELECTED = ["conv.weight", "depthwise.weight", "up.weight", "left.weight"]


def test_weights_are_selected_and_biases_norms_embeddings_and_free_parameters_are_not() -> None:
    targets = find_targets(nets.mixed())
    assert [target.name for target in targets] == SELECTED
    assert [target.axis for target in targets] == [1, 1, 0, 1]
    assert targets[3].names == ("left.weight", "right.weight")


def test_globs_take_modules_and_parameters() -> None:
    model = nets.mixed()
    assert [t.name for t in find_targets(model, ["*conv*", "up"])] == ["conv.weight", "up.weight"]
    assert [t.name for t in find_targets(model, exclude=["right"])] == SELECTED[:3]  # one of its uses is excluded
    assert [t.name for t in find_targets(model, ["position", "words.weight"])] == ["position", "words.weight"]
    with pytest.raises(PatternError, match="matches no weight") as caught:
        find_targets(model, ["cnov"])
    assert "conv" in str(caught.value.hint)


def test_recurrent_and_attention_weights_are_selected() -> None:
    model = nn.ModuleDict({"lstm": nn.LSTM(8, 4), "attention": nn.MultiheadAttention(8, 2)})
    names = [target.name for target in find_targets(model)]
    assert names == ["lstm.weight_ih_l0", "lstm.weight_hh_l0", "attention.in_proj_weight", "attention.out_proj.weight"]


def test_a_tied_embedding_is_left_alone() -> None:
    model = nn.ModuleDict({"words": nn.Embedding(10, 8), "head": nn.Linear(8, 10), "body": nn.Linear(8, 8)})
    model["head"].weight = model["words"].weight
    assert [target.name for target in find_targets(model)] == ["body.weight"]


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9, 0.99])
def test_a_sparsity_is_met_to_the_weight(share) -> None:
    model = nets.mixed()
    plan = sparsity.plan(model, sparsity=share)
    total = sum(t.tensor.numel() for t in find_targets(model))
    assert plan.masks.total == total
    assert plan.masks.kept == int(total * (1 - share) + 1e-6)
    applied = plan.apply(model)
    zeros = sum(int((applied.state_dict()[name] == 0).sum()) for name in SELECTED)
    assert zeros == total - plan.masks.kept


def test_a_budget_counts_all_parameters_once() -> None:
    model = nets.mixed()
    params = sum(p.numel() for p in model.parameters())  # a tied parameter comes once
    for budget, limit in (
        ({"nonzero": 0.5}, params // 2),
        ({"nonzero": "500"}, 500),
        ({"nonzero": "60%"}, int(params * 0.6)),
    ):
        plan = sparsity.plan(model, budget=budget)
        assert plan.params == params
        assert plan.nonzero == limit
        applied = plan.apply(model)
        free = params - plan.masks.total
        assert sum(int((p != 0).sum()) for p in applied.parameters()) == limit - free + sum(
            int((p != 0).sum()) for name, p in applied.named_parameters() if name not in plan.masks
        )


def test_a_budget_out_of_reach_says_what_is_reachable() -> None:
    with pytest.raises(BudgetError) as caught:
        sparsity.plan(nets.mixed(), budget={"nonzero": 10})
    assert "the least that is reachable is" in str(caught.value.hint)
    with pytest.raises(BudgetError, match="ratios alone keep"):
        sparsity.plan(nets.mixed(), sparsity=0.9, ratios={"*": 0.5})
    with pytest.raises(BudgetError, match="sparsity changes neither 'macs'"):
        sparsity.plan(nets.mixed(), budget={"macs": 0.5})


def test_ratios_fix_layers_and_the_rest_meets_the_sparsity() -> None:
    model = nets.mixed()
    plan = sparsity.plan(model, sparsity=0.5, ratios={"conv": 1.0, "up.weight": 0.25})
    rows = {row["name"]: row for row in plan.summary()}
    assert rows["conv.weight"]["kept"] == rows["conv.weight"]["total"] == 432
    assert rows["up.weight"]["kept"] == 160
    assert plan.masks.kept == plan.masks.total // 2
    alone = sparsity.plan(model, ratios={"conv": 0.5})
    assert list(alone.masks) == ["conv.weight"]
    with pytest.raises(PatternError, match="matches no selected weight"):
        sparsity.plan(model, sparsity=0.5, ratios={"convolution": 0.5})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "how sparse"),
        ({"sparsity": 1.0}, r"in \[0, 1\)"),
        ({"sparsity": True}, r"in \[0, 1\)"),
        ({"sparsity": 0.5, "threshold": 0.1}, "both say"),
        ({"scheme": "2:4", "sparsity": 0.5}, "says itself"),
        ({"scheme": "2:4", "ratios": {"*": 0.5}}, "says itself"),
        ({"threshold": float("nan")}, "threshold is a number"),
        ({"sparsity": 0.5, "importance": "l2"}, "unknown importance"),
        ({"scheme": NM(permute=True)}, "needs example inputs"),
    ],
)
def test_figures_that_mean_nothing_are_refused(arguments, words) -> None:
    with pytest.raises(SparsityError, match=words):
        sparsity.plan(nets.mixed(), **arguments)


def test_weights_that_are_not_finite_are_refused() -> None:
    model = nets.mixed()
    with torch.no_grad():
        model.conv.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(SparsityError, match="not finite"):
        sparsity.plan(model, sparsity=0.5)


def test_a_criterion_of_ones_own_decides() -> None:
    model = nets.mixed()

    def position(name: str, weight: torch.Tensor) -> torch.Tensor:
        return torch.arange(weight.numel()).view(weight.shape)

    plan = sparsity.plan(model, ratios={"conv": 0.25}, importance=position)
    assert plan.importance == "position"
    assert torch.equal(plan.masks["conv.weight"].view(-1), torch.arange(432) >= 324)


@pytest.mark.parametrize("importance", ["taylor", "movement"])
def test_gradient_criteria_are_their_closed_form_and_leave_no_trace(importance) -> None:
    """One linear layer with squared error: the gradient is known."""

    class Squares:
        name, primary = "squares", "loss"

        def inputs(self, batch):
            return (batch[0],)

        def loss(self, outputs, batch):
            return ((outputs - batch[1]) ** 2).sum()

        def metrics(self):
            return {}

    torch.manual_seed(0)
    model = nn.Linear(4, 3, bias=False)
    data = [(torch.randn(5, 4), torch.randn(5, 3)) for _ in range(3)]
    before = fingerprint(model)
    plan = sparsity.plan(model, sparsity=0.5, importance=importance, task=Squares(), train=data, batches=2)
    assert differences(before, fingerprint(model)) == []
    assert model.weight.grad is None
    with torch.no_grad():
        gradient = sum(2 * (x @ model.weight.T - y).T @ x for x, y in data[:2])
        scores = -(model.weight * gradient)
        scores = scores.abs() if importance == "taylor" else scores
        limit = scores.flatten().sort(descending=True).values[5]
    assert torch.equal(plan.masks["weight"], scores >= limit)
    with pytest.raises(DataError, match="needs gradients"):
        sparsity.plan(model, sparsity=0.5, importance=importance)


def test_shuffled_data_gives_the_same_plan_again_and_its_generator_is_left_alone() -> None:
    work = tiny_workload()
    samples = [(x, y) for images, targets in work.train for x, y in zip(images, targets, strict=True)]
    own = torch.Generator().manual_seed(5)
    loader = torch.utils.data.DataLoader(samples, batch_size=8, shuffle=True, generator=own)
    state = own.get_state()

    def masks(seed: int):
        return sparsity.plan(
            work.model, sparsity=0.5, importance="taylor", task=work.task, train=loader, batches=2, seed=seed
        ).masks

    with torch.no_grad():  # gradients are worked out wherever the caller stands
        first = masks(1)
    assert torch.equal(own.get_state(), state)
    torch.rand(3)
    assert masks(1) == first
    assert masks(2) != first


def test_a_real_task_gives_gradients_for_every_weight() -> None:
    work = tiny_workload()
    assert isinstance(work.task, ClassificationTask)
    plan = sparsity.plan(work.model, sparsity=0.8, importance="taylor", task=work.task, train=work.train)
    assert plan.masks.sparsity == pytest.approx(0.8, abs=0.01)


def test_applying_makes_a_copy_and_zeros_are_exact() -> None:
    model = nets.mixed()
    with torch.no_grad():
        model.conv.weight.neg_()
    before = fingerprint(model)
    plan = sparsity.plan(model, sparsity=0.7)
    applied = plan.apply(model)
    assert differences(before, fingerprint(model)) == []
    for name, mask in plan.masks.items():
        weight, old = applied.state_dict()[name], model.state_dict()[name]
        assert torch.equal(weight[mask], old[mask])
        assert not torch.signbit(weight[~mask]).any()  # 0.0, never -0.0
        assert (weight[~mask] == 0).all()
    assert applied.right.weight is applied.left.weight
    assert list(applied.state_dict()) == list(model.state_dict())


def test_what_was_removed_stays_removed_under_previous_masks() -> None:
    model = nets.mixed()
    first = sparsity.plan(model, sparsity=0.5)
    second = sparsity.plan(model, sparsity=0.8, previous=first.masks)
    assert all(not (second.masks[name] & ~first.masks[name]).any() for name in first.masks)
    again = sparsity.plan(model, scheme="2:4", previous=first.masks)
    assert all(not (again.masks[name] & ~first.masks[name]).any() for name in first.masks)


def test_rolling_back_restores_every_bit_of_model_optimizer_and_average() -> None:
    model = nets.whole()
    inputs = (nets.image(),)
    optimizer = torch.optim.Adam(model.parameters())
    average = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    def train() -> None:
        optimizer.zero_grad()
        model(nets.image()).square().sum().backward()
        optimizer.step()

    train()
    before, moments = fingerprint(model), copy.deepcopy(optimizer.state_dict())
    groups = list(optimizer.param_groups)
    kept = {name: tensor.clone() for name, tensor in average.items()}
    plan = sparsity.plan(model, inputs, scheme=NM(permute=True))
    assert plan.orders
    with plan.apply_reversibly(model, optimizer=optimizer, ema=average):
        assert plan.masks.violations(model) == 0
        assert all(bool((average[name][~mask] == 0).all()) for name, mask in plan.masks.items())
        train()
    assert differences(before, fingerprint(model)) == []
    after = optimizer.state_dict()
    assert after["param_groups"] == moments["param_groups"]
    assert all(now is then for now, then in zip(optimizer.param_groups, groups, strict=True)), "others may hold them"
    for index, entries in moments["state"].items():
        assert all(torch.equal(value, after["state"][index][key]) for key, value in entries.items())
    assert all(torch.equal(average[name], kept[name]) for name in kept)


def test_a_plan_for_another_model_is_refused_before_anything_changes() -> None:
    plan = sparsity.plan(nets.mixed(), sparsity=0.5)
    other = nn.ModuleDict({"conv": nn.Conv2d(3, 8, 3)})
    before = fingerprint(other)
    with pytest.raises(SparsityError, match="the mask has the shape"):
        plan.apply(other, inplace=True)
    assert differences(before, fingerprint(other)) == []
    with pytest.raises(SparsityError, match="a copy was asked"):
        plan.apply(nets.mixed(), ema={})


def test_two_plans_compared() -> None:
    model = nets.mixed()
    first, second = sparsity.plan(model, sparsity=0.5), sparsity.plan(model, sparsity=0.75)
    rows = {row.name: row for row in first.diff(second)}
    assert set(rows) <= set(SELECTED)
    for name, row in rows.items():
        a, b = first.masks[name], second.masks[name]
        assert (row.total, row.first, row.second, row.common) == (
            a.numel(),
            int(a.sum()),
            int(b.sum()),
            int((a & b).sum()),
        )
    assert first.diff(first) == []
    part = sparsity.plan(model, ratios={"up": 0.5})
    assert {row.name for row in part.diff(first)} == set(SELECTED)


def test_notes_say_what_is_left_empty_dense_or_coarse() -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, groups=8))
    with torch.no_grad():
        model[0].weight.mul_(1e-6)
    assert any(
        "nothing is left of 0.weight" in note
        for note in sparsity.plan(model, scheme=Unstructured(floor=0), sparsity=0.9).notes
    )
    assert any("1.weight: too few inputs" in note for note in sparsity.plan(model, scheme="2:4").notes)
    coarse = sparsity.plan(model, scheme=Block((8, 8)), sparsity=0.4, include="0")
    assert any("blocks are coarse" in note for note in coarse.notes)


# --- files ---


@pytest.fixture(scope="module")
def planned() -> SparsityPlan:
    return sparsity.plan(nets.whole(), (nets.image(),), scheme=NM(permute=True))


def test_a_plan_survives_its_file(planned, tmp_path) -> None:
    for plan in (planned, sparsity.plan(nets.mixed(), scheme=Block((4, 2)), sparsity=0.5, ratios={"up": 0.5})):
        plan.save(tmp_path / "plan.safetensors")
        again = SparsityPlan.load(tmp_path / "plan.safetensors")
        assert again.masks == plan.masks
        assert again.to_json() == plan.to_json()
        assert dict(again.axes) == dict(plan.axes)
        assert [o.order.tolist() for o in again.orders] == [o.order.tolist() for o in plan.orders]


def test_a_file_takes_a_bit_for_each_weight(tmp_path) -> None:
    plan = sparsity.plan(nn.Linear(1024, 1024), sparsity=0.5)
    plan.save(tmp_path / "plan.safetensors")
    assert 1024 * 1024 // 8 < (tmp_path / "plan.safetensors").stat().st_size < 1024 * 1024 // 8 + 2000


def test_damaged_and_foreign_files_are_refused(planned, tmp_path) -> None:
    path = tmp_path / "plan.safetensors"
    planned.save(path)
    raw = path.read_bytes()
    other = tmp_path / "other"
    for length in (0, 4, 50, len(raw) // 2, len(raw) - 1):
        other.write_bytes(raw[:length])
        with pytest.raises(SparsityError):
            SparsityPlan.load(other)
    safetensors.numpy.save_file({"x": np.zeros(3)}, other)
    with pytest.raises(SparsityError, match="not a sparsity plan"):
        SparsityPlan.load(other)
    with pytest.raises(SparsityError):
        SparsityPlan.load(tmp_path / "missing")


def test_every_field_of_a_file_changed_or_deleted_gives_a_plan_or_an_error(planned, tmp_path) -> None:
    path = tmp_path / "plan.safetensors"
    planned.save(path)
    with safetensors.safe_open(path, "np") as file:
        text = file.metadata()["slim_sparsity"]
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    def refused(data: object, arrays: dict) -> bool:
        safetensors.numpy.save_file(arrays, path, {"slim_sparsity": json.dumps(data)})
        try:
            SparsityPlan.load(path)
        except SparsityError:
            return True
        return False

    assert not refused(json.loads(text), tensors)
    for key in json.loads(text):
        fresh = json.loads(text)
        del fresh[key]
        assert refused(fresh, tensors), key
    assert refused({**json.loads(text), "more": 1}, tensors)
    for key in ("name", "shape", "kept", "axis"):
        for wrong in (None, -1, 2**60, "x", [], [2**40, 2**40], {}):
            fresh = json.loads(text)
            fresh["weights"][0][key] = wrong
            assert refused(fresh, tensors), (key, wrong)
    for name, array in tensors.items():
        without = {key: value for key, value in tensors.items() if key != name}
        assert refused(json.loads(text), without), name
        assert refused(json.loads(text), {**without, name: array[:-1]}), name
        flipped = array.copy()
        flipped[0] ^= 1
        assert refused(json.loads(text), {**without, name: flipped}), name  # another count, or no permutation
    for scheme in ({"name": "n_m", "n": 9}, {"name": 3}, {"name": "n_m", "n": "2"}, {}, {"name": "block", "shape": 3}):
        assert refused({**json.loads(text), "scheme": scheme}, tensors), scheme


def test_a_table_names_every_weight(planned) -> None:
    from rich.console import Console

    console = Console(width=150, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(planned.show())
    text = console.export_text()
    assert all(name in text for name in planned.masks)
    assert "2:4" in text
    assert Unstructured().name not in text
