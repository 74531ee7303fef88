"""How well latency is predicted: random networks of three spaces, some to calibrate on and the rest held out.

* ``prepare``: draws the networks (MobileNetV2-like, ResNet-like, VGG-like), exports them, and writes a bundle.
* ``measure``: runs the agent on the bundle. It resumes: stop it and start it again as you like.
* ``judge``: fits on the calibration networks, predicts the others and the zoo's models, and writes
  ``benchmarks/results/latency_prediction.json``.

Every network is measured in shuffled rounds over all networks, so a slow minute of the machine meets all of them alike.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slim_core.export import to_onnx
from slim_core.files import write_json

RESULTS = Path(__file__).parent / "results"
SIZE = 96


def conv(inside: int, outside: int, kernel: int, stride: int = 1, groups: int = 1, act: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(inside, outside, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outside),
    ]
    return nn.Sequential(*layers, *([nn.ReLU6(inplace=True)] if act else []))


class Inverted(nn.Module):
    def __init__(self, inside: int, outside: int, expand: int, kernel: int, stride: int) -> None:
        super().__init__()
        hidden = inside * expand
        self.skip = stride == 1 and inside == outside
        self.body = nn.Sequential(
            *([conv(inside, hidden, 1)] if expand > 1 else []),
            conv(hidden, hidden, kernel, stride, groups=hidden),
            conv(hidden, outside, 1, act=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.skip else self.body(x)


class Residual(nn.Module):
    def __init__(self, inside: int, middle: int, outside: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        if bottleneck:
            parts = [conv(inside, middle, 1), conv(middle, middle, 3, stride), conv(middle, outside, 1, act=False)]
        else:
            parts = [conv(inside, middle, 3, stride), conv(middle, outside, 3, act=False)]
        self.body = nn.Sequential(*parts)
        same = stride == 1 and inside == outside
        self.skip = nn.Identity() if same else conv(inside, outside, 1, stride, act=False)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.body(x) + self.skip(x))
        return y


def even(value: float, step: int = 8) -> int:
    return max(step, round(value / step) * step)


def mobilenet_like(draw: random.Random) -> nn.Module:
    widths = [even(width * draw.uniform(0.4, 1.2)) for width in (24, 32, 64, 96, 160)]
    channels = even(32 * draw.uniform(0.4, 1.1))
    layers: list[nn.Module] = [conv(3, channels, 3, 2)]
    for stage, width in enumerate(widths):
        stride = 2 if stage in (0, 1, 2, 4) else 1
        for block in range(draw.randint(1, 3)):
            layers.append(Inverted(channels, width, draw.choice((1, 3, 4, 6)) if stage else draw.choice((1, 3)),
                                   draw.choice((3, 3, 5)), stride if block == 0 else 1))  # fmt: skip
            channels = width
    last = even(1280 * draw.uniform(0.3, 1.0))
    return nn.Sequential(*layers, conv(channels, last, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(last, 100))


def resnet_like(draw: random.Random) -> nn.Module:
    bottleneck = draw.random() < 0.4
    channels = even(64 * draw.uniform(0.3, 1.0))
    layers: list[nn.Module] = [conv(3, channels, draw.choice((3, 7)), 2), nn.MaxPool2d(3, 2, 1)]
    for stage, width in enumerate((64, 128, 256, 512)):
        outside = even(width * draw.uniform(0.3, 1.0)) * (2 if bottleneck else 1)
        for block in range(draw.randint(1, 2 if stage == 3 else 3)):
            middle = even(width * draw.uniform(0.25, 0.9))
            layers.append(Residual(channels, middle, outside, 2 if stage and block == 0 else 1, bottleneck))
            channels = outside
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 100))


def vgg_like(draw: random.Random) -> nn.Module:
    channels, layers = 3, []
    for stage, width in enumerate((64, 128, 256, 512, 512)):
        for _ in range(draw.randint(1, 2 if stage < 2 else 3)):
            outside = even(width * draw.uniform(0.2, 0.7))
            layers.append(conv(channels, outside, 3))
            channels = outside
        layers.append(nn.MaxPool2d(2))
    hidden = even(1024 * draw.uniform(0.3, 1.0))
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, 100)
    )


SPACES: dict[str, Callable[[random.Random], nn.Module]] = {
    "mobilenet": mobilenet_like, "resnet": resnet_like, "vgg": vgg_like,
}  # fmt: skip


def network(name: str, size: int = SIZE) -> nn.Module:
    """Return the network of a name such as ``resnet-017``: the same in every process."""
    space, _, number = name.rpartition("-")
    torch.manual_seed(int(number))
    return SPACES[space](random.Random(name)).eval()


def names(count: int) -> list[str]:
    return [f"{space}-{number:03d}" for number in range(count) for space in SPACES]
