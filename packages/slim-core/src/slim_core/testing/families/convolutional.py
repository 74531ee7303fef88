"""Classifiers made of convolutions, in small: each has the joints of its family, and few of each.

Every builder takes a base width, which scales the model: 8 for tests, 32 and more for benchmarks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 5


def conv_bn(inside: int, outside: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inside, outside, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outside),
        nn.ReLU(inplace=True),
    )


class Classifier(nn.Module):
    """Features, global pooling, a linear layer."""

    def __init__(self, features: nn.Module, channels: int) -> None:
        super().__init__()
        self.features = features
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.features(x))
        return self.classifier(torch.flatten(x, 1))  # type: ignore[no-any-return]


# --- VGG: a chain that is flattened -----------------------------------------------------------------------------


class Vgg(nn.Module):
    """Simonyan and Zisserman 2014, arXiv:1409.1556: the classifier reads flattened pixels."""

    def __init__(self, w: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            conv_bn(3, w), nn.MaxPool2d(2), conv_bn(w, 2 * w), nn.MaxPool2d(2), conv_bn(2 * w, 4 * w),
            nn.Conv2d(4 * w, 4 * w, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        )  # fmt: skip
        self.avgpool = nn.AdaptiveAvgPool2d((2, 2))
        self.classifier = nn.Sequential(
            nn.Linear(4 * w * 4, 8 * w), nn.ReLU(True), nn.Dropout(), nn.Linear(8 * w, 8 * w), nn.ReLU(True),
            nn.Dropout(), nn.Linear(8 * w, CLASSES),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = self.avgpool(self.features(x))
        x = x.view(x.size(0), -1)
        return self.classifier(x)  # type: ignore[no-any-return]


# --- ResNet, ResNeXt, RegNet: residual streams ------------------------------------------------------------------


class BasicBlock(nn.Module):
    """He et al. 2015, arXiv:1512.03385."""

    def __init__(self, inside: int, outside: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.downsample = None
        if stride != 1 or inside != outside:
            self.downsample = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += identity
        return self.relu(out)  # type: ignore[no-any-return]


class Bottleneck(nn.Module):
    """1x1, (grouped) 3x3, 1x1; with ``squeezed`` a gate after the second, as in RegNetY."""

    def __init__(
        self, inside: int, inner: int, outside: int, stride: int = 1, groups: int = 1, squeezed: int = 0
    ) -> None:
        super().__init__()
        self.reduce = conv_bn(inside, inner, 1)
        self.mix = conv_bn(inner, inner, 3, stride, groups)
        self.gate = SqueezeExcite(inner, squeezed) if squeezed else nn.Identity()
        self.expand = nn.Sequential(nn.Conv2d(inner, outside, 1, bias=False), nn.BatchNorm2d(outside))
        same = stride == 1 and inside == outside
        self.shortcut = nn.Identity() if same else nn.Sequential(
            nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.shortcut(x) + self.expand(self.gate(self.mix(self.reduce(x)))))


class SqueezeExcite(nn.Module):
    """Hu et al. 2017, arXiv:1709.01507."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        scale = F.adaptive_avg_pool2d(x, 1)
        return torch.sigmoid(self.fc2(F.relu(self.fc1(scale)))) * x


def resnet(w: int) -> nn.Module:
    return Classifier(
        nn.Sequential(
            conv_bn(3, w), nn.MaxPool2d(2), BasicBlock(w, w), BasicBlock(w, 2 * w, 2), BasicBlock(2 * w, 2 * w)
        ),
        2 * w,
    )


def resnext(w: int) -> nn.Module:
    """Xie et al. 2016, arXiv:1611.05431."""
    return Classifier(
        nn.Sequential(
            conv_bn(3, w),
            Bottleneck(w, 2 * w, 2 * w, groups=4),
            Bottleneck(2 * w, 4 * w, 4 * w, 2, groups=4),
            Bottleneck(4 * w, 4 * w, 4 * w, groups=4),
        ),
        4 * w,
    )


def regnet(w: int) -> nn.Module:
    """Radosavovic et al. 2020, arXiv:2003.13678 (the Y form): groups of a fixed width, and gates."""
    return Classifier(
        nn.Sequential(
            conv_bn(3, w),
            Bottleneck(w, 2 * w, 2 * w, 2, groups=2 * w // 8, squeezed=w // 2),
            Bottleneck(2 * w, 2 * w, 2 * w, groups=2 * w // 8, squeezed=w // 2),
            Bottleneck(2 * w, 3 * w, 3 * w, 2, groups=3 * w // 8, squeezed=w // 2),
        ),
        3 * w,
    )


# --- DenseNet, Inception, SqueezeNet: concatenation -------------------------------------------------------------


class DenseLayer(nn.Module):
    """Huang et al. 2016, arXiv:1608.06993: takes the list of everything before it."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(channels), nn.Conv2d(channels, 2 * growth, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(2 * growth), nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False)

    def forward(self, found: list[Tensor]) -> Tensor:
        x = self.conv1(F.relu(self.norm1(torch.cat(found, 1))))
        return F.dropout(self.conv2(F.relu(self.norm2(x))), 0.1, self.training)


class DenseBlock(nn.ModuleDict):
    def __init__(self, channels: int, growth: int, layers: int) -> None:
        super().__init__({f"layer{n}": DenseLayer(channels + n * growth, growth) for n in range(layers)})

    def forward(self, x: Tensor) -> Tensor:
        found = [x]
        for layer in self.values():
            found.append(layer(found))
        return torch.cat(found, 1)


def densenet(w: int) -> nn.Module:
    return Classifier(
        nn.Sequential(
            nn.Conv2d(3, 2 * w, 3, padding=1, bias=False),
            DenseBlock(2 * w, w, 3),
            nn.BatchNorm2d(5 * w), nn.ReLU(), nn.Conv2d(5 * w, 2 * w, 1, bias=False), nn.AvgPool2d(2),
            DenseBlock(2 * w, w, 2), nn.BatchNorm2d(4 * w), nn.ReLU(),
        ),
        4 * w,
    )  # fmt: skip


class Inception(nn.Module):
    """Szegedy et al. 2014, arXiv:1409.4842: four branches, one of them pooled."""

    def __init__(self, inside: int, a: int, b: tuple[int, int], c: tuple[int, int], d: int) -> None:
        super().__init__()
        self.branch1 = conv_bn(inside, a, 1)
        self.branch2 = nn.Sequential(conv_bn(inside, b[0], 1), conv_bn(b[0], b[1]))
        self.branch3 = nn.Sequential(conv_bn(inside, c[0], 1), conv_bn(c[0], c[1], 5))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, 1, 1, ceil_mode=True), conv_bn(inside, d, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


class GoogLeNet(nn.Module):
    """With the auxiliary classifier that only training uses, as published."""

    def __init__(self, w: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_bn(3, w), nn.MaxPool2d(2, ceil_mode=True))
        self.a = Inception(w, w, (w // 2, w), (w // 4, w // 2), w // 2)
        self.b = Inception(3 * w, w, (w, 2 * w), (w // 2, w // 2), w // 2)
        self.aux = Classifier(nn.Conv2d(3 * w, w, 1), w)
        self.dropout = nn.Dropout(0.2)
        self.fc = nn.Linear(4 * w, CLASSES)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.a(self.stem(x))
        aux = self.aux(x)
        x = F.adaptive_avg_pool2d(self.b(x), (1, 1))
        return self.fc(self.dropout(torch.flatten(x, 1))), aux


class Fire(nn.Module):
    """Iandola et al. 2016, arXiv:1602.07360."""

    def __init__(self, inside: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inside, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.squeeze(x))
        return torch.cat([self.activation(self.expand1x1(x)), self.activation(self.expand3x3(x))], 1)


class SqueezeNet(nn.Module):
    """Its classes come out of a convolution."""

    def __init__(self, w: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, w, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2),
            Fire(w, w // 2, w), Fire(2 * w, w // 2, w), nn.MaxPool2d(2), Fire(2 * w, w, 2 * w),
        )  # fmt: skip
        self.classifier = nn.Sequential(nn.Dropout(0.5), nn.Conv2d(4 * w, CLASSES, 1), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(self.classifier(self.features(x)), 1).flatten(1)
