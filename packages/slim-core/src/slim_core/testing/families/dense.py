"""Models whose output is dense: segmentation, pyramids, detection, super-resolution; and a backbone inside one."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slim_core.testing.families.convolutional import CLASSES, BasicBlock, conv_bn


class DoubleConv(nn.Sequential):
    def __init__(self, inside: int, outside: int) -> None:
        super().__init__(conv_bn(inside, outside), conv_bn(outside, outside))


class UNet(nn.Module):
    """Ronneberger et al. 2015, arXiv:1505.04597: up by transposed convolutions or interpolation, joined by ``cat``."""

    def __init__(self, w: int, bilinear: bool = False) -> None:
        super().__init__()
        self.bilinear = bilinear
        self.inc, self.down1, self.down2 = DoubleConv(3, w), DoubleConv(w, 2 * w), DoubleConv(2 * w, 4 * w)
        if bilinear:
            self.conv1, self.conv2 = DoubleConv(6 * w, 2 * w), DoubleConv(3 * w, w)
        else:
            self.up1, self.conv1 = nn.ConvTranspose2d(4 * w, 2 * w, 2, 2), DoubleConv(4 * w, 2 * w)
            self.up2, self.conv2 = nn.ConvTranspose2d(2 * w, w, 2, 2), DoubleConv(2 * w, w)
        self.outc = nn.Conv2d(w, CLASSES, 1)

    @staticmethod
    def _joined(low: Tensor, high: Tensor) -> Tensor:
        dy, dx = high.size(2) - low.size(2), high.size(3) - low.size(3)
        low = F.pad(low, [dx // 2, dx - dx // 2, dy // 2, dy - dy // 2])
        return torch.cat([high, low], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.inc(x)
        x2 = self.down1(F.max_pool2d(x1, 2))
        x3 = self.down2(F.max_pool2d(x2, 2))
        if self.bilinear:
            up = nn.functional.interpolate(x3, scale_factor=2, mode="bilinear", align_corners=True)
            x = self.conv1(self._joined(up, x2))
            up = nn.functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
            x = self.conv2(self._joined(up, x1))
        else:
            x = self.conv1(self._joined(self.up1(x3), x2))
            x = self.conv2(self._joined(self.up2(x), x1))
        return self.outc(x)  # type: ignore[no-any-return]


def unet_bilinear(w: int) -> nn.Module:
    return UNet(w, bilinear=True)


class Backbone(nn.Module):
    """Features of three scales."""

    def __init__(self, w: int) -> None:
        super().__init__()
        self.stem = conv_bn(3, w)
        self.layer1, self.layer2 = BasicBlock(w, w, 2), BasicBlock(w, 2 * w, 2)
        self.layer3 = BasicBlock(2 * w, 4 * w, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        c1 = self.layer1(self.stem(x))
        c2 = self.layer2(c1)
        return c1, c2, self.layer3(c2)


class Fpn(nn.Module):
    """Lin et al. 2016, arXiv:1612.03144: lateral 1x1 convolutions, and sums on the way down."""

    def __init__(self, channels: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.inner = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        self.layer = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in channels)

    def forward(self, features: tuple[Tensor, ...]) -> list[Tensor]:
        last = self.inner[-1](features[-1])
        results = [self.layer[-1](last)]
        for n in range(len(features) - 2, -1, -1):
            lateral = self.inner[n](features[n])
            last = lateral + F.interpolate(last, size=lateral.shape[-2:], mode="nearest")
            results.insert(0, self.layer[n](last))
        return results


class FpnSegmenter(nn.Module):
    """A semantic FPN: all levels are brought to one size and summed."""

    def __init__(self, w: int) -> None:
        super().__init__()
        self.backbone, self.fpn = Backbone(w), Fpn((w, 2 * w, 4 * w), 2 * w)
        self.head = nn.Sequential(conv_bn(2 * w, w), nn.Conv2d(w, CLASSES, 1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        levels = self.fpn(self.backbone(x))
        size = levels[0].shape[-2:]
        total = levels[0]
        for level in levels[1:]:
            total = total + F.interpolate(level, size=size, mode="bilinear", align_corners=False)
        return {"out": self.head(total)}


class YoloHead(nn.Module):
    """One convolution per scale, reshaped to (N, anchors, H, W, outputs) (Redmon, Farhadi 2018, arXiv:1804.02767)."""

    def __init__(self, channels: tuple[int, ...], anchors: int = 3) -> None:
        super().__init__()
        self.na, self.no = anchors, CLASSES + 5
        self.m = nn.ModuleList(nn.Conv2d(c, self.na * self.no, 1) for c in channels)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        out = []
        for layer, x in zip(self.m, features, strict=True):
            x = layer(x)
            b, _, ny, nx = x.shape
            out.append(x.view(b, self.na, self.no, ny, nx).permute(0, 1, 3, 4, 2).contiguous())
        return out


class C2f(nn.Module):
    """A cross-stage block with a split and several concatenated stages, as YOLOv8's."""

    def __init__(self, inside: int, outside: int, repeats: int) -> None:
        super().__init__()
        self.c = outside // 2
        self.cv1 = conv_bn(inside, 2 * self.c, 1)
        self.cv2 = conv_bn((2 + repeats) * self.c, outside, 1)
        self.m = nn.ModuleList(nn.Sequential(conv_bn(self.c, self.c), conv_bn(self.c, self.c)) for _ in range(repeats))

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.cv1(x).split((self.c, self.c), 1))
        for m in self.m:
            y.append(y[-1] + m(y[-1]))
        return self.cv2(torch.cat(y, 1))  # type: ignore[no-any-return]


class Yolo(nn.Module):
    """A detector: a backbone with spatial pyramid pooling, a path up, and a head with two outputs."""

    def __init__(self, w: int) -> None:
        super().__init__()
        self.stem = conv_bn(3, w, 3, 2)
        self.stage1 = nn.Sequential(conv_bn(w, 2 * w, 3, 2), C2f(2 * w, 2 * w, 1))
        self.stage2 = nn.Sequential(conv_bn(2 * w, 4 * w, 3, 2), C2f(4 * w, 4 * w, 1))
        self.sppf_in, self.sppf_out = conv_bn(4 * w, 2 * w, 1), conv_bn(8 * w, 4 * w, 1)
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.fuse = C2f(6 * w, 2 * w, 1)
        self.head = YoloHead((2 * w, 4 * w))

    def forward(self, x: Tensor) -> list[Tensor]:
        p1 = self.stage1(self.stem(x))
        y = [self.sppf_in(self.stage2(p1))]
        for _ in range(3):
            y.append(F.max_pool2d(y[-1], 5, 1, 2))
        p2 = self.sppf_out(torch.cat(y, 1))
        return self.head([self.fuse(torch.cat([self.up(p2), p1], 1)), p2])  # type: ignore[no-any-return]


class Aspp(nn.Module):
    """Chen et al. 2017, arXiv:1706.05587: dilated branches and one over the whole picture."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            [conv_bn(inside, outside, 1)]
            + [
                nn.Sequential(
                    nn.Conv2d(inside, outside, 3, padding=rate, dilation=rate, bias=False),
                    nn.BatchNorm2d(outside), nn.ReLU(),
                )
                for rate in (1, 2)
            ]
        )  # fmt: skip
        self.pooling = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(inside, outside, 1), nn.ReLU())
        self.project = nn.Sequential(conv_bn(4 * outside, outside, 1), nn.Dropout(0.5))

    def forward(self, x: Tensor) -> Tensor:
        found = [conv(x) for conv in self.convs]
        pooled = F.interpolate(self.pooling(x), size=x.shape[-2:], mode="bilinear", align_corners=False)
        return self.project(torch.cat([*found, pooled], dim=1))  # type: ignore[no-any-return]


class DeepLab(nn.Module):
    """Chen et al. 2018, arXiv:1802.02611: with low-level features joined in the decoder, and a second output."""

    def __init__(self, w: int) -> None:
        super().__init__()
        self.backbone, self.aspp = Backbone(w), Aspp(4 * w, 2 * w)
        self.low = conv_bn(w, w // 2, 1)
        self.classifier = nn.Sequential(conv_bn(2 * w + w // 2, 2 * w), nn.Conv2d(2 * w, CLASSES, 1))
        self.aux_classifier = nn.Sequential(conv_bn(2 * w, w), nn.Conv2d(w, CLASSES, 1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        size = x.shape[-2:]
        low, middle, high = self.backbone(x)
        y = F.interpolate(self.aspp(high), size=low.shape[-2:], mode="bilinear", align_corners=False)
        y = self.classifier(torch.cat([self.low(low), y], 1))
        aux = self.aux_classifier(middle)
        return {
            "out": F.interpolate(y, size=size, mode="bilinear", align_corners=False),
            "aux": F.interpolate(aux, size=size, mode="bilinear", align_corners=False),
        }


class SuperResolution(nn.Module):
    """Shi et al. 2016, arXiv:1609.05158: pixel shuffle up, with a global residual connection."""

    def __init__(self, w: int) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, w, 3, padding=1)
        self.body = nn.Sequential(nn.Conv2d(w, w, 3, padding=1), nn.PReLU(w), nn.Conv2d(w, w, 3, padding=1))
        self.up = nn.Sequential(nn.Conv2d(w, 4 * w, 3, padding=1), nn.PixelShuffle(2), nn.PReLU())
        self.tail = nn.Sequential(nn.Conv2d(w, 12, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        return self.tail(self.up(x + self.body(x)))  # type: ignore[no-any-return]
