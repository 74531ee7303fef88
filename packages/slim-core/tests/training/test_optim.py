from __future__ import annotations

import pytest
import torch
from torch import nn

from slim_core.errors import ModelError
from slim_core.training import FitConfig, build_optimizer, parameter_groups


def model() -> nn.Module:
    return nn.ModuleDict(
        {"conv": nn.Conv2d(1, 2, 3), "norm": nn.BatchNorm2d(2), "layer": nn.LayerNorm((2, 3)), "fc": nn.Linear(2, 2)}
    )


def test_norms_and_biases_are_not_decayed():
    net = model()
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    decayed, free = parameter_groups(net, 0.1)
    assert [names[id(p)] for p in decayed["params"]] == ["conv.weight", "fc.weight"]
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)
    assert len(free["params"]) == 6, "the layer norm's weights have two dimensions, and are not decayed either"


def test_everything_is_decayed_when_asked():
    (group,) = parameter_groups(model(), 0.1, decay_all=True)
    assert len(group["params"]) == 8


def test_frozen_parameters_are_left_out():
    net = model()
    net["conv"].requires_grad_(False)
    assert sum(len(group["params"]) for group in parameter_groups(net, 0.1)) == 6


def test_a_model_without_trainable_parameters_is_refused():
    with pytest.raises(ModelError, match="no trainable parameter"):
        parameter_groups(model().requires_grad_(False), 0.1)


def test_sgd_steps_as_computed_by_hand():
    """Nesterov: v = m v + g; w -= lr (g + m v), with g including the decay."""
    net = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        net.weight.fill_(2.0)
    optimizer = build_optimizer(net, FitConfig(lr=0.1, momentum=0.9, weight_decay=0.5))
    weight, velocity = 2.0, 0.0
    for gradient in (1.0, -3.0, 0.25):
        net.weight.grad = torch.full((1, 1), gradient)
        optimizer.step()
        total = gradient + 0.5 * weight
        velocity = 0.9 * velocity + total
        weight -= 0.1 * (total + 0.9 * velocity)
        assert net.weight.item() == pytest.approx(weight, rel=1e-6)


def test_adamw_decays_apart_from_the_gradient():
    net = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        net.weight.fill_(2.0)
    optimizer = build_optimizer(net, FitConfig(optimizer="adamw", lr=0.1, weight_decay=0.5))
    net.weight.grad = torch.full((1, 1), 7.0)
    optimizer.step()
    assert net.weight.item() == pytest.approx(2.0 * (1 - 0.1 * 0.5) - 0.1, rel=1e-6)  # the first step is lr * sign
