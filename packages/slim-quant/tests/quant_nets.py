"""Small networks for the tests of slim-quant, with statistics as after training."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    """Convolutions, ReLU6, a depthwise one, a residual add, a concatenation, pooling, two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False)
        self.depthwise_norm = nn.BatchNorm2d(16)
        self.point = nn.Conv2d(16, 16, 1)
        self.left = nn.Conv2d(16, 8, 1)
        self.right = nn.Conv2d(16, 8, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.relu6 = nn.ReLU6()
        self.hidden = nn.Linear(16, 32)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem_norm(self.stem(x)))
        y = self.point(self.relu6(self.depthwise_norm(self.depthwise(x))))
        x = self.relu(x + y)
        x = torch.cat([self.left(x), self.right(x)], 1)
        x = nn.functional.max_pool2d(x, 2)
        x = x.mean((2, 3))
        return self.head(self.relu(self.hidden(x)))


def settle(model: nn.Module, x: Tensor) -> nn.Module:
    """Give batch norms the statistics of noise, and every norm affine terms of its own."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.2)
    model.train()
    with torch.no_grad():
        for _ in range(20):
            model(torch.randn_like(x))
    return model.eval()


def pictures(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Ten classes of 16x16 pictures: a texture each, in noise of its size."""
    patterns = torch.randn(10, 3, 4, 4, generator=torch.Generator().manual_seed(0)).repeat(1, 1, 4, 4)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 10, (count,), generator=generator)
    return patterns[labels] + torch.randn(count, 3, 16, 16, generator=generator), labels


def trained() -> nn.Module:
    """A network that has learnt them."""
    torch.manual_seed(0)
    model = Residual()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for step in range(80):
        x, labels = pictures(64, 100 + step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), labels).backward()
        optimizer.step()
    return model.eval()
