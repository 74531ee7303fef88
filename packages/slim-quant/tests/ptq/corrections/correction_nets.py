"""Networks and helpers for the tests of corrections."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from slim_quant.calibration import CalibrationData
from slim_quant.preparation import Calibrated, Prepared, calibrate, prepare
from slim_quant.ptq.corrections import CorrectionContext, make_correction
from slim_quant.schemes import Scheme

FOUR = Scheme(4, True, "per_channel")


class Separable(nn.Module):
    """A stem and depthwise separable blocks with batch norms and ReLU, as MobileNetV1 has them."""

    def __init__(self, channels: int = 8, blocks: int = 2) -> None:
        super().__init__()
        layers: list[nn.Module] = [_norm(nn.Conv2d(3, channels, 3, padding=1, bias=False), channels)]
        for _ in range(blocks):
            depthwise = _norm(nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False), channels)
            layers.append(nn.Sequential(depthwise, _norm(nn.Conv2d(channels, channels, 1, bias=False), channels)))
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x).mean((2, 3)))
        return logits


class Encoder(nn.Module):
    """Two pre-norm encoder layers; their residual streams have channels of very large values."""

    def __init__(self, width: int = 16, layers: int = 2) -> None:
        super().__init__()
        self.embed = nn.Linear(6, width)
        self.layers = nn.ModuleList(EncoderLayer(width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.head(self.norm(x).mean(1))
        return logits


class EncoderLayer(nn.Module):
    def __init__(self, width: int, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        split = self.qkv(self.norm1(x)).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(split[0], split[1], split[2])
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


def _norm(layer: nn.Conv2d, channels: int) -> nn.Sequential:
    return nn.Sequential(layer, nn.BatchNorm2d(channels), nn.ReLU(inplace=True))


def uneven(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give norms and layers ranges that differ from channel to channel by two orders of magnitude."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
                module.weight.copy_(10 ** (2 * torch.rand(module.weight.shape, generator=generator) - 1))
                module.bias.copy_(torch.randn(module.bias.shape, generator=generator))
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=generator) * 0.1)  # type: ignore[union-attr, operator]
                module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.5)  # type: ignore[union-attr, operator]
    return model.eval()


def images(count: int = 64, size: int = 8, seed: int = 1, channels: int = 3) -> Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(seed))


def calibrated(model: nn.Module, x: Tensor, weight: Scheme = FOUR, **options: Any) -> Calibrated:
    """Return ``model`` calibrated on ``x``, for the target whose integer layers may have float results."""
    prepared = prepare(model, (x[:2],), target=options.pop("target", "generic"), weight=weight, **options)
    return calibrate(prepared, CalibrationData([x], len(x)), observer="min_max", samples=len(x))


def as_read(found: Calibrated, x: Tensor) -> Tensor:
    """Return the model's input as its first layer reads it in the quantized network."""
    name = found.prepared.placement.activations[0].scale
    scheme = found.prepared.activations[name]
    return torch.fake_quantize_per_tensor_affine(x, *found.activations[name], scheme.qmin, scheme.qmax)


def correct(name: str, found: Calibrated, seed: int = 0, **options: Any) -> CorrectionContext:
    """Run one correction on a calibrated model."""
    context = CorrectionContext(seed=seed)
    make_correction({"name": name, **options})(found.prepared, found, found.data, context)
    return context


def correct_float(name: str, prepared: Prepared, x: Tensor, **options: Any) -> CorrectionContext:
    """Run one correction of stage "float"."""
    context = CorrectionContext()
    make_correction({"name": name, **options})(prepared, None, CalibrationData([x], len(x)), context)
    return context


def close(one: Tensor, other: Tensor, tolerance: float = 1e-5) -> bool:
    """Tell whether two outputs are equal up to ``tolerance`` of the largest value."""
    return float((one - other).abs().max()) <= tolerance * float(other.abs().max())
