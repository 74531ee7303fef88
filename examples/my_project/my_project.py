"""A project's own model and data, registered for recipes. Run it with

    slim run recipe.yaml --load my_project.py -o out/

A recipe names what is registered here ("my/net", "my/stripes"); it never names this file's code.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import slim_core
from slim_core.data import Dataset, TensorSource


class Net(nn.Module):
    """Three convolutions with a residual connection: nothing here knows about Slim."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU())
        self.body = nn.Sequential(
            nn.Conv2d(channels, 2 * channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(2 * channels),
            nn.ReLU(),
            nn.Conv2d(2 * channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:  # (N, 1, H, W) -> (N, classes)
        x = self.stem(x)
        x = torch.relu(x + self.body(x))
        return self.head(x.mean((2, 3)))


@slim_core.register.model("my/net")
def my_net(channels: int = 32, num_classes: int = 4) -> nn.Module:
    return Net(channels, num_classes)


@slim_core.register.dataset("my/stripes")
def stripes(samples: int = 1024, size: int = 16, batch_size: int = 64, seed: int = 0) -> Dataset:
    """Pictures of stripes in four directions, with noise. Yours come from your files."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(samples) % 4
    rows = torch.arange(size).float()
    directions = torch.stack([
        rows[:, None].expand(size, size),  # horizontal
        rows[None, :].expand(size, size),  # vertical
        rows[:, None] + rows[None, :],  # falling
        rows[:, None] - rows[None, :],  # rising
    ])  # fmt: skip
    phase = 6.28 * torch.rand(samples, 1, 1, generator=generator)
    pictures = torch.sin(1.2 * directions[labels] + phase) + 0.7 * torch.randn(samples, size, size, generator=generator)
    inputs, cut = pictures[:, None], samples * 3 // 4  # (N, 1, H, W)
    return Dataset(
        train=TensorSource(inputs[:cut], labels[:cut], batch_size, shuffle=True, seed=seed),
        val=TensorSource(inputs[cut:], labels[cut:], batch_size),
        example_inputs=(inputs[:1].clone(),),
        num_classes=4,
        input_shape=(1, size, size),
    )
