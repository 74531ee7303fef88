"""Every criterion on every family of architectures: scores for every group, Taylor as plain autograd has it."""

from __future__ import annotations

import copy

import importance_hand as hand
import numpy as np
import pytest
import torch

from slim_core.testing import families
from slim_core.testing.workloads import differences, fingerprint
from slim_core.workload import call, tensors_of

FEW = ["resnext", "swin", "bert", "gru", "unet", "spectral_norm", "raw_parameters"]
REST = [pytest.param(name, marks=pytest.mark.long) for name in families.FAMILIES if name not in FEW]


class Outputs(hand.Squares):
    """The mean square of every floating-point output."""

    def inputs(self, batch):
        return batch

    def loss(self, outputs, batch):
        return sum(out.square().mean() for out in tensors_of(outputs) if out.is_floating_point())


def first_order(ctx) -> dict[str, np.ndarray]:
    """The absolute sum of gradient times weight over all that a unit has, by ``backward`` on a copy."""
    model = copy.deepcopy(ctx.model)
    ctx.task.loss(call(model, ctx.example_inputs), ctx.example_inputs).backward()
    products = {n: (p.grad * p).detach().double() for n, p in model.named_parameters() if p.grad is not None}
    result = {}
    for group in ctx.coupling.groups:
        total = torch.zeros(group.units, dtype=torch.float64)
        for member in group.members:
            if member.name in products:
                values = products[member.name].movedim(member.dim, 0)
                total += values.reshape(len(values), -1).sum(1)[torch.from_numpy(member.indices)].sum(1)
        result[group.name] = total.abs().numpy()
    return result


@pytest.mark.parametrize("name", [*FEW, *REST])
def test_every_criterion_scores_every_group(name) -> None:
    model, inputs = families.build(name)
    ctx = hand.context(model, [inputs], Outputs(), example_inputs=inputs)
    before = fingerprint(model)
    for criterion in ("fisher", "hessian", "apoz", "activation", "bn_scale", "fpgm", "lamp"):
        found = hand.scores(criterion, ctx)
        assert found.keys() == {group.name for group in ctx.coupling.groups}, criterion
    found, expected = hand.scores({"name": "taylor", "power": "absolute"}, ctx), first_order(ctx)
    for group, values in expected.items():
        assert found[group] == pytest.approx(values, rel=5e-3, abs=2e-5 * max(values.max(), 1e-3))
    assert differences(before, fingerprint(model)) == []
