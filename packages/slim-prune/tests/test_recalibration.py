"""Recalibration against closed forms: the running statistics are means over what the layers see."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from slim_core.data import TensorSource
from slim_core.errors import DataError
from slim_core.tasks import ClassificationTask
from slim_core.testing.workloads import fingerprint, tiny_workload
from slim_prune import recalibrate


@pytest.fixture
def images():
    return torch.randn(64, 3, 6, 6, generator=torch.Generator().manual_seed(3)) * 2 + 1


def expected(seen: torch.Tensor, sizes: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Means over batches of what one layer sees, each batch weighted by its samples; in float64."""
    parts = seen.double().split(sizes)
    total = sum(sizes)
    mean = sum(len(p) / total * p.mean((0, 2, 3)) for p in parts)
    var = sum(len(p) / total * p.var((0, 2, 3), unbiased=True) for p in parts)
    return mean, var


def test_statistics_are_the_means_over_equal_batches(images) -> None:
    conv, norm = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5, momentum=0.3)
    model = nn.Sequential(conv, norm)
    batches = [(part, torch.zeros(16)) for part in images.split(16)]
    assert recalibrate(model, batches, samples=64) == 1
    mean, var = expected(conv(images).detach(), [16] * 4)
    torch.testing.assert_close(norm.running_mean.double(), mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(norm.running_var.double(), var, rtol=1e-5, atol=1e-6)
    assert norm.momentum == 0.3


def test_it_equals_pytorchs_own_cumulative_average(images) -> None:
    ours, theirs = nn.BatchNorm2d(3), nn.BatchNorm2d(3, momentum=None)
    recalibrate(ours, list(images.split(16)), samples=64)
    for part in images.split(16):
        theirs(part)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    assert ours.num_batches_tracked == theirs.num_batches_tracked == 4


def test_a_last_batch_that_is_cut_weighs_by_its_samples(images) -> None:
    norm = nn.BatchNorm2d(3)
    recalibrate(norm, list(images.split(16)), samples=36)
    mean, var = expected(images[:36], [16, 16, 4])
    torch.testing.assert_close(norm.running_mean.double(), mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(norm.running_var.double(), var, rtol=1e-5, atol=1e-6)


def test_layers_behind_others_see_batch_statistics_not_the_old_ones(images) -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.BatchNorm2d(3))
    model[0].running_mean += 100  # would drown everything if it were used
    recalibrate(model, [images], samples=64)
    seen = (images - images.mean((0, 2, 3), keepdim=True)) / (
        images.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5
    ).sqrt()
    torch.testing.assert_close(model[2].running_mean, seen.relu().mean((0, 2, 3)), rtol=1e-5, atol=1e-6)


def test_a_layer_called_twice_averages_over_both_calls(images) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3, affine=False)

        def forward(self, x):
            return self.norm(x) + self.norm(x * 3)

    model = Twice()
    recalibrate(model, list(images.split(32)), samples=64)
    mean, _ = expected(images, [32, 32])
    torch.testing.assert_close(model.norm.running_mean.double(), 2 * mean, rtol=1e-5, atol=1e-6)


def test_nothing_but_the_statistics_changes_and_dropout_is_off(images) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Dropout(0.5), nn.BatchNorm2d(4), nn.BatchNorm2d(4))
    model[3].eval()
    model[0].weight.requires_grad_(False)
    before, state = fingerprint(model), torch.get_rng_state()
    recalibrate(model, [images], samples=64)
    first = model[2].running_mean.clone()
    assert torch.equal(torch.get_rng_state(), state)
    after = fingerprint(model)
    changed = {name for name in before if before[name] != after[name]}
    norm = ("running_mean", "running_var", "num_batches_tracked")
    assert changed == {f"tensor {layer}.{name}" for layer in (2, 3) for name in norm}
    recalibrate(model, [images], samples=64)
    assert torch.equal(model[2].running_mean, first), "it is a function of the data, not of the old statistics"


def test_data_is_taken_without_augmentation_and_in_a_fixed_order(images) -> None:
    source = TensorSource(images, torch.zeros(64), 16, shuffle=True, augment=lambda x, generator: x + 1000, seed=1)
    norm = nn.BatchNorm2d(3)
    source.set_epoch(5)
    recalibrate(norm, source, samples=64, task=ClassificationTask())
    torch.testing.assert_close(norm.running_mean, images.mean((0, 2, 3)), rtol=1e-5, atol=1e-5)


def test_a_model_without_running_statistics_is_left_alone(images) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4), nn.BatchNorm2d(4, track_running_stats=False))
    before = fingerprint(model)
    assert recalibrate(model, [images], samples=64) == 0
    assert fingerprint(model) == before


def test_an_error_gives_the_old_statistics_back(images) -> None:
    workload = tiny_workload()
    before = fingerprint(workload.model)

    def broken():
        yield workload.train[0]
        yield torch.zeros(4, 7, 8, 8), torch.zeros(4)

    class Source:
        def __iter__(self):
            return broken()

    with pytest.raises(RuntimeError):
        recalibrate(workload.model, Source(), samples=64)
    assert fingerprint(workload.model) == before


@pytest.mark.parametrize(
    ("data", "samples"), [([torch.zeros(1, 3, 4, 4)], 64), ([torch.zeros(4, 3, 4, 4)], 1), ([], 8)]
)
def test_too_few_samples_are_an_error(data, samples) -> None:
    with pytest.raises(DataError):
        recalibrate(nn.BatchNorm2d(3), data, samples=samples)


def test_a_last_sample_alone_is_left_out() -> None:
    model = nn.BatchNorm1d(3)
    x = torch.randn(9, 3, generator=torch.Generator().manual_seed(0))
    recalibrate(model, list(x.split(4)), samples=9)
    torch.testing.assert_close(model.running_mean, x[:8].mean(0))
