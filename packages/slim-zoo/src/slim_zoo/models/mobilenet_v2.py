"""MobileNetV2 (Sandler et al., 2018, arXiv 1801.04381): inverted residuals with linear bottlenecks."""

from __future__ import annotations

from typing import Unpack

from torch import Tensor, nn

from slim_zoo.models.common import ModelOptions, check_options, conv_norm, fitted_strides, initialize, scaled

#: expansion, channels, repeats and stride of each stage
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, 1x1 linear projection, and a residual where the shape stays."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.residual = stride == 1 and inputs == outputs
        layers: list[nn.Module] = [] if expansion == 1 else [conv_norm(inputs, hidden, act=nn.ReLU6)]
        layers.append(conv_norm(hidden, hidden, 3, stride, groups=hidden, act=nn.ReLU6))
        layers.append(conv_norm(hidden, outputs, act=None))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return x + out if self.residual else out


class MobileNetV2(nn.Module):
    """A stem, seventeen inverted residuals and a 1x1 head.

    For small pictures the first strides become 1 until the last feature map is at least 2 wide:
    ``input_size=32`` takes away the stem's stride.

    Args:
        width: multiplier of all channel counts; the head keeps its 1280 channels below 1, as in the paper.
        num_classes: number of outputs.
        in_channels: channels of the input.
        input_size: height and width of the input.
        dropout: before the last layer while training.
    """

    def __init__(
        self,
        *,
        width: float = 1.0,
        num_classes: int = 1000,
        in_channels: int = 3,
        input_size: int = 224,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        check_options(width, num_classes, in_channels, input_size, dropout)
        stem, *strides = fitted_strides((2, *(stage[3] for stage in STAGES)), input_size, smallest=2)
        channels, head = scaled(32, width), scaled(1280, max(1.0, width))
        layers: list[nn.Module] = [conv_norm(in_channels, channels, 3, stem, act=nn.ReLU6)]
        for (expansion, base, repeats, _), stride in zip(STAGES, strides, strict=True):
            outputs = scaled(base, width)
            for number in range(repeats):
                layers.append(InvertedResidual(channels, outputs, stride if number == 0 else 1, expansion))
                channels = outputs
        layers.append(conv_norm(channels, head, act=nn.ReLU6))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(head, num_classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.features(x))  # (N, C, 1, 1)
        logits: Tensor = self.classifier(self.dropout(x.flatten(1)))
        return logits


def mobilenet_v2(**options: Unpack[ModelOptions]) -> MobileNetV2:
    """MobileNetV2."""
    return MobileNetV2(**options)
