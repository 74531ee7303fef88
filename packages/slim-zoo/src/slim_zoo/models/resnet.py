"""ResNet (He et al., 2015, arXiv 1512.03385): the ImageNet family and the CIFAR family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

from torch import Tensor, nn

from slim_zoo.models.common import ModelOptions, check_options, conv_norm, fitted_strides, initialize, scaled


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution where the shape changes."""

    expansion = 1

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv_norm(inputs, channels, 3, stride)
        self.conv2 = conv_norm(channels, channels, 3, act=None)
        self.shortcut = _shortcut(inputs, channels, stride)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.conv2(self.conv1(x)) + self.shortcut(x))
        return out


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride), 1x1 to four times the channels, and a shortcut."""

    expansion = 4

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        outputs = channels * self.expansion
        self.conv1 = conv_norm(inputs, channels)
        self.conv2 = conv_norm(channels, channels, 3, stride)
        self.conv3 = conv_norm(channels, outputs, act=None)
        self.shortcut = _shortcut(inputs, outputs, stride)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.conv3(self.conv2(self.conv1(x))) + self.shortcut(x))
        return out


Block = type[BasicBlock] | type[Bottleneck]


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return conv_norm(inputs, outputs, 1, stride, act=None)


def _stages(
    block: Block, inputs: int, depths: Sequence[int], widths: Sequence[int], strides: Sequence[int]
) -> nn.Sequential:
    stages: list[nn.Module] = []
    for depth, channels, stride in zip(depths, widths, strides, strict=True):
        blocks: list[nn.Module] = []
        for number in range(depth):
            blocks.append(block(inputs, channels, stride if number == 0 else 1))
            inputs = channels * block.expansion
        stages.append(nn.Sequential(*blocks))
    return nn.Sequential(*stages)


class ResNet(nn.Module):
    """The ImageNet family: stem, four stages, mean over space, one linear layer.

    For small pictures the first strides become 1, in the order stem convolution, max pooling, stages, until the
    last feature map is at least 4 wide; a stem without stride is a 3x3 convolution without pooling. So
    ``input_size=32`` gives the shape that is usual on CIFAR.

    Args:
        block: the residual block.
        depths: blocks per stage.
        width: multiplier of all channel counts.
        num_classes: number of outputs.
        in_channels: channels of the input.
        input_size: height and width of the input.
        dropout: before the last layer while training.
    """

    def __init__(
        self,
        block: Block,
        depths: Sequence[int],
        *,
        width: float = 1.0,
        num_classes: int = 1000,
        in_channels: int = 3,
        input_size: int = 224,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_options(width, num_classes, in_channels, input_size, dropout)
        stem, pool, *strides = fitted_strides((2, 2, 1, 2, 2, 2), input_size, smallest=4)
        widths = [scaled(base, width) for base in (64, 128, 256, 512)]
        self.stem = nn.Sequential(conv_norm(in_channels, widths[0], 7 if stem > 1 else 3, stem))
        if pool > 1:
            self.stem.append(nn.MaxPool2d(3, pool, 1))
        self.stages = _stages(block, widths[0], depths, widths, strides)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(widths[-1] * block.expansion, num_classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.stages(self.stem(x)))  # (N, C, 1, 1)
        logits: Tensor = self.classifier(self.dropout(x.flatten(1)))
        return logits


class CifarResNet(nn.Module):
    """The CIFAR family of the paper: three stages of 16, 32 and 64 channels, 6n+2 layers deep.

    Where the shape changes, the shortcut is a 1x1 convolution (the paper's option B). The strides are those of
    the paper at every ``input_size`` of at least 8; below, the first ones become 1.

    Args:
        depth: number of weighted layers on the main path: 20, 32, 44, 56, …
        width: multiplier of all channel counts.
        num_classes: number of outputs.
        in_channels: channels of the input.
        input_size: height and width of the input.
        dropout: before the last layer while training.
    """

    def __init__(
        self,
        depth: int,
        *,
        width: float = 1.0,
        num_classes: int = 10,
        in_channels: int = 3,
        input_size: int = 32,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_options(width, num_classes, in_channels, input_size, dropout)
        widths = [scaled(base, width) for base in (16, 32, 64)]
        strides = fitted_strides((1, 2, 2), input_size, smallest=2)
        self.stem = conv_norm(in_channels, widths[0], 3)
        self.stages = _stages(BasicBlock, widths[0], [(depth - 2) // 6] * 3, widths, strides)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(widths[-1], num_classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.stages(self.stem(x)))  # (N, C, 1, 1)
        logits: Tensor = self.classifier(self.dropout(x.flatten(1)))
        return logits


def resnet18(**options: Unpack[ModelOptions]) -> ResNet:
    """ResNet-18 of the ImageNet family."""
    return ResNet(BasicBlock, (2, 2, 2, 2), **options)


def resnet34(**options: Unpack[ModelOptions]) -> ResNet:
    """ResNet-34 of the ImageNet family."""
    return ResNet(BasicBlock, (3, 4, 6, 3), **options)


def resnet50(**options: Unpack[ModelOptions]) -> ResNet:
    """ResNet-50 of the ImageNet family."""
    return ResNet(Bottleneck, (3, 4, 6, 3), **options)


def resnet20(**options: Unpack[ModelOptions]) -> CifarResNet:
    """ResNet-20 of the CIFAR family."""
    return CifarResNet(20, **options)


def resnet56(**options: Unpack[ModelOptions]) -> CifarResNet:
    """ResNet-56 of the CIFAR family."""
    return CifarResNet(56, **options)
