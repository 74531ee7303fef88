"""What the tests of training-aware quantization share."""

from __future__ import annotations

from typing import Any

import torch
from quant_nets import pictures
from torch import Tensor, nn


class Mixed(nn.Module):
    """Layers with and without batch norm, transposed and grouped ones, odd settings, dropout, a shared ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.first_norm = nn.BatchNorm2d(8, eps=1e-2, momentum=0.3)
        self.down = nn.Conv2d(8, 12, 3, stride=2, padding=1, groups=4, bias=False)
        self.down_norm = nn.BatchNorm2d(12, affine=False)
        self.up = nn.ConvTranspose2d(12, 6, 2, stride=2, bias=False)
        self.up_norm = nn.BatchNorm2d(6)
        self.alone = nn.BatchNorm2d(6)
        self.relu = nn.ReLU()
        self.drop = nn.Dropout(0.25)
        self.hidden = nn.Linear(6, 16, bias=False)
        self.hidden_norm = nn.BatchNorm1d(16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.first_norm(self.first(x)))
        x = self.relu(self.down_norm(self.down(x)))
        x = self.up_norm(self.up(x))
        x = self.relu(self.alone(x + 0.5 * x))
        x = self.drop(x.mean((2, 3)))
        return self.head(self.relu(self.hidden_norm(self.hidden(x))))


def mixed() -> nn.Module:
    """Mixed, with statistics and affine terms as after training, one of them negative."""
    torch.manual_seed(0)
    model = Mixed()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.affine:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.3)
            with torch.no_grad():
                module.weight[0] = -0.7
    model.train()
    with torch.no_grad():
        for step in range(20):
            model(pictures(16, step)[0])
    return model.eval()


def train(model: nn.Module, steps: int, lr: float = 0.002, classes: int = 10, **options: Any) -> list[float]:
    """A user's own loop: plain SGD."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, **options)
    losses = []
    model.train()
    for step in range(steps):
        x, labels = pictures(32, 200 + step)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), labels % classes)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses
