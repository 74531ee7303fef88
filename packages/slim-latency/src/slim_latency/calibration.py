"""Random networks of three spaces, to calibrate a device on and to judge predictions with.

The spaces are those that compression works in: inverted residuals (MobileNetV2), residual networks with and without
bottlenecks, and plain stacks of convolutions (VGG). Widths are multiples of 8. A network's name says all about it:
``resnet-017`` is the same one everywhere.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import Tensor, nn

from slim_core.errors import MeasureError

#: side of the square pictures that the networks take, unless another is asked for
SIZE = 96
CLASSES = 100


class Inverted(nn.Module):
    """An inverted residual: expand, depthwise, project."""

    def __init__(self, inside: int, outside: int, expand: int, kernel: int, stride: int, act: str) -> None:
        super().__init__()
        hidden = inside * expand
        self.skip = stride == 1 and inside == outside
        self.body = nn.Sequential(
            *([conv(inside, hidden, 1, act=act)] if expand > 1 else []),
            conv(hidden, hidden, kernel, stride, groups=hidden, act=act),
            conv(hidden, outside, 1, act=""),
        )

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.body(x)
        return x + made if self.skip else made


class Residual(nn.Module):
    """A residual block: two 3x3 convolutions, or a bottleneck."""

    def __init__(self, inside: int, middle: int, outside: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        if bottleneck:
            parts = [conv(inside, middle, 1), conv(middle, middle, 3, stride), conv(middle, outside, 1, act="")]
        else:
            parts = [conv(inside, middle, 3, stride), conv(middle, outside, 3, act="")]
        self.body = nn.Sequential(*parts)
        same = stride == 1 and inside == outside
        self.skip = nn.Identity() if same else conv(inside, outside, 1, stride, act="")
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.act(self.body(x) + self.skip(x))
        return made


def conv(inside: int, outside: int, kernel: int, stride: int = 1, groups: int = 1, act: str = "relu") -> nn.Sequential:
    """Return convolution, batch norm and activation (``""``: none)."""
    layers: list[nn.Module] = [
        nn.Conv2d(inside, outside, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(outside),
    ]  # fmt: skip
    if act:
        layers.append({"relu": nn.ReLU, "relu6": nn.ReLU6, "hardswish": nn.Hardswish}[act](inplace=True))
    return nn.Sequential(*layers)


def mobilenet_like(draw: random.Random) -> nn.Module:
    """Return a network of inverted residuals."""
    act = draw.choice(("relu6", "relu6", "hardswish"))
    widths = [_even(width * draw.uniform(0.4, 1.2)) for width in (24, 32, 64, 96, 160)]
    channels = _even(32 * draw.uniform(0.4, 1.1))
    layers: list[nn.Module] = [conv(3, channels, 3, 2, act=act)]
    for stage, width in enumerate(widths):
        for block in range(draw.randint(1, 3)):
            expand = draw.choice((1, 3, 4, 6)) if stage else draw.choice((1, 3))
            stride = 2 if stage in (0, 1, 2, 4) and block == 0 else 1
            layers.append(Inverted(channels, width, expand, draw.choice((3, 3, 5)), stride, act))
            channels = width
    last = _even(1280 * draw.uniform(0.3, 1.0))
    return nn.Sequential(*layers, conv(channels, last, 1, act=act), *_head(last))


def resnet_like(draw: random.Random) -> nn.Module:
    """Return a residual network."""
    bottleneck = draw.random() < 0.4
    channels = _even(64 * draw.uniform(0.3, 1.0))
    layers: list[nn.Module] = [conv(3, channels, draw.choice((3, 7)), 2), nn.MaxPool2d(3, 2, 1)]
    for stage, width in enumerate((64, 128, 256, 512)):
        outside = _even(width * draw.uniform(0.3, 1.0)) * (2 if bottleneck else 1)
        for block in range(draw.randint(1, 2 if stage == 3 else 3)):
            middle = _even(width * draw.uniform(0.25, 0.9))
            layers.append(Residual(channels, middle, outside, 2 if stage and block == 0 else 1, bottleneck))
            channels = outside
    return nn.Sequential(*layers, *_head(channels))


def vgg_like(draw: random.Random) -> nn.Module:
    """Return a plain stack of convolutions."""
    layers: list[nn.Module] = []
    channels = 3
    for stage, width in enumerate((64, 128, 256, 512, 512)):
        for _ in range(draw.randint(1, 2 if stage < 2 else 3)):
            outside = _even(width * draw.uniform(0.2, 0.7))
            layers.append(conv(channels, outside, 3))
            channels = outside
        layers.append(nn.MaxPool2d(2))
    hidden = _even(1024 * draw.uniform(0.3, 1.0))
    return nn.Sequential(*layers, *_head(channels)[:-1], nn.Linear(channels, hidden), nn.ReLU(),
                         nn.Linear(hidden, CLASSES))  # fmt: skip


SPACES: dict[str, Callable[[random.Random], nn.Module]] = {
    "mobilenet": mobilenet_like, "resnet": resnet_like, "vgg": vgg_like,
}  # fmt: skip


def network(name: str) -> nn.Module:
    """Return the network of a name such as ``resnet-017``, in eval mode.

    Raises:
        MeasureError: there is no such space.
    """
    space, _, number = name.rpartition("-")
    if space not in SPACES or not number.isdigit():
        raise MeasureError(f"there is no network '{name}'", hint=f"names are {', '.join(SPACES)}, each with -NUMBER")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(number))
        return SPACES[space](random.Random(name)).eval()  # noqa: S311  a network, not a secret


def names(count: int, first: int = 0) -> list[str]:
    """Return the names of ``count`` networks, the spaces in turn, from number ``first`` of each on."""
    spaces = list(SPACES)
    return [f"{spaces[number % len(spaces)]}-{first + number // len(spaces):03d}" for number in range(count)]


def picture(size: int = SIZE, batch: int = 1) -> tuple[Tensor]:
    """Return inputs for the networks."""
    return (torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(0)),)


def _head(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES)]


def _even(value: float, step: int = 8) -> int:
    return max(step, round(value / step) * step)
