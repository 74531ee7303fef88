"""Every model of the zoo, several budgets, several allocations: met, and within one percent of the tightest bound."""

from __future__ import annotations

import pytest
import torch

import slim_prune
from slim_core.graph import analyse, record
from slim_core.graph.cost import cost
from slim_zoo import models
from slim_zoo.names import MODELS

INPUTS = (torch.zeros(1, 3, 32, 32),)
BUDGETS = (
    {"macs": 0.75},
    {"macs": 0.5},
    {"macs": 0.3},
    {"params": 0.5},
    {"bytes": "25%"},
    {"macs": 0.5, "params": 0.4},
    {"macs": 0.6, "bytes": 0.6},
)


@pytest.mark.slow
@pytest.mark.parametrize("allocation", ["uniform", "global"])
@pytest.mark.parametrize("name", MODELS)
def test_budgets_are_met_within_one_percent(name: str, allocation: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(models, name)(num_classes=10, input_size=32, width=0.5).eval()
    coupling = analyse(model, INPUTS)
    for budget in BUDGETS:
        plan = slim_prune.plan(model, INPUTS, budget, allocation=allocation, coupling=coupling)
        assert all(bound.value <= bound.limit * (1 + 1e-9) for bound in plan.reached), budget
        assert min(bound.distance for bound in plan.reached) <= 0.01, budget
        assert not any("to spare" in note for note in plan.notes)
    left = cost(record(plan.apply(model), INPUTS))
    assert (left.macs, left.bytes) == (plan.after["macs"], plan.after["bytes"])
