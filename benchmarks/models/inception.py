"""Inception-v3 without its auxiliary head.

Szegedy et al. 2015, "Rethinking the Inception Architecture for Computer Vision", arXiv:1512.00567.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

Kernel = int | tuple[int, int]


def conv(
    inside: int, outside: int, kernel: Kernel = 1, stride: int = 1, padding: Kernel | None = None
) -> nn.Sequential:
    if padding is None:
        padding = kernel // 2 if isinstance(kernel, int) else (kernel[0] // 2, kernel[1] // 2)
    return nn.Sequential(
        nn.Conv2d(inside, outside, kernel, stride, padding, bias=False), nn.BatchNorm2d(outside, eps=1e-3), nn.ReLU()
    )


class Branches(nn.Module):
    """Runs its children on the same input and concatenates what they give."""

    def __init__(self, branches: Sequence[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


def _a(c: int, pool: int) -> Branches:
    return Branches([
        conv(c, 64),
        nn.Sequential(conv(c, 48), conv(48, 64, 5)),
        nn.Sequential(conv(c, 64), conv(64, 96, 3), conv(96, 96, 3)),
        nn.Sequential(nn.AvgPool2d(3, 1, 1), conv(c, pool)),
    ])  # fmt: skip


def _b(c: int) -> Branches:
    return Branches([
        conv(c, 384, 3, 2, 0),
        nn.Sequential(conv(c, 64), conv(64, 96, 3), conv(96, 96, 3, 2, 0)),
        nn.MaxPool2d(3, 2),
    ])  # fmt: skip


def _c(c: int, inner: int) -> Branches:
    return Branches([
        conv(c, 192),
        nn.Sequential(conv(c, inner), conv(inner, inner, (1, 7)), conv(inner, 192, (7, 1))),
        nn.Sequential(conv(c, inner), conv(inner, inner, (7, 1)), conv(inner, inner, (1, 7)),
                      conv(inner, inner, (7, 1)), conv(inner, 192, (1, 7))),
        nn.Sequential(nn.AvgPool2d(3, 1, 1), conv(c, 192)),
    ])  # fmt: skip


def _d(c: int) -> Branches:
    return Branches([
        nn.Sequential(conv(c, 192), conv(192, 320, 3, 2, 0)),
        nn.Sequential(conv(c, 192), conv(192, 192, (1, 7)), conv(192, 192, (7, 1)), conv(192, 192, 3, 2, 0)),
        nn.MaxPool2d(3, 2),
    ])  # fmt: skip


def _e(c: int) -> Branches:
    def fork() -> Branches:
        return Branches([conv(384, 384, (1, 3)), conv(384, 384, (3, 1))])

    return Branches([
        conv(c, 320),
        nn.Sequential(conv(c, 384), fork()),
        nn.Sequential(conv(c, 448), conv(448, 384, 3), fork()),
        nn.Sequential(nn.AvgPool2d(3, 1, 1), conv(c, 192)),
    ])  # fmt: skip


def inception_v3(classes: int = 1000) -> nn.Sequential:
    return nn.Sequential(
        conv(3, 32, 3, 2, 0), conv(32, 32, 3, 1, 0), conv(32, 64, 3), nn.MaxPool2d(3, 2),
        conv(64, 80), conv(80, 192, 3, 1, 0), nn.MaxPool2d(3, 2),
        _a(192, 32), _a(256, 64), _a(288, 64), _b(288),
        _c(768, 128), _c(768, 160), _c(768, 160), _c(768, 192), _d(768),
        _e(1280), _e(2048), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(2048, classes),
    )  # fmt: skip
