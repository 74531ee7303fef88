"""What real models do and trips tools: parametrizations, raw parameters, literals, reuse, slices, branches."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from slim_core.testing.families.convolutional import CLASSES, conv_bn
from slim_core.testing.families.dense import Backbone


class WeightNormed(nn.Module):
    """Dilated convolutions over time with weight norm (Salimans and Kingma 2016, arXiv:1602.07868)."""

    def __init__(self, w: int) -> None:
        super().__init__()
        norm = parametrizations.weight_norm
        self.conv1 = norm(nn.Conv1d(3, w, 3, padding=1))
        self.conv2 = norm(nn.Conv1d(w, w, 3, padding=2, dilation=2))
        self.mix = norm(nn.Conv1d(w, w, 3, padding=1, groups=w))
        self.fc = norm(nn.Linear(w, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        x = x + F.relu(self.mix(self.conv2(x)))
        return self.fc(x.mean(-1))  # type: ignore[no-any-return]


class SpectralNormed(nn.Module):
    """A discriminator with spectral norm (Miyato et al. 2018, arXiv:1802.05957)."""

    def __init__(self, w: int) -> None:
        super().__init__()
        norm = parametrizations.spectral_norm
        self.conv1 = norm(nn.Conv2d(3, w, 3, 2, 1))
        self.conv2 = norm(nn.Conv2d(w, 2 * w, 3, 2, 1))
        self.fc = norm(nn.Linear(2 * w, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.conv1(x), 0.2)
        x = F.leaky_relu(self.conv2(x), 0.2)
        return self.fc(x.sum((2, 3)))  # type: ignore[no-any-return]


class RawParameters(nn.Module):
    """Weights that are parameters of the model itself, used through functions."""

    def __init__(self, w: int) -> None:
        super().__init__()
        self.kernel1, self.bias1 = nn.Parameter(torch.randn(w, 3, 3, 3) * 0.2), nn.Parameter(torch.randn(w) * 0.1)
        self.kernel2 = nn.Parameter(torch.randn(2 * w, w, 3, 3) * 0.1)
        self.scale = nn.Parameter(torch.rand(2 * w, 1, 1) + 0.5)
        self.weights = nn.ParameterDict(
            {"hidden": nn.Parameter(torch.randn(4 * w, 2 * w) * 0.2), "out": nn.Parameter(torch.randn(CLASSES, 4 * w))}
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.conv2d(x, self.kernel1, self.bias1, padding=1))
        x = F.conv2d(x, self.kernel2, stride=2, padding=1) * self.scale
        x = F.relu(x.mean((2, 3)) @ self.weights["hidden"].t())
        return torch.einsum("bi,oi->bo", x, self.weights["out"])


class Literal(nn.Module):
    """A view with a number in it: what it fixes stays, the rest goes."""

    def __init__(self, w: int) -> None:
        super().__init__()
        if w != 8:
            raise ValueError("the numbers in its forward are those of width 8")
        self.features = nn.Sequential(conv_bn(3, 8), conv_bn(8, 16, 3, 4))
        self.fc1, self.fc2 = nn.Linear(16 * 8 * 8, 32), nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        x = x.view(-1, 1024)
        return self.fc2(F.relu(self.fc1(x)))  # type: ignore[no-any-return]


class Branching(nn.Module):
    """Takes one of two ways by a value in the data."""

    def __init__(self, w: int) -> None:
        super().__init__()
        self.stem, self.body, self.other = conv_bn(3, w), conv_bn(w, 2 * w), conv_bn(w, 2 * w, 1)
        self.tail, self.fc = conv_bn(2 * w, 2 * w), nn.Linear(2 * w, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.body(x) if x.amax() < 1e3 else self.other(x)
        return self.fc(self.tail(x).mean((2, 3)))  # type: ignore[no-any-return]


class Reused(nn.Module):
    """One block in several places, one norm shared, a weight used outside its module."""

    def __init__(self, w: int) -> None:
        super().__init__()
        self.stem = conv_bn(3, w)
        self.block, self.norm = nn.Conv2d(w, w, 3, padding=1), nn.BatchNorm2d(w)
        self.project = nn.Conv2d(w, 2 * w, 1)
        self.head = nn.Linear(2 * w, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(3):
            x = x + F.relu(self.norm(self.block(x)))
        y = F.conv2d(x, self.block.weight, padding=1)
        x = self.project(F.relu(self.norm(y)))
        return self.head(F.max_pool2d(x, x.shape[-1]).flatten(1))  # type: ignore[no-any-return]


class Sliced(nn.Module):
    """Channels are taken by halves, by steps and in reverse."""

    def __init__(self, w: int) -> None:
        super().__init__()
        self.stem, self.left, self.right = conv_bn(3, 2 * w), conv_bn(w, w), conv_bn(w, w, 1)
        self.mix, self.fc = conv_bn(2 * w, 2 * w), nn.Linear(2 * w, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        half = x.shape[1] // 2
        x = torch.cat([self.left(x[:, :half]), self.right(x[:, half:])], 1)
        x = torch.cat([x[:, ::2], x[:, 1::2].flip(1)], 1)
        return self.fc(self.mix(x).mean((2, 3)))  # type: ignore[no-any-return]


class Glu(nn.Module):
    """Gated convolutions: ``chunk`` and ``F.glu`` (Dauphin et al. 2016, arXiv:1612.08083)."""

    def __init__(self, w: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(3, 2 * w, 3, padding=1), nn.Conv1d(w, 4 * w, 3, padding=1)
        self.fc = nn.Linear(2 * w, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.glu(self.conv1(x), dim=1)
        value, gate = torch.chunk(self.conv2(x), 2, dim=1)
        return self.fc((value * torch.sigmoid(gate)).amax(-1))  # type: ignore[no-any-return]


class Detector(nn.Module):
    """A detector whose backbone is to be pruned, and whose head is not."""

    def __init__(self, w: int) -> None:
        super().__init__()
        self.backbone = Backbone(w)
        self.lateral = nn.ModuleList(nn.Conv2d(c, 2 * w, 1) for c in (w, 2 * w, 4 * w))
        self.score, self.box = nn.Conv2d(2 * w, CLASSES, 3, padding=1), nn.Conv2d(2 * w, 4, 3, padding=1)

    def forward(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        levels = [F.relu(lateral(y)) for lateral, y in zip(self.lateral, self.backbone(x), strict=True)]
        return [(self.score(level), self.box(level)) for level in levels]
