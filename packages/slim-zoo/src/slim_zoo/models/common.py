"""What the model families share: the options, the rounding of widths, strides for small pictures, initialization."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from torch import nn

from slim_core.errors import SlimError


class ModelOptions(TypedDict, total=False):
    """The keyword arguments that every model of the zoo takes.

    Attributes:
        width: multiplier of every channel count; results are rounded to multiples of 8.
        num_classes: number of outputs.
        in_channels: channels of the input picture.
        input_size: height and width of the pictures that the model is meant for. It decides the strides (see the
            model's class); the model still runs on other sizes.
        dropout: share of features dropped before the last layer while training.
    """

    width: float
    num_classes: int
    in_channels: int
    input_size: int
    dropout: float


def check_options(width: float, num_classes: int, in_channels: int, input_size: int, dropout: float) -> None:
    """Raise a :class:`SlimError` that names the option that makes no sense."""
    if not width > 0:
        raise SlimError(f"width must be positive, not {width!r}", hint="1 is the published width, 0.5 half of it")
    if not 0 <= dropout < 1:
        raise SlimError(f"dropout must be in [0, 1), not {dropout!r}")
    for name, value in (("num_classes", num_classes), ("in_channels", in_channels), ("input_size", input_size)):
        if value < 1:
            raise SlimError(f"{name} must be at least 1, not {value!r}", hint=f"change {name}")


def scaled(channels: float, width: float = 1.0, divisor: int = 8) -> int:
    """Return ``channels * width`` rounded to a multiple of ``divisor``, at most 10 % below the exact value.

    The rounding of the MobileNet papers' published code (Sandler et al., 2018, arXiv 1801.04381).
    """
    exact = channels * width
    rounded = max(divisor, int(exact + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * exact else rounded


def fitted_strides(strides: Sequence[int], input_size: int, smallest: int) -> list[int]:
    """Set the first strides to 1 until the last feature map is at least ``smallest`` wide.

    Args:
        strides: strides of the network, from the picture to the last feature map.
        input_size: height and width of the picture.
        smallest: wanted size of the last feature map.
    """
    fitted = list(strides)

    def last_size() -> int:
        size = input_size
        for stride in fitted:
            size = -(-size // stride)  # every strided layer is padded so that it rounds up
        return size

    for position, stride in enumerate(strides):
        if last_size() >= smallest:
            break
        if stride > 1:
            fitted[position] = 1
    return fitted


def initialize(model: nn.Module) -> None:
    """Kaiming-normal convolutions (He et al., 2015, arXiv 1502.01852), unit norms, small linear weights."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)


def conv_norm(
    inputs: int,
    outputs: int,
    kernel: int = 1,
    stride: int = 1,
    *,
    groups: int = 1,
    act: type[nn.Module] | None = nn.ReLU,
    norm_eps: float = 1e-5,
    norm_momentum: float = 0.1,
) -> nn.Sequential:
    """Return convolution, batch norm and, unless ``act`` is ``None``, an activation."""
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs, eps=norm_eps, momentum=norm_momentum),
    ]
    if act is not None:
        layers.append(act(inplace=True))
    return nn.Sequential(*layers)
