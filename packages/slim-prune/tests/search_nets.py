"""A small network and pictures like digits, for searches: importable by worker processes, trained in a moment."""

from __future__ import annotations

import functools

import torch
from torch import nn

from slim_core.data import TensorSource
from slim_core.tasks import ClassificationTask
from slim_core.training import FitConfig, fit
from slim_core.workload import Workload

CLASSES, SIDE = 10, 8


class Chain(nn.Module):
    """Four convolutions with batch norm and a linear layer: four groups of unequal worth."""

    def __init__(self, widths: tuple[int, ...] = (16, 32, 32, 16)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 1
        for number, width in enumerate(widths):
            layers += [
                nn.Conv2d(before, width, 3, stride=2 if number == 1 else 1, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
            before = width
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(before, CLASSES)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


def macs_of(model: Chain) -> int:
    """Count the multiply-accumulates for one picture by hand."""
    side, total = SIDE, 0
    for layer in model.body:
        if isinstance(layer, nn.Conv2d):
            side //= layer.stride[0]
            total += layer.weight.numel() * side * side
    return total + model.head.weight.numel()


def params_of(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def pictures(samples: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return noisy, shifted strokes of ten kinds: ``(N, 1, 8, 8)`` and classes ``(N,)``."""
    strokes = torch.rand(CLASSES, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(99)) < 0.35
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, CLASSES, (samples,), generator=generator)
    shifts = torch.randint(-1, 2, (samples, 2), generator=generator).tolist()
    images = torch.stack(
        [strokes[t].float().roll(shift, (1, 2)) for t, shift in zip(targets.tolist(), shifts, strict=True)]
    )
    return images + 0.5 * torch.randn(images.shape, generator=generator), targets


@functools.cache
def _trained(widths: tuple[int, ...]) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        workload = untrained(widths)
        config = FitConfig(epochs=4, lr=0.1, device="cpu", seed=0, channels_last=False)
        return fit(workload, config).workload.model.state_dict()


def untrained(widths: tuple[int, ...] = (16, 32, 32, 16)) -> Workload:
    train = TensorSource(*pictures(1500, 1), 64, shuffle=True, seed=5)
    val = TensorSource(*pictures(400, 2), 100)
    return Workload(
        Chain(widths).eval(), (torch.zeros(2, 1, SIDE, SIDE),), task=ClassificationTask(), train=train, val=val
    )


def trained(widths: tuple[int, ...] = (16, 32, 32, 16)) -> Workload:
    """Return a workload whose model was trained for a second or two."""
    workload = untrained(widths)
    workload.model.load_state_dict(_trained(widths))
    return workload
