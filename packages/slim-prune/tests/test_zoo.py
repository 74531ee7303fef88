"""Every model of the zoo: half of its MACs go, and what is left computes what the masked original computes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import slim_prune
from slim_core.checkpoint import load, save
from slim_core.graph import analyse, record
from slim_core.graph.cost import cost
from slim_core.plugins import load_plugins
from slim_core.testing.oracle import assert_equals_masked_original, assert_outputs_close, outputs_of
from slim_core.workload import BuilderRef, Workload
from slim_zoo import models
from slim_zoo.names import MODELS

INPUTS = (torch.linspace(-2, 2, 2 * 3 * 32 * 32).sin().reshape(2, 3, 32, 32),)


def build(name: str) -> nn.Module:
    """Half width keeps the suite quick; the structure is that of the full model."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(models, name)(num_classes=10, input_size=32, width=0.5)
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.running_mean.normal_(0, 0.2)
                    module.running_var.uniform_(0.5, 1.5)
                    module.weight.uniform_(0.5, 1.5)
                    module.bias.normal_(0, 0.2)
    return model.eval()


@pytest.mark.parametrize("name", MODELS)
def test_half_of_the_macs_go_and_the_rest_equals_the_masked_original(name: str) -> None:
    model = build(name)
    coupling = analyse(model, INPUTS)
    plan = slim_prune.plan(model, INPUTS, {"macs": 0.5}, coupling=coupling)
    pruned = plan.apply(model)
    after, before = cost(record(pruned, INPUTS)).macs, cost(record(model, INPUTS)).macs
    assert 0.49 * before < after <= 0.5 * before
    assert type(pruned) is type(model)
    assert_equals_masked_original(model, pruned, coupling, plan.kept, INPUTS)
    shares = [row["kept"] / row["total"] for row in plan.summary()]
    assert sum(share < 1 for share in shares) >= 0.5 * len(shares)


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v3_small"])
def test_a_pruned_model_comes_back_from_its_checkpoint(name: str, tmp_path) -> None:
    model = build(name)
    plan = slim_prune.plan(model, INPUTS, {"params": 0.4})
    kwargs = {"num_classes": 10, "input_size": 32, "width": 0.5}
    workload = Workload(model, INPUTS, builder=BuilderRef(f"zoo/{name}", kwargs))
    pruned = workload.with_model(plan.apply(model), plan.transform())
    save(pruned, tmp_path / "model.safetensors")
    registry = load_plugins(select=["slim-prune", "slim-zoo"]).registry
    again = load(tmp_path / "model.safetensors", registry=registry).model
    assert_outputs_close(outputs_of(again, INPUTS), outputs_of(pruned.model, INPUTS), rtol=0)


def test_pruning_twice_and_loading_from_one_checkpoint(tmp_path) -> None:
    model = build("mobilenet_v2")
    kwargs = {"num_classes": 10, "input_size": 32, "width": 0.5}
    workload = Workload(model, INPUTS, builder=BuilderRef("zoo/mobilenet_v2", kwargs))
    for share in (0.7, 0.7):
        plan = slim_prune.plan(workload.model, INPUTS, {"macs": share})
        workload = workload.with_model(plan.apply(workload.model), plan.transform())
    save(workload, tmp_path / "model.safetensors")
    registry = load_plugins(select=["slim-prune", "slim-zoo"]).registry
    again = load(tmp_path / "model.safetensors", registry=registry).model
    assert_outputs_close(outputs_of(again, INPUTS), outputs_of(workload.model, INPUTS), rtol=0)
