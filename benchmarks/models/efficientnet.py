"""EfficientNet-B0 (Tan and Le 2019, "EfficientNet: Rethinking Model Scaling", arXiv:1905.11946)."""

from __future__ import annotations

from torch import Tensor, nn

#: expansion, channels, repeats, stride, kernel
_STAGES = (
    (1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5), (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)  # fmt: skip


def conv(
    inside: int, outside: int, kernel: int = 1, stride: int = 1, groups: int = 1, act: bool = True
) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(inside, outside, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(outside)
    ]  # fmt: skip
    return nn.Sequential(*layers, *([nn.SiLU()] if act else []))


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce, self.expand = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)
        self.act, self.gate = nn.SiLU(), nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.expand(self.act(self.reduce(self.pool(x)))))


class MBConv(nn.Module):
    def __init__(self, inside: int, outside: int, expansion: int, stride: int, kernel: int) -> None:
        super().__init__()
        hidden = inside * expansion
        layers: list[nn.Module] = [] if expansion == 1 else [conv(inside, hidden)]
        layers += [
            conv(hidden, hidden, kernel, stride, groups=hidden),
            SqueezeExcite(hidden, max(1, inside // 4)),
            conv(hidden, outside, act=False),
        ]
        self.block = nn.Sequential(*layers)
        self.residual = stride == 1 and inside == outside

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x) if self.residual else self.block(x)


def efficientnet_b0(classes: int = 1000) -> nn.Sequential:
    layers: list[nn.Module] = [conv(3, 32, 3, 2)]
    channels = 32
    for expansion, outside, repeats, stride, kernel in _STAGES:
        for number in range(repeats):
            layers.append(MBConv(channels, outside, expansion, stride if number == 0 else 1, kernel))
            channels = outside
    return nn.Sequential(
        *layers, conv(channels, 1280), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(1280, classes)
    )
