"""The ranking over all groups against a plain threshold, against every choice, and its options."""

from __future__ import annotations

import allocation_hand as hand
import numpy as np
import pytest
import torch

import slim_prune
from slim_core.errors import BudgetError, SlimError
from slim_core.graph import analyse
from slim_core.testing.oracle import assert_equals_masked_original
from slim_prune.allocation.fill import NEAR
from slim_prune.allocation.global_ import rank_globally
from slim_prune.allocation.values import descending


def test_with_single_units_it_is_a_threshold_on_normalized_scores() -> None:
    """Every unit above the threshold stays, every unit below goes; only those put back to fill the budget differ."""
    prob, net = hand.problem({"params": 0.5}, round_to=1)
    around = hand.context(prob, net)
    counts = rank_globally(prob, around, max_pruned=1.0)
    scores = {choice.name: descending(choice, around, "mean") for choice in prob.choices}
    order = np.sort(np.concatenate(list(scores.values())))
    by_threshold = None
    for threshold in order:
        trial = {name: max(1, int((values >= threshold).sum())) for name, values in scores.items()}
        if prob.meets(trial):
            by_threshold = trial
            break
    assert by_threshold is not None
    apart = sum(abs(counts[name] - by_threshold[name]) for name in counts)
    assert apart <= 3
    assert prob.meets(counts)
    assert prob.tightness(counts) >= NEAR


def test_a_group_that_matters_little_loses_most() -> None:
    prob, net = hand.problem({"macs": 0.35}, round_to=1)
    weak = prob.choices[1].name

    def scores(group):
        return np.linspace(1, 2, group.units) * (0.01 if group.name == weak else 1.0)

    counts = rank_globally(prob, hand.context(prob, net, scores), normalize="none", max_pruned=0.75)
    shares = {choice.name: counts[choice.name] / choice.group.units for choice in prob.choices}
    assert shares[weak] == pytest.approx(0.25, abs=0.05)
    assert min(share for name, share in shares.items() if name != weak) > shares[weak]
    even = rank_globally(prob, hand.context(prob, net, scores), normalize="mean", max_pruned=0.75)
    shares = [even[choice.name] / choice.group.units for choice in prob.choices]
    assert max(shares) - min(shares) < 0.35  # to one scale, the groups are alike


@pytest.mark.parametrize("budget", [{"macs": 0.5}, {"params": 0.4}, {"macs": 0.6, "params": 0.6}], ids=str)
@pytest.mark.parametrize("per", [None, "budget", "macs"])
@pytest.mark.parametrize("max_pruned", [0.7, 1.0])
def test_budgets_hold_within_one_percent_and_no_group_loses_more_than_the_cap(budget, per, max_pruned) -> None:
    prob, net = hand.problem(budget, round_to=1)
    counts = rank_globally(prob, hand.context(prob, net), per=per, max_pruned=max_pruned)
    assert prob.meets(counts)
    assert prob.tightness(counts) >= NEAR
    for choice in prob.choices:
        assert counts[choice.name] in choice.counts
        assert counts[choice.name] >= (1 - max_pruned) * choice.group.units - 1e-9


def test_ranking_per_cost_keeps_more_importance_than_ranking_alone() -> None:
    prob, net = hand.problem({"macs": 0.4}, round_to=1)
    around = hand.context(prob, net)
    scores = {choice.name: descending(choice, around, "mean") for choice in prob.choices}

    def kept(counts):
        return sum(values[: counts[name]].sum() for name, values in scores.items())

    alone = rank_globally(prob, around, max_pruned=1.0)
    per_cost = rank_globally(prob, around, per="macs", max_pruned=1.0)
    best = max(kept(counts) for counts in _sampled(prob) if prob.meets(counts))
    assert kept(per_cost) > kept(alone)
    assert kept(per_cost) >= 0.97 * best


def _sampled(prob):
    """Every second count of every group: what an exhaustive search can afford."""
    import itertools

    names = [choice.name for choice in prob.choices]
    for counts in itertools.product(*(choice.counts[::2] for choice in prob.choices)):
        yield dict(zip(names, counts, strict=True))


def test_equal_scores_shrink_all_groups_alike() -> None:
    prob, net = hand.problem({"params": 0.5}, round_to=1)
    counts = rank_globally(prob, hand.context(prob, net, lambda group: np.ones(group.units)))
    shares = [counts[choice.name] / choice.group.units for choice in prob.choices]
    assert max(shares) - min(shares) < 0.15


def test_fixed_ratios_stay_and_the_rest_meets_the_budget() -> None:
    prob, net = hand.problem({"macs": 0.5}, round_to=2, ratios={"b": 0.75})
    counts = rank_globally(prob, hand.context(prob, net))
    assert counts["b"] == 18
    assert prob.meets(counts)


def test_an_unreachable_budget_says_whether_the_cap_is_to_blame() -> None:
    prob, net = hand.problem({"macs": 0.05}, round_to=1)
    with pytest.raises(BudgetError) as caught:
        rank_globally(prob, hand.context(prob, net), max_pruned=0.5)
    assert "raise max_pruned above 0.5" in caught.value.hint
    prob, net = hand.problem({"macs": 0.0001}, round_to=1)
    with pytest.raises(BudgetError) as caught:
        rank_globally(prob, hand.context(prob, net), max_pruned=0.5)
    assert "max_pruned" not in caught.value.hint


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"normalize": "median"}, "unknown normalization"),
        ({"per": "seconds"}, "cannot rank per 'seconds'"),
        ({"max_pruned": 0}, "max_pruned is the largest share"),
        ({"max_pruned": True}, "max_pruned is the largest share"),
    ],
)
def test_wrong_options_are_refused(options, message) -> None:
    prob, net = hand.problem({"macs": 0.5})
    with pytest.raises(SlimError, match=message):
        rank_globally(prob, hand.context(prob, net), **options)


def test_a_plan_by_global_ranking_equals_the_masked_original() -> None:
    net = hand.model()
    plan = slim_prune.plan(
        net, hand.INPUTS, {"macs": 0.5}, allocation={"name": "global", "max_pruned": 0.8}, round_to=1
    )
    assert plan.allocation == "global(max_pruned=0.8)"
    pruned = plan.apply(net)
    assert_equals_masked_original(net, pruned, analyse(net, hand.INPUTS), plan.kept, hand.INPUTS)
    kept = plan.kept
    l1 = (
        net.b.weight.detach().abs().sum((1, 2, 3)) / net.b.weight.abs().sum()
        + net.c.weight.abs().sum((0, 2, 3)) / net.c.weight.abs().sum()
    )
    expected = torch.sort(torch.argsort(-l1.detach(), stable=True)[: len(kept["b"])]).values
    assert kept["b"].tolist() == expected.tolist()
