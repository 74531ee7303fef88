"""Small networks for the tests of sparsity."""

from __future__ import annotations

import torch
from torch import nn


class Mixed(nn.Module):
    """A convolution, a depthwise and a transposed one, a tied linear pair, an embedding and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.up = nn.ConvTranspose2d(16, 10, 2)
        self.left = nn.Linear(10, 6)
        self.right = nn.Linear(10, 6)
        self.right.weight = self.left.weight
        self.words = nn.Embedding(5, 6)
        self.position = nn.Parameter(torch.zeros(1, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.up(torch.relu(self.depthwise(torch.relu(self.norm(self.conv(x))))))
        x = x.mean((2, 3))
        return self.left(x) + self.right(x) + self.words.weight.sum(0) + self.position


class Whole(nn.Module):
    """Integer weights, no division: what it computes is exact, so that its outputs can be compared bit for bit."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 16, 3, padding=1)
        self.a = nn.Conv2d(16, 16, 3, padding=1)
        self.b = nn.Conv2d(16, 24, 1)
        self.side = nn.Conv2d(16, 24, 1, bias=False)
        self.head = nn.Linear(24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.a(x))  # stem and a share their channels
        x = torch.relu(self.b(x) - self.side(x))
        return self.head(x.sum((2, 3)))


def mixed(seed: int = 0) -> Mixed:
    return _seeded(Mixed, seed)


def whole(seed: int = 0) -> Whole:
    model = _seeded(Whole, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randint(-4, 5, parameter.shape, generator=generator))
    return model


def _seeded(kind, seed: int):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind().eval()


def image(seed: int = 1) -> torch.Tensor:
    """Return integers as floats, ``(2, 2, 5, 5)``."""
    return torch.randint(-3, 4, (2, 2, 5, 5), generator=torch.Generator().manual_seed(seed)).float()
