from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from slim_core.errors import DataError
from slim_core.tasks import ClassificationTask
from slim_core.training import evaluate, set_mode


def test_the_figures_are_those_of_numpy(workload):
    figures = evaluate(workload.model, workload.task, workload.val)
    workload.model.eval()
    with torch.no_grad():
        logits = workload.model(workload.val.inputs).double().numpy()
    targets = workload.val.targets.numpy()
    assert figures["top1"] == pytest.approx((logits.argmax(1) == targets).mean())
    loss = (np.log(np.exp(logits).sum(1)) - logits[np.arange(len(targets)), targets]).mean()
    assert figures["loss"] == pytest.approx(loss, rel=1e-5)


def test_every_module_gets_its_mode_back_and_nothing_changes(workload):
    workload.model.train()
    workload.model[1].eval()
    before = {name: value.clone() for name, value in workload.model.state_dict().items()}
    evaluate(workload.model, workload.task, workload.val)
    assert [module.training for module in workload.model] == [True, False, *[True] * 7]
    assert all(torch.equal(value, before[name]) for name, value in workload.model.state_dict().items())


def test_the_mode_comes_back_after_an_error(workload):
    workload.model.train()
    with pytest.raises(DataError):
        evaluate(workload.model, workload.task, [(torch.zeros(2, 1, 8, 8), torch.zeros(2))])
    assert workload.model.training


def test_no_data_is_an_error(workload):
    with pytest.raises(DataError, match="no batch"):
        evaluate(workload.model, workload.task, [])


class Squares:
    """A regression task without a metric named loss."""

    name, primary = "squares", "largest"

    def inputs(self, batch):
        return {"x": batch["x"]}

    def loss(self, outputs: Tensor, batch) -> Tensor:
        return (outputs - batch["y"]).square().mean()

    def metrics(self):
        return {}


class Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def test_a_task_without_a_loss_metric_gets_its_mean_loss_over_samples():
    batches = [{"x": torch.ones(3), "y": torch.zeros(3)}, {"x": torch.zeros(1), "y": torch.ones(1)}]
    assert evaluate(Double(), Squares(), batches) == {"loss": pytest.approx((3 * 4 + 1) / 4)}


def test_an_exported_module_that_refuses_modes_is_evaluated_and_its_neighbours_switch():
    exported = torch.export.export(nn.Linear(4, 3).eval(), (torch.zeros(2, 4),)).module()
    with pytest.raises(NotImplementedError):
        exported.train()
    batch = [(torch.ones(2, 4), torch.tensor([0, 1]))]
    assert evaluate(exported, ClassificationTask(), batch)["loss"] > 0
    both = nn.ModuleDict({"exported": exported, "dropout": nn.Dropout(0.5)})
    set_mode(both, False)
    assert not both["dropout"].training
    set_mode(both, True)
    assert both["dropout"].training
