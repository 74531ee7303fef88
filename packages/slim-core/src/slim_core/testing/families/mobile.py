"""Classifiers for small devices, and the odd layers that modern ones add: shuffles, gates, attention over channels."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slim_core.testing.families.convolutional import CLASSES, Classifier, conv_bn


class Separable(nn.Sequential):
    """Depthwise, then pointwise: Howard et al. 2017, arXiv:1704.04861."""

    def __init__(self, inside: int, outside: int, stride: int = 1) -> None:
        super().__init__(conv_bn(inside, inside, 3, stride, inside), conv_bn(inside, outside, 1))


def mobilenet_v1(w: int) -> nn.Module:
    return Classifier(
        nn.Sequential(conv_bn(3, w, 3, 2), Separable(w, 2 * w), Separable(2 * w, 4 * w, 2), Separable(4 * w, 4 * w)),
        4 * w,
    )


class Inverted(nn.Module):
    """Sandler et al. 2018, arXiv:1801.04381; with a gate and another activation, MobileNetV3's and EfficientNet's."""

    def __init__(
        self, inside: int, outside: int, expansion: int, stride: int = 1, *, kernel: int = 3, squeezed: int = 0,
        act: type[nn.Module] = nn.ReLU6, gate: type[nn.Module] = nn.Sigmoid,
    ) -> None:  # fmt: skip
        super().__init__()
        inner = inside * expansion
        layers: list[nn.Module] = []
        if expansion > 1:
            layers += [nn.Conv2d(inside, inner, 1, bias=False), nn.BatchNorm2d(inner), act()]
        layers += [
            nn.Conv2d(inner, inner, kernel, stride, kernel // 2, groups=inner, bias=False),
            nn.BatchNorm2d(inner),
            act(),
        ]
        if squeezed:
            layers.append(Excite(inner, squeezed, gate()))
        layers += [nn.Conv2d(inner, outside, 1, bias=False), nn.BatchNorm2d(outside)]
        self.block = nn.Sequential(*layers)
        self.use_res_connect = stride == 1 and inside == outside

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x) if self.use_res_connect else self.block(x)  # type: ignore[no-any-return]


class Excite(nn.Module):
    """A gate by linear layers on pooled channels."""

    def __init__(self, channels: int, squeezed: int, gate: nn.Module) -> None:
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Sequential(nn.Linear(channels, squeezed), nn.ReLU(True), nn.Linear(squeezed, channels), gate)

    def forward(self, x: Tensor) -> Tensor:
        b, c, _, _ = x.size()
        y = self.avg_pool(x).view(b, c)
        y = self.fc(y).view(b, c, 1, 1)
        return x * y.expand_as(x)  # type: ignore[no-any-return]


def mobilenet_v2(w: int) -> nn.Module:
    return Classifier(
        nn.Sequential(
            conv_bn(3, w, 3, 2), Inverted(w, w, 1), Inverted(w, 2 * w, 4, 2), Inverted(2 * w, 2 * w, 4),
            conv_bn(2 * w, 4 * w, 1),
        ),
        4 * w,
    )  # fmt: skip


class MobileNetV3(nn.Module):
    """Howard et al. 2019, arXiv:1905.02244: the head has a hidden layer after pooling."""

    def __init__(self, w: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, w, 3, 2, 1, bias=False), nn.BatchNorm2d(w), nn.Hardswish(inplace=True),
            Inverted(w, w, 1, squeezed=w // 2, act=nn.ReLU, gate=nn.Hardsigmoid),
            Inverted(w, 2 * w, 3, 2, kernel=5, squeezed=w, act=nn.Hardswish, gate=nn.Hardsigmoid),
            Inverted(2 * w, 2 * w, 3, kernel=5, squeezed=w, act=nn.Hardswish, gate=nn.Hardsigmoid),
            nn.Conv2d(2 * w, 4 * w, 1, bias=False), nn.BatchNorm2d(4 * w), nn.Hardswish(inplace=True),
        )  # fmt: skip
        self.classifier = nn.Sequential(
            nn.Linear(4 * w, 8 * w), nn.Hardswish(True), nn.Dropout(0.2), nn.Linear(8 * w, CLASSES)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean([2, 3]))  # type: ignore[no-any-return]


def efficientnet(w: int) -> nn.Module:
    """Tan and Le 2019, arXiv:1905.11946."""
    return Classifier(
        nn.Sequential(
            nn.Conv2d(3, w, 3, 2, 1, bias=False), nn.BatchNorm2d(w), nn.SiLU(inplace=True),
            Inverted(w, w, 1, squeezed=w // 4, act=nn.SiLU),
            Inverted(w, 2 * w, 6, 2, squeezed=w // 4, act=nn.SiLU),
            Inverted(2 * w, 2 * w, 6, kernel=5, squeezed=w // 2, act=nn.SiLU),
            nn.Conv2d(2 * w, 6 * w, 1, bias=False), nn.BatchNorm2d(6 * w), nn.SiLU(inplace=True),
        ),
        6 * w,
    )  # fmt: skip


# --- ShuffleNetV2 -----------------------------------------------------------------------------------------------


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    batchsize, num_channels, height, width = x.size()
    x = x.view(batchsize, groups, num_channels // groups, height, width)
    x = torch.transpose(x, 1, 2).contiguous()
    return x.view(batchsize, num_channels, height, width)


class ShuffleUnit(nn.Module):
    """Ma et al. 2018, arXiv:1807.11164: half of the channels goes around, then they are shuffled."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        half = outside // 2
        if stride > 1:
            self.branch1 = nn.Sequential(
                nn.Conv2d(inside, inside, 3, stride, 1, groups=inside, bias=False), nn.BatchNorm2d(inside),
                conv_bn(inside, half, 1),
            )  # fmt: skip
        self.branch2 = nn.Sequential(
            conv_bn(inside if stride > 1 else half, half, 1),
            nn.Conv2d(half, half, 3, stride, 1, groups=half, bias=False), nn.BatchNorm2d(half),
            conv_bn(half, half, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            x1, x2 = x.chunk(2, dim=1)
            out = torch.cat((x1, self.branch2(x2)), dim=1)
        else:
            out = torch.cat((self.branch1(x), self.branch2(x)), dim=1)
        return channel_shuffle(out, 2)


def shufflenet_v2(w: int) -> nn.Module:
    return Classifier(
        nn.Sequential(
            conv_bn(3, w), ShuffleUnit(w, 2 * w, 2), ShuffleUnit(2 * w, 2 * w, 1), ShuffleUnit(2 * w, 2 * w, 1),
            conv_bn(2 * w, 4 * w, 1),
        ),
        4 * w,
    )  # fmt: skip


# --- ConvNeXt and its layers ------------------------------------------------------------------------------------


class ChannelsFirstNorm(nn.Module):
    """A layer norm over the channels of (N, C, H, W), written out."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        u = x.mean(1, keepdim=True)
        s = (x - u).pow(2).mean(1, keepdim=True)
        x = (x - u) / torch.sqrt(s + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class Grn(nn.Module):
    """Global response normalization (Woo et al. 2023, arXiv:2301.00808)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, channels))
        self.beta = nn.Parameter(torch.zeros(1, 1, 1, channels))

    def forward(self, x: Tensor) -> Tensor:  # (N, H, W, C)
        gx = torch.norm(x, p=2, dim=(1, 2), keepdim=True)
        nx = gx / (gx.mean(dim=-1, keepdim=True) + 1e-6)
        return self.gamma * (x * nx) + self.beta + x  # type: ignore[no-any-return]


class ConvNeXtBlock(nn.Module):
    """Liu et al. 2022, arXiv:2201.03545: permute, layer norm, linear layers, layer scale."""

    def __init__(self, channels: int, grn: bool) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.pwconv1 = nn.Linear(channels, 4 * channels)
        self.act = nn.GELU()
        self.grn = Grn(4 * channels) if grn else nn.Identity()
        self.pwconv2 = nn.Linear(4 * channels, channels)
        self.gamma = None if grn else nn.Parameter(1e-6 * torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        x = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        x = self.pwconv2(self.grn(self.act(self.pwconv1(x))))
        if self.gamma is not None:
            x = self.gamma * x
        return shortcut + x.permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    def __init__(self, w: int, grn: bool = False) -> None:
        super().__init__()
        self.downsample_layers = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(3, w, 4, 4), ChannelsFirstNorm(w)),
                nn.Sequential(ChannelsFirstNorm(w), nn.Conv2d(w, 2 * w, 2, 2)),
            ]
        )
        self.stages = nn.ModuleList(
            [nn.Sequential(ConvNeXtBlock(w, grn), ConvNeXtBlock(w, grn)), nn.Sequential(ConvNeXtBlock(2 * w, grn))]
        )
        self.norm = nn.LayerNorm(2 * w, eps=1e-6)
        self.head = nn.Linear(2 * w, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for i in range(2):
            x = self.stages[i](self.downsample_layers[i](x))
        return self.head(self.norm(x.mean([-2, -1])))  # type: ignore[no-any-return]


def convnext_v2(w: int) -> nn.Module:
    return ConvNeXt(w, grn=True)


# --- attention over channels ------------------------------------------------------------------------------------


class Eca(nn.Module):
    """Wang et al. 2019, arXiv:1910.03151: a convolution along the channels."""

    def __init__(self, kernel: int = 3) -> None:
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.conv = nn.Conv1d(1, 1, kernel_size=kernel, padding=kernel // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.avg_pool(x)
        y = self.conv(y.squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1)
        return x * torch.sigmoid(y).expand_as(x)


class Cbam(nn.Module):
    """Woo et al. 2018, arXiv:1807.06521: a gate per channel, then one per pixel from mean and largest channel."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Conv2d(channels, squeezed, 1, bias=False), nn.ReLU(), nn.Conv2d(squeezed, channels, 1, bias=False)
        )
        self.spatial = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.mlp(F.adaptive_avg_pool2d(x, 1)) + self.mlp(F.adaptive_max_pool2d(x, 1))
        x = x * torch.sigmoid(gate)
        both = torch.cat([torch.mean(x, dim=1, keepdim=True), torch.max(x, dim=1, keepdim=True)[0]], dim=1)
        return x * torch.sigmoid(self.spatial(both))


class AttentiveBlock(nn.Module):
    """A residual block with attention over its channels."""

    def __init__(self, channels: int, attention: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(conv_bn(channels, channels), nn.Conv2d(channels, channels, 3, padding=1, bias=False))
        self.norm, self.attention = nn.BatchNorm2d(channels), attention

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.attention(self.norm(self.body(x))))


def cbam_resnet(w: int) -> nn.Module:
    return Classifier(
        nn.Sequential(
            conv_bn(3, w), AttentiveBlock(w, Cbam(w, w // 2)), conv_bn(w, 2 * w, 3, 2),
            AttentiveBlock(2 * w, Cbam(2 * w, w // 2)),
        ),
        2 * w,
    )  # fmt: skip


def eca_resnet(w: int) -> nn.Module:
    return Classifier(
        nn.Sequential(conv_bn(3, w), AttentiveBlock(w, Eca()), conv_bn(w, 2 * w, 3, 2), AttentiveBlock(2 * w, Eca())),
        2 * w,
    )
