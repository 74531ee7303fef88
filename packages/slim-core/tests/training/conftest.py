"""A small convolutional classifier and data that it can learn."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from slim_core.data import TensorSource
from slim_core.tasks import ClassificationTask
from slim_core.workload import Workload


def small_net(dropout: float = 0.0, norm: bool = True) -> nn.Module:
    torch.manual_seed(7)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8) if norm else nn.Identity(),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(1),
        nn.Linear(32, 4),
    )


def quadrants(count: int = 96, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise with one bright quadrant; the class is which."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (count,), generator=random)
    pictures = torch.randn(count, 1, 8, 8, generator=random) * 0.5
    for picture, label in zip(pictures, labels.tolist(), strict=True):
        row, column = divmod(label, 2)
        picture[:, row * 4 : row * 4 + 4, column * 4 : column * 4 + 4] += 1.0
    return pictures, labels


@pytest.fixture
def make_workload() -> Callable[..., Workload]:
    def make(*, dropout: float = 0.0, norm: bool = True, batch: int = 16, count: int = 96) -> Workload:
        train = TensorSource(*quadrants(count), batch, shuffle=True, seed=1)
        val = TensorSource(*quadrants(40, seed=1), batch)
        return Workload(small_net(dropout, norm), (torch.zeros(1, 1, 8, 8),), ClassificationTask(), train, val)

    return make


@pytest.fixture
def workload(make_workload: Callable[..., Workload]) -> Workload:
    return make_workload()
