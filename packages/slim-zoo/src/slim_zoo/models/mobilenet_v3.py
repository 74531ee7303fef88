"""MobileNetV3 (Howard et al., 2019, arXiv 1905.02244): inverted residuals, squeeze-and-excitation, hard swish."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Unpack

from torch import Tensor, nn

from slim_zoo.models.common import ModelOptions, check_options, conv_norm, fitted_strides, initialize, scaled

NORM_EPS, NORM_MOMENTUM = 1e-3, 0.01  # of the paper's published code


class Row(NamedTuple):
    """One line of the paper's tables 1 and 2."""

    kernel: int
    hidden: int
    outputs: int
    excite: bool
    swish: bool
    stride: int


LARGE = (
    Row(3, 16, 16, False, False, 1),
    Row(3, 64, 24, False, False, 2), Row(3, 72, 24, False, False, 1),
    Row(5, 72, 40, True, False, 2), Row(5, 120, 40, True, False, 1), Row(5, 120, 40, True, False, 1),
    Row(3, 240, 80, False, True, 2), Row(3, 200, 80, False, True, 1),
    Row(3, 184, 80, False, True, 1), Row(3, 184, 80, False, True, 1),
    Row(3, 480, 112, True, True, 1), Row(3, 672, 112, True, True, 1),
    Row(5, 672, 160, True, True, 2), Row(5, 960, 160, True, True, 1), Row(5, 960, 160, True, True, 1),
)  # fmt: skip
SMALL = (
    Row(3, 16, 16, True, False, 2),
    Row(3, 72, 24, False, False, 2), Row(3, 88, 24, False, False, 1),
    Row(5, 96, 40, True, True, 2), Row(5, 240, 40, True, True, 1), Row(5, 240, 40, True, True, 1),
    Row(5, 120, 48, True, True, 1), Row(5, 144, 48, True, True, 1),
    Row(5, 288, 96, True, True, 2), Row(5, 576, 96, True, True, 1), Row(5, 576, 96, True, True, 1),
)  # fmt: skip


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate that sees the mean of all channels (Hu et al., 2017, arXiv 1709.01507)."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.act = nn.ReLU(inplace=True)
        self.expand = nn.Conv2d(squeezed, channels, 1)
        self.gate = nn.Hardsigmoid(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        gate: Tensor = self.gate(self.expand(self.act(self.reduce(self.pool(x)))))  # (N, C, 1, 1)
        return x * gate


def _conv(
    inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, act: type[nn.Module] | None = None
) -> nn.Sequential:
    return conv_norm(
        inputs, outputs, kernel, stride, groups=groups, act=act, norm_eps=NORM_EPS, norm_momentum=NORM_MOMENTUM
    )


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise, squeeze-and-excitation, 1x1 projection, and a residual where the shape stays."""

    def __init__(self, inputs: int, row: Row, stride: int, width: float) -> None:
        super().__init__()
        hidden, outputs = scaled(row.hidden, width), scaled(row.outputs, width)
        act: type[nn.Module] = nn.Hardswish if row.swish else nn.ReLU
        self.residual = stride == 1 and inputs == outputs
        layers: list[nn.Module] = [] if hidden == inputs else [_conv(inputs, hidden, act=act)]
        layers.append(_conv(hidden, hidden, row.kernel, stride, groups=hidden, act=act))
        if row.excite:
            layers.append(SqueezeExcite(hidden, scaled(hidden / 4)))
        layers.append(_conv(hidden, outputs))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return x + out if self.residual else out


class MobileNetV3(nn.Module):
    """A stem, the paper's inverted residuals, a 1x1 head and a hidden linear layer.

    For small pictures the first strides become 1 until the last feature map is at least 2 wide:
    ``input_size=32`` takes away the stem's stride.

    Args:
        rows: the inverted residuals.
        hidden: units of the hidden linear layer at width 1.
        width: multiplier of all channel counts.
        num_classes: number of outputs.
        in_channels: channels of the input.
        input_size: height and width of the input.
        dropout: before the last layer while training.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        hidden: int,
        *,
        width: float = 1.0,
        num_classes: int = 1000,
        in_channels: int = 3,
        input_size: int = 224,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        check_options(width, num_classes, in_channels, input_size, dropout)
        stem, *strides = fitted_strides((2, *(row.stride for row in rows)), input_size, smallest=2)
        channels = scaled(16, width)
        layers: list[nn.Module] = [_conv(in_channels, channels, 3, stem, act=nn.Hardswish)]
        for row, stride in zip(rows, strides, strict=True):
            layers.append(InvertedResidual(channels, row, stride, width))
            channels = scaled(row.outputs, width)
        head = channels * 6
        layers.append(_conv(channels, head, act=nn.Hardswish))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        units = scaled(hidden, width)
        self.classifier = nn.Sequential(
            nn.Linear(head, units), nn.Hardswish(inplace=True), nn.Dropout(dropout), nn.Linear(units, num_classes)
        )
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.features(x))  # (N, C, 1, 1)
        logits: Tensor = self.classifier(x.flatten(1))
        return logits


def mobilenet_v3_large(**options: Unpack[ModelOptions]) -> MobileNetV3:
    """MobileNetV3-Large."""
    return MobileNetV3(LARGE, 1280, **options)


def mobilenet_v3_small(**options: Unpack[ModelOptions]) -> MobileNetV3:
    """MobileNetV3-Small."""
    return MobileNetV3(SMALL, 1024, **options)
