"""VGG (Simonyan and Zisserman, 2014, arXiv 1409.1556), plain and with batch norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

from torch import Tensor, nn

from slim_zoo.models.common import ModelOptions, check_options, initialize, scaled

#: convolutions per stage, by depth
STAGES: dict[int, tuple[int, ...]] = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
CHANNELS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """Five stages of 3x3 convolutions, each ended by max pooling.

    For pictures of at least 65 pixels the classifier is the paper's: pooling to 7x7 and three linear layers.
    For smaller ones it is what is usual on CIFAR: the mean over space and one linear layer; stages stop
    pooling once the feature map is 1 wide.

    Args:
        stages: number of convolutions in each stage.
        batch_norm: put batch norm behind each convolution.
        width: multiplier of all channel counts and of the classifier's 4096 units.
        num_classes: number of outputs.
        in_channels: channels of the input.
        input_size: height and width of the input.
        dropout: of the classifier's hidden units while training.
    """

    def __init__(
        self,
        stages: Sequence[int],
        *,
        batch_norm: bool = True,
        width: float = 1.0,
        num_classes: int = 1000,
        in_channels: int = 3,
        input_size: int = 224,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        check_options(width, num_classes, in_channels, input_size, dropout)
        layers: list[nn.Module] = []
        channels, size = in_channels, input_size
        for convolutions, base in zip(stages, CHANNELS, strict=True):
            for _ in range(convolutions):
                outputs = scaled(base, width)
                layers.append(nn.Conv2d(channels, outputs, 3, padding=1))
                if batch_norm:
                    layers.append(nn.BatchNorm2d(outputs))
                layers.append(nn.ReLU(inplace=True))
                channels = outputs
            if size > 1:
                layers.append(nn.MaxPool2d(2))
                size //= 2
        self.features = nn.Sequential(*layers)
        if input_size > 64:
            hidden = scaled(4096, width)
            self.pool = nn.AdaptiveAvgPool2d(7)
            self.classifier = nn.Sequential(
                nn.Linear(channels * 49, hidden), nn.ReLU(inplace=True), nn.Dropout(dropout),
                nn.Linear(hidden, hidden), nn.ReLU(inplace=True), nn.Dropout(dropout),
                nn.Linear(hidden, num_classes),
            )  # fmt: skip
        else:
            self.pool = nn.AdaptiveAvgPool2d(1)
            self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(channels, num_classes))
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.features(x))  # (N, C, 7, 7) or (N, C, 1, 1)
        logits: Tensor = self.classifier(x.flatten(1))
        return logits


def vgg11(**options: Unpack[ModelOptions]) -> VGG:
    """VGG-11 without batch norm."""
    return VGG(STAGES[11], batch_norm=False, **options)


def vgg11_bn(**options: Unpack[ModelOptions]) -> VGG:
    """VGG-11 with batch norm."""
    return VGG(STAGES[11], **options)


def vgg13(**options: Unpack[ModelOptions]) -> VGG:
    """VGG-13 without batch norm."""
    return VGG(STAGES[13], batch_norm=False, **options)


def vgg13_bn(**options: Unpack[ModelOptions]) -> VGG:
    """VGG-13 with batch norm."""
    return VGG(STAGES[13], **options)


def vgg16(**options: Unpack[ModelOptions]) -> VGG:
    """VGG-16 without batch norm."""
    return VGG(STAGES[16], batch_norm=False, **options)


def vgg16_bn(**options: Unpack[ModelOptions]) -> VGG:
    """VGG-16 with batch norm."""
    return VGG(STAGES[16], **options)


def vgg19(**options: Unpack[ModelOptions]) -> VGG:
    """VGG-19 without batch norm."""
    return VGG(STAGES[19], batch_norm=False, **options)


def vgg19_bn(**options: Unpack[ModelOptions]) -> VGG:
    """VGG-19 with batch norm."""
    return VGG(STAGES[19], **options)
