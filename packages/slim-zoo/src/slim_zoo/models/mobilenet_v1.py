"""MobileNetV1 (Howard et al., 2017, arXiv 1704.04861): depthwise separable convolutions."""

from __future__ import annotations

from typing import Unpack

from torch import Tensor, nn

from slim_zoo.models.common import ModelOptions, check_options, conv_norm, fitted_strides, initialize, scaled

#: channels and stride of each depthwise separable block
BLOCKS = (
    (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2),
    (512, 1), (512, 1), (512, 1), (512, 1), (512, 1), (1024, 2), (1024, 1),
)  # fmt: skip


class MobileNetV1(nn.Module):
    """A stem and thirteen depthwise separable blocks.

    For small pictures the first strides become 1 until the last feature map is at least 2 wide:
    ``input_size=32`` takes away the stem's stride.

    Args:
        width: multiplier of all channel counts.
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
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_options(width, num_classes, in_channels, input_size, dropout)
        stem, *strides = fitted_strides((2, *(stride for _, stride in BLOCKS)), input_size, smallest=2)
        channels = scaled(32, width)
        layers: list[nn.Module] = [conv_norm(in_channels, channels, 3, stem)]
        for (base, _), stride in zip(BLOCKS, strides, strict=True):
            outputs = scaled(base, width)
            depthwise = conv_norm(channels, channels, 3, stride, groups=channels)
            layers.append(nn.Sequential(depthwise, conv_norm(channels, outputs)))
            channels = outputs
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(channels, num_classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.features(x))  # (N, C, 1, 1)
        logits: Tensor = self.classifier(self.dropout(x.flatten(1)))
        return logits


def mobilenet_v1(**options: Unpack[ModelOptions]) -> MobileNetV1:
    """MobileNetV1."""
    return MobileNetV1(**options)
