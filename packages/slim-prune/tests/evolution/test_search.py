"""``slim_prune.search`` on real networks: only what meets the budget is scored, and scored as it will be used."""

from __future__ import annotations

import functools
import itertools
import json

import pytest
import torch
from search_nets import Chain, macs_of, params_of, trained, untrained

import slim_prune
from slim_core.data import take
from slim_core.errors import BudgetError, DataError, SlimError
from slim_core.plugins import load_plugins
from slim_core.tasks import ClassificationTask
from slim_core.testing.workloads import fingerprint
from slim_core.training import FitConfig, evaluate, fit
from slim_core.workload import Workload
from slim_prune.errors import PlanError
from slim_prune.evolution.scoring import Batches, part
from slim_prune.recalibration import recalibrate

ALGORITHMS = ("aging", "annealing", "cmaes", "random")


class Odd:
    """A cost that no sensible device has: widths that are no multiple of 4 cost three times as much."""

    unit = "things"

    def total(self, graph) -> float:
        widths = [v.shape[0] for v in graph.values if v.kind == "parameter" and len(v.shape) == 4]
        return float(self.of(widths))

    @staticmethod
    def of(widths) -> int:
        return sum(width * (3 if width % 4 else 1) for width in widths)


@pytest.fixture(scope="module")
def registry():
    registry = load_plugins(select=["slim-prune"]).registry
    registry.register("cost_models", "odd", Odd(), plugin="test")
    return registry


class Judge:
    """Counts what it is given, and its costs by hand."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def __call__(self, model) -> float:
        assert not model.training
        widths = [layer.out_channels for layer in model.body if isinstance(layer, torch.nn.Conv2d)]
        self.seen.append({"macs": macs_of(model), "params": params_of(model), "odd": Odd.of(widths), "widths": widths})
        return float(model.head.weight.abs().sum())


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(
    "budget",
    [{"macs": 0.5}, {"macs": 0.6, "params": 0.3}, {"odd": 0.5}, {"odd": 0.7, "macs": 0.45, "params": 9000}],
    ids=lambda budget: "+".join(budget),
)
def test_what_breaks_a_bound_is_never_scored(registry, tmp_path, algorithm, budget) -> None:
    model, judge = Chain(), Judge()
    whole = {"macs": macs_of(model), "params": params_of(model), "odd": Odd.of([16, 32, 32, 16])}
    result = slim_prune.search(
        model, (torch.zeros(1, 1, 8, 8),), budget, score=judge, algorithm=algorithm, trials=40, round_to=2, seed=3,
        registry=registry, folder=tmp_path,
    )  # fmt: skip
    limits = {name: bound if bound > 1 else bound * whole[name] for name, bound in budget.items()}
    assert all(seen[name] <= limit for seen in judge.seen for name, limit in limits.items())
    assert len(judge.seen) == result.scored
    assert len(judge.seen) == len((tmp_path / "search.jsonl").read_text().splitlines()) - 1
    assert len({tuple(seen["widths"]) for seen in judge.seen}) == len(judge.seen), "nothing is scored twice"
    assert len(judge.seen) > 15
    pruned = result.plan.apply(model)
    assert pruned.head.weight.abs().sum().item() == result.best.score[0] == max(t.score[0] for t in result.trials)


def test_a_budget_out_of_reach_is_an_error_before_anything_is_scored(registry) -> None:
    judge = Judge()
    for budget in ({"macs": 0.001}, {"macs": 0.5, "params": 0.001}):
        with pytest.raises(BudgetError, match="cannot be reached"):
            slim_prune.search(Chain(), (torch.zeros(1, 1, 8, 8),), budget, score=judge, registry=registry)
    assert judge.seen == []


def test_a_budget_that_binds_nothing_leaves_nothing_to_search() -> None:
    judge = Judge()
    result = slim_prune.search(Chain(), (torch.zeros(1, 1, 8, 8),), {"macs": 1.0}, score=judge)
    assert [seen["widths"] for seen in judge.seen] == [[16, 32, 32, 16]]
    assert result.plan.edits.tensors == ()


@pytest.fixture(scope="module")
def net():
    return trained()


def searched(net: Workload, budget=0.5, **kwargs):
    options = {"trials": 40, "round_to": 2, "holdout": 500, "samples": 256, **kwargs}
    return slim_prune.search(net.model, net.example_inputs, {"macs": budget}, task=net.task, train=net.train, **options)


@pytest.mark.parametrize("algorithm", ["aging", "annealing", "cmaes"])
@pytest.mark.parametrize("budget", [0.5, 0.3])
def test_it_beats_uniform_on_a_trained_network(net, algorithm, budget) -> None:
    before = fingerprint(net.model)
    result = searched(net, budget, algorithm=algorithm)
    uniform = result.trials[0]
    assert uniform.origin == "uniform"
    assert uniform.counts == {g.name: len(g.kept) for g in slim_prune.plan(
        net.model, net.example_inputs, {"macs": budget}, round_to=2
    ).groups}  # fmt: skip
    assert result.best.figures["top1"] > uniform.figures["top1"] + 0.05
    assert fingerprint(net.model) == before

    def unseen(plan) -> float:
        model = plan.apply(net.model)
        recalibrate(model, net.train, samples=256)
        return evaluate(model, net.task, net.val)["loss"]

    plain = slim_prune.plan(net.model, net.example_inputs, {"macs": budget}, round_to=2)
    assert unseen(result.plan) < unseen(plain), "it also holds on samples that the search never saw"


def test_a_candidate_is_scored_as_the_pruned_and_recalibrated_model(net) -> None:
    result = searched(net, trials=6, baseline=0)
    batches = take(net.train, 500 + 256)
    parts = part(net.train, None, holdout=500, calibration=256, training=0, seed=0)
    torch.testing.assert_close(
        torch.cat([x for x, _ in (*parts.holdout, *parts.calibration)]), torch.cat([x for x, _ in batches])
    )
    pruned = result.plan.apply(net.model)
    recalibrate(pruned, parts.calibration, samples=256)
    assert evaluate(pruned, net.task, parts.holdout) == result.best.figures
    masked = result.plan.mask(net.model)
    recalibrate(masked, parts.calibration, samples=256)
    figures = evaluate(masked, net.task, parts.holdout)
    assert figures["loss"] == pytest.approx(result.best.figures["loss"], abs=1e-5)
    plain = evaluate(result.plan.apply(net.model), net.task, parts.holdout)
    unprepared = searched(net, trials=6, baseline=0, recalibrate=False)
    assert any(t.counts == result.best.counts and t.figures == plain for t in unprepared.trials)


def test_short_fine_tuning_trains_each_candidate_from_the_same_start(net) -> None:
    config = {"epochs": 1, "lr": 0.02, "device": "cpu", "channels_last": False}
    result = searched(net, trials=3, baseline=0, fit=config, fit_samples=400)
    parts = part(net.train, None, holdout=500, calibration=256, training=400, seed=0)
    assert sum(len(x) for x, _ in parts.training) == 400
    pruned = Workload(
        result.plan.apply(net.model), net.example_inputs, task=net.task, train=Batches(parts.training, 0)
    )  # fmt: skip
    tuned = fit(pruned, FitConfig(**config, seed=0)).workload.model
    recalibrate(tuned, parts.calibration, samples=256)
    assert evaluate(tuned, net.task, parts.holdout) == pytest.approx(result.best.figures)
    untuned = searched(net, trials=3, baseline=0)
    assert result.best.figures["loss"] < untuned.best.figures["loss"]


def test_the_samples_of_the_parts_are_disjoint_and_of_the_training_data() -> None:
    net = untrained()
    parts = part(net.train, net.val, holdout=300, calibration=200, training=700, seed=0)
    rows = [{tuple(row.flatten().tolist()) for x, _ in p for row in x} for p in (parts.holdout, parts.training)]
    calibration = {tuple(row.flatten().tolist()) for x, _ in parts.calibration for row in x}
    assert [len(r) for r in rows] == [300, 700]
    assert len(calibration) == 200
    assert rows[0].isdisjoint(rows[1])
    assert calibration <= rows[1]
    everything = {tuple(row.flatten().tolist()) for row in net.train.inputs}
    assert rows[0] | rows[1] <= everything
    assert parts.said == (
        "candidates were scored on 300 samples held out of the training data, 700 others were used to prepare them"
    )


def test_a_list_that_is_sorted_by_class_gives_samples_of_many_classes() -> None:
    batches = [(torch.zeros(10, 3), torch.full((10,), number)) for number in range(100)]
    parts = part(batches, None, holdout=300, calibration=100, training=0, seed=0)
    assert len({int(y[0]) for _, y in parts.holdout}) == 30
    numbers = sorted(int(y[0]) for _, y in parts.holdout)
    assert numbers[0] < 20
    assert numbers[-1] > 80


def test_a_loader_that_shuffles_gives_the_same_samples_each_time() -> None:
    data = torch.utils.data.TensorDataset(torch.arange(200.0)[:, None], torch.zeros(200))
    loader = torch.utils.data.DataLoader(data, batch_size=16, shuffle=True)
    parts = [part(loader, None, holdout=50, calibration=30, training=0, seed=seed) for seed in (3, 3, 4)]
    torch.rand(1)
    first, again, other = ([x.flatten().tolist() for x, _ in p.holdout] for p in parts)
    assert first == again != other
    assert parts[0].digest() == parts[1].digest() != parts[2].digest()
    assert max(x for batch in first for x in batch) > 100


def test_little_data_is_shared_out_and_said() -> None:
    batches = [(torch.zeros(10, 3), torch.zeros(10, dtype=torch.long)) for _ in range(6)]
    parts = part(batches, None, holdout=1000, calibration=512, training=0, seed=0)
    assert sum(len(x) for x, _ in parts.holdout) == sum(len(x) for x, _ in parts.calibration) == 30
    assert "60 are all that there are" in parts.said
    with pytest.raises(DataError, match="too few"):
        part([(torch.zeros(2, 3), torch.zeros(2))], None, holdout=10, calibration=5, training=0, seed=0)


def test_validation_data_serves_only_where_there_is_no_training_data_and_that_is_said(net) -> None:
    parts = part(None, net.val, holdout=200, calibration=100, training=0, seed=0)
    assert "now too good" in parts.said
    with pytest.raises(DataError, match="there is none"):
        part(None, None, holdout=2, calibration=2, training=0, seed=0)


def test_it_begins_with_uniform_and_the_choices_of_named_allocations(net) -> None:
    initial = [{"name": "global", "normalize": "max"}, "global", "uniform"]
    result = searched(net, trials=12, initial=initial)
    chosen = []
    for allocation in ("uniform", *initial):
        plan = slim_prune.plan(net.model, net.example_inputs, {"macs": 0.5}, round_to=2, allocation=allocation)
        counts = {group.name: len(group.kept) for group in plan.groups}
        chosen += [counts] if counts not in chosen else []
    assert len(chosen) > 1
    assert [trial.counts for trial in result.trials[: len(chosen)]] == chosen
    origins = [trial.origin for trial in result.trials[: len(chosen)]]
    assert origins[0] == "uniform"
    assert all(name.startswith("global") for name in origins[1:])
    assert result.best.score >= max(trial.score for trial in result.trials[: len(chosen)])
    few = searched(net, trials=1, initial=initial)
    assert [trial.counts for trial in few.by("aging")] == chosen, "what was named is always scored"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_same_seed_gives_the_same_search_and_another_seed_another(net, algorithm) -> None:
    def trials(seed):
        torch.manual_seed(seed + 17)
        found = searched(net, algorithm=algorithm, trials=10, baseline=2, seed=seed, holdout=100, samples=64).trials
        return [(t.by, t.number, t.counts, t.figures) for t in found]

    first = trials(0)
    assert trials(0) == first
    assert [counts for _, _, counts, _ in trials(1)] != [counts for _, _, counts, _ in first]


@pytest.mark.slow
def test_workers_give_the_very_same_trials(net) -> None:
    fitted = {"epochs": 1, "lr": 0.02, "device": "cpu"}
    here = searched(net, trials=10, baseline=4, fit=fitted, fit_samples=200)
    there = searched(net, trials=10, baseline=4, fit=fitted, fit_samples=200, workers=2)
    assert [t.to_json() | {"seconds": 0} for t in there.trials] == [t.to_json() | {"seconds": 0} for t in here.trials]
    assert there.plan.to_json()["groups"] == here.plan.to_json()["groups"]


def test_a_search_goes_on_from_its_journal_without_scoring_again(net, tmp_path) -> None:
    whole = searched(net, trials=12, folder=tmp_path / "whole")
    lines = (tmp_path / "whole" / "search.jsonl").read_bytes().splitlines(keepends=True)
    for kept in (1, 5, len(lines) - 1, len(lines)):
        folder = tmp_path / str(kept)
        folder.mkdir()
        (folder / "search.jsonl").write_bytes(b"".join(lines[:kept]) + b'{"by": "ag')
        again = searched(net, trials=12, folder=folder)
        assert again.resumed == kept - 1
        assert [t.to_json() | {"seconds": 0} for t in again.trials] == [
            t.to_json() | {"seconds": 0} for t in whole.trials
        ]
    longer = searched(net, trials=20, baseline=3, folder=tmp_path / "whole")
    assert longer.resumed == len(lines) - 1, "more trials go on from fewer"
    assert [t.counts for t in longer.by("aging")][:12] == [t.counts for t in whole.by("aging")]


@pytest.mark.parametrize(
    "changed",
    [{"seed": 1}, {"holdout": 300}, {"round_to": 4}, {"metric": "loss"}, {"importance": "l2"}, {"budget": 0.4}],
)
def test_the_journal_of_another_search_is_refused(net, tmp_path, changed) -> None:
    searched(net, trials=3, baseline=0, folder=tmp_path)
    with pytest.raises(PlanError, match="belongs to another search"):
        searched(net, **{"trials": 3, "baseline": 0, "folder": tmp_path, **changed})


def test_other_weights_or_data_are_another_search(net, tmp_path) -> None:
    searched(net, trials=3, baseline=0, folder=tmp_path)
    other = trained()
    with torch.no_grad():
        other.model.body[0].weight[0, 0, 0, 0] += 1e-3
    with pytest.raises(PlanError, match="model is"):
        searched(other, trials=3, baseline=0, folder=tmp_path)
    other = trained()
    other.train.inputs[:] = other.train.inputs.flip(0)
    with pytest.raises(PlanError, match="data is"):
        searched(other, trials=3, baseline=0, folder=tmp_path)


def test_another_way_of_scoring_is_another_search(tmp_path) -> None:
    """Figures of one judge say nothing about what another one would have found."""

    def wide(model: torch.nn.Module) -> float:
        return float(sum(parameter.numel() for parameter in model.parameters()))

    def narrow(model: torch.nn.Module) -> float:
        return -wide(model)

    given = Chain(), (torch.zeros(1, 1, 8, 8),), {"macs": 0.5}
    options = {"trials": 4, "baseline": 0, "round_to": 2, "folder": tmp_path}
    first = slim_prune.search(*given, score=wide, **options)
    again = slim_prune.search(*given, score=functools.partial(wide), **options)
    assert again.resumed == len([trial for trial in first.trials if not trial.repeats])
    with pytest.raises(PlanError, match="scored by is"):
        slim_prune.search(*given, score=narrow, **options)


def test_trials_pareto_and_curves_agree_with_counting_by_hand(net) -> None:
    result = searched(net, trials=20, baseline=6)
    assert [(t.by, t.number) for t in result.trials] == [
        *(("aging", n) for n in range(20)),
        *(("random", n) for n in range(6)),
    ]
    front = result.pareto("macs")
    for trial in result.trials:
        beaten = any(
            (o.costs["macs"] <= trial.costs["macs"] and o.score > trial.score)
            or (o.costs["macs"] < trial.costs["macs"] and o.score >= trial.score)
            for o in result.trials
        )
        assert beaten or any((f.costs["macs"], f.score) == (trial.costs["macs"], trial.score) for f in front)
    assert all(a.costs["macs"] < b.costs["macs"] and a.score < b.score for a, b in itertools.pairwise(front))
    first, *rest = result.curves(result.plan.before)
    assert [series["name"] for series in first["series"]] == ["aging", "random"]
    top1 = [t.figures["top1"] for t in result.by("aging")]
    assert first["series"][0]["x"] == list(range(1, 21))
    assert first["series"][0]["y"] == list(itertools.accumulate(top1, max))
    (macs,) = [chart for chart in rest if chart["x_label"] == "macs kept, %"]
    assert macs["series"][0]["x"] == [100 * t.costs["macs"] / (2 * macs_of(net.model)) for t in front]
    assert macs["series"][0]["y"] == [t.figures["top1"] for t in front]


def test_less_loss_is_better_where_loss_decides(net) -> None:
    result = searched(net, trials=20, metric="loss")
    losses = [trial.figures["loss"] for trial in result.trials]
    assert result.best.figures["loss"] == min(losses)
    assert not result.higher_is_better
    (series, *_) = result.curves(result.plan.before)[0]["series"]
    assert series["y"] == list(itertools.accumulate(losses[:20], min))


def test_the_plan_says_what_was_found_and_on_which_samples(net) -> None:
    result = searched(net, trials=8)
    notes = "\n".join(result.plan.notes)
    assert f"best of {result.scored} candidates" in notes
    assert "random candidates beside: top1" in notes
    assert "uniform on the same samples: top1" in notes
    assert "500 samples held out of the training data" in notes
    best = result.plan.details["search"]["best"]
    assert (best["counts"], best["figures"]) == (result.best.counts, result.best.figures)
    assert "seconds" not in best, "a plan is the same however long it took"
    assert result.plan.allocation.startswith("evolution")


def test_every_trial_can_be_written(net, tmp_path) -> None:
    result = searched(net, trials=5)
    result.save(tmp_path / "trials.json")
    data = json.loads((tmp_path / "trials.json").read_text())
    assert [row["counts"] for row in data["trials"]] == [dict(t.counts) for t in result.trials]


def test_figures_that_are_not_finite_count_as_worst(net) -> None:
    class Nan:
        higher_is_better = True

        def update(self, outputs, batch) -> None:
            pass

        def compute(self) -> float:
            return float("nan")

    class Broken(ClassificationTask):
        def metrics(self):
            return {**super().metrics(), "top1": Nan()}

    result = slim_prune.search(
        net.model, net.example_inputs, {"macs": 0.5}, task=Broken(), train=net.train, trials=4, round_to=2
    )
    assert {trial.figures["top1"] for trial in result.trials} == {None}
    assert all(trial.score == (-float("inf"), -float("inf")) for trial in result.trials)


def test_what_ails_the_first_candidate_is_raised_as_it_is(net) -> None:
    calls = []

    def judge(model):
        calls.append(1)
        raise ZeroDivisionError("in the user's score")

    with pytest.raises(ZeroDivisionError, match="in the user's score"):
        slim_prune.search(net.model, net.example_inputs, {"macs": 0.5}, score=judge, round_to=2)
    assert len(calls) == 1


def test_errors_name_what_is_missing_or_unknown(net) -> None:
    with pytest.raises(PlanError, match="needs task"):
        slim_prune.search(net.model, net.example_inputs, {"macs": 0.5}, train=net.train)
    with pytest.raises(DataError, match="there is none"):
        slim_prune.search(net.model, net.example_inputs, {"macs": 0.5}, task=net.task)
    with pytest.raises(SlimError, match="takes no option 'trails'") as caught:
        searched(net, trails=3)
    assert "trials" in caught.value.hint
    with pytest.raises(SlimError, match="no metric 'mAP'") as caught:
        searched(net, metric="mAP")
    assert "top1, top5, loss" in caught.value.hint
    with pytest.raises(SlimError, match="'population' is wrong"):
        searched(net, population=1)
    with pytest.raises(SlimError, match=r"'fit\.epochs' is wrong"):
        searched(net, fit={"epochs": 0})


def test_as_an_allocation_it_gives_the_same_plan(net) -> None:
    result = searched(net, trials=10)
    plan = slim_prune.plan(
        net.model, net.example_inputs, {"macs": 0.5}, round_to=2, task=net.task, train=net.train,
        allocation={"name": "evolution", "trials": 10, "holdout": 500, "samples": 256},
    )  # fmt: skip
    assert plan.to_json()["groups"] == result.plan.to_json()["groups"]
