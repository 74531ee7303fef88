from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from slim_core.errors import DataError, SlimError
from slim_core.plugins import load_plugins
from slim_core.tasks import ClassificationTask, logits_of

LOGITS = torch.tensor(np.random.default_rng(0).normal(size=(40, 8)), dtype=torch.float32)
TARGETS = torch.tensor(np.random.default_rng(1).integers(0, 8, 40))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_the_smoothed_cross_entropy(smoothing: float):
    logs = log_softmax(LOGITS.numpy().astype(np.float64))
    wanted = (1 - smoothing) * np.eye(8)[TARGETS.numpy()] + smoothing / 8
    expected = -(wanted * logs).sum(1).mean()
    task = ClassificationTask(label_smoothing=smoothing)
    assert task.loss(LOGITS, (torch.zeros(40, 1), TARGETS)).item() == pytest.approx(expected, rel=1e-6)
    soft = torch.eye(8)[TARGETS]
    assert task.loss(LOGITS, (torch.zeros(40, 1), soft)).item() == pytest.approx(expected, rel=1e-6)


def test_metrics_over_uneven_batches_are_those_of_all_samples():
    metrics = ClassificationTask(label_smoothing=0.3).metrics()
    for start, stop in ((0, 16), (16, 32), (32, 40)):
        for metric in metrics.values():
            metric.update(LOGITS[start:stop], (torch.zeros(stop - start, 1), TARGETS[start:stop]))
    order = np.argsort(-LOGITS.numpy(), 1)
    hits = order == TARGETS.numpy()[:, None]
    assert metrics["top1"].compute() == pytest.approx(hits[:, :1].any(1).mean())
    assert metrics["top5"].compute() == pytest.approx(hits[:, :5].any(1).mean())
    picked = log_softmax(LOGITS.numpy().astype(np.float64))[np.arange(40), TARGETS.numpy()]
    assert metrics["loss"].compute() == pytest.approx(-picked.mean(), rel=1e-6)
    assert (metrics["top1"].higher_is_better, metrics["loss"].higher_is_better) == (True, False)


def test_soft_targets_count_by_their_largest_class():
    metric = ClassificationTask().metrics()["top1"]
    soft = torch.tensor([[0.7, 0.3], [0.2, 0.8]])
    metric.update(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), (torch.zeros(2, 1), soft))
    assert metric.compute() == 0.5


def test_top5_of_three_classes_is_one():
    metric = ClassificationTask().metrics()["top5"]
    metric.update(torch.rand(4, 3), (torch.zeros(4, 1), torch.tensor([0, 1, 2, 0])))
    assert metric.compute() == 1.0


def test_a_mapping_batch_gives_keyword_inputs_and_its_labels():
    task = ClassificationTask()
    batch = {"input_ids": torch.ones(2, 3), "mask": torch.ones(2, 3), "labels": torch.tensor([1, 0])}
    assert list(task.inputs(batch)) == ["input_ids", "mask"]
    assert task.targets(batch).tolist() == [1, 0]
    rebuilt = task.with_pair(batch, {"input_ids": torch.zeros(2, 3)}, torch.eye(2))
    assert set(rebuilt) == {"input_ids", "labels"}
    assert torch.equal(rebuilt["labels"], torch.eye(2))


def test_a_pair_batch_gives_one_positional_input_or_several():
    task = ClassificationTask()
    one = (torch.ones(2, 3), torch.tensor([1, 0]))
    assert len(task.inputs(one)) == 1
    assert task.with_pair(one, task.inputs(one), one[1])[0] is one[0]
    two = ((torch.ones(2, 3), torch.ones(2, 1)), torch.tensor([1, 0]))
    assert len(task.inputs(two)) == 2
    assert isinstance(task.with_pair(two, task.inputs(two), two[1])[0], tuple)


@dataclass
class Output:
    logits: Tensor


@pytest.mark.parametrize("wrap", [lambda t: t, lambda t: {"logits": t}, Output, lambda t: (t, None)])
def test_logits_are_found(wrap):
    assert logits_of(wrap(LOGITS)) is LOGITS


@pytest.mark.parametrize("outputs", [{"hidden": LOGITS}, torch.ones(3), torch.ones(1, 2, 3), None, ()])
def test_outputs_without_logits_are_named(outputs):
    with pytest.raises(SlimError, match="logits"):
        logits_of(outputs)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (torch.ones(3), "a batch must be"),
        ({"x": torch.ones(3)}, "no targets: its keys are x"),
        ((torch.ones(3), [1, 2, 3]), "targets must be a tensor, not list"),
        ((torch.ones(3), torch.ones(3)), "class numbers"),
        ((torch.ones(3), torch.ones(3, 2, dtype=torch.long)), "class numbers"),
    ],
)
def test_bad_batches_are_named(batch, message: str):
    with pytest.raises(DataError, match=message):
        ClassificationTask().targets(batch)


def test_bad_smoothing_is_named():
    with pytest.raises(SlimError, match="label_smoothing"):
        ClassificationTask(label_smoothing=1.0)


def test_the_task_is_registered_by_core():
    registry = load_plugins(select=()).registry
    task = registry.get("tasks", "classification")(label_smoothing=0.1, num_classes=8)
    assert (task.label_smoothing, task.num_classes) == (0.1, 8)
    assert registry.get("techniques", "fit").name == "fit"


@pytest.mark.parametrize("name", ["top1", "top5"])
def test_margins_tell_right_from_wrong(name: str):
    generator = torch.Generator().manual_seed(3)
    logits, targets = torch.randn(50, 8, generator=generator), torch.randint(0, 8, (50,), generator=generator)
    metric = ClassificationTask().metrics()[name]
    metric.update(logits, (logits, targets))
    margins = metric.margins(logits, (logits, targets))
    assert float((margins > 0).double().mean()) == metric.compute()
    others = torch.stack([torch.cat([row[:n], row[n + 1 :]]) for row, n in zip(logits, targets.tolist(), strict=True)])
    expected = logits[torch.arange(50), targets] - others.sort(1, descending=True).values[:, metric.k - 1]
    torch.testing.assert_close(margins, expected)


def test_without_other_classes_there_are_no_margins():
    logits = torch.zeros(4, 3)
    assert ClassificationTask().metrics()["top5"].margins(logits, (logits, torch.zeros(4, dtype=torch.long))) is None
