"""Random small networks, built from integers alone: what ``strategies.py`` draws and what a seed reproduces.

Here: the specification as data, and :func:`build`, which turns a :class:`NetworkSpec` into a module with example
inputs. Not here: the blocks themselves (``blocks.py``), hypothesis.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slim_core.testing.blocks import (
    Attention,
    Cells,
    ChannelsLast,
    Concat,
    Features,
    Gate,
    Mlp,
    Numbers,
    OverPixels,
    Parametrized,
    Recurrent,
    Residual,
    Shuffle,
    Skip,
    SplitJoin,
    SqueezeExcite,
    TorchAttention,
    Twice,
    Window,
    conv_bn,
)  # fmt: skip

Family = Literal["image", "tokens", "features"]

#: Width of images, in pixels, and the length of token sequences.
SIDE = 8
LENGTH = 5
VOCABULARY = 11


@dataclass(frozen=True)
class BlockSpec:
    """A block's kind and the integers that decide its details; every integer is valid for every block."""

    kind: str
    numbers: tuple[int, ...] = ()


@dataclass(frozen=True)
class NetworkSpec:
    """A network as data.

    Args:
        family: ``"image"`` (N, 3, 8, 8), ``"tokens"`` (N, 5) of integers, ``"features"`` (N, 6).
        width: channels after the stem, in steps of 4.
        blocks: what comes between stem and head.
        head: which head, see :data:`HEADS`.
        seed: seed of every weight, running statistic and input.
    """

    family: Family
    width: int
    blocks: tuple[BlockSpec, ...]
    head: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Network:
    """A built network. Its ``repr`` is what hypothesis prints for a failing example, and rebuilds it.

    Args:
        module: the network, in eval mode, with randomised running statistics.
        example_inputs: positional inputs.
        description: the network in one line.
        spec: what it was built from: ``build(spec)`` gives the same network, weights included.
    """

    module: nn.Module
    example_inputs: tuple[Tensor, ...]
    description: str
    spec: NetworkSpec

    def __repr__(self) -> str:
        return f"build({self.spec!r})  # {self.description}"


class _Shape:
    """Channels and side length on the way through the network."""

    def __init__(self, channels: int, side: int) -> None:
        self.channels = channels
        self.side = side


def _with_width(make: Callable[[int, Numbers], nn.Module]) -> Callable[[_Shape, Numbers], nn.Module]:
    def block(shape: _Shape, n: Numbers) -> nn.Module:
        module = make(shape.channels, n)
        shape.channels = module.out_channels  # type: ignore[assignment]
        return module

    return block


def _conv(shape: _Shape, n: Numbers) -> nn.Module:
    width, stride = n.width(), n.pick((1, 2)) if shape.side >= 4 else 1
    module = conv_bn(shape.channels, width, n, stride=stride)
    shape.channels, shape.side = width, -(-shape.side // stride)
    return module


def _grouped(shape: _Shape, n: Numbers) -> nn.Module:
    width = n.width()
    module = conv_bn(shape.channels, width, n, groups=n.divisor(shape.channels, width))
    shape.channels = width
    return module


def _depthwise(shape: _Shape, n: Numbers) -> nn.Module:
    multiplier = n.pick((1, 2)) if shape.channels <= 8 else 1
    module = conv_bn(shape.channels, shape.channels * multiplier, n, groups=shape.channels)
    shape.channels *= multiplier
    return module


def _dilated(shape: _Shape, n: Numbers) -> nn.Module:
    width = n.width()
    module = nn.Conv2d(shape.channels, width, 3, padding=2, dilation=2, padding_mode=n.pick(("zeros", "circular")))
    shape.channels = width
    return nn.Sequential(module, n.activation())


def _transposed(shape: _Shape, n: Numbers) -> nn.Module:
    width, stride = n.width(), 2 if shape.side <= 4 else 1
    groups = n.pick((1, 2))
    module = nn.ConvTranspose2d(shape.channels, width, 3, stride, padding=1, output_padding=stride - 1, groups=groups)
    shape.channels, shape.side = width, shape.side * stride
    return nn.Sequential(module, nn.BatchNorm2d(width), n.activation())


def _norm(shape: _Shape, n: Numbers) -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(shape.channels), n.activation())


def _pool(shape: _Shape, n: Numbers) -> nn.Module:
    if shape.side < 4:
        return nn.AvgPool2d(3, 1, 1)
    shape.side //= 2
    return n.pick((nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(shape.side)))  # type: ignore[no-any-return]


def _upsample(shape: _Shape, n: Numbers) -> nn.Module:
    if shape.side > 4:
        return nn.Dropout2d(0.5)
    shape.side *= 2
    how = n.pick(("nearest", "bilinear", "shuffle"))
    if how != "shuffle":
        return nn.Upsample(scale_factor=2, mode=how)
    shape.channels //= 4
    module = nn.Sequential(nn.PixelShuffle(2), nn.Conv2d(shape.channels, 8, 1))
    shape.channels = 8
    return module


def _skip(shape: _Shape, n: Numbers) -> nn.Module:
    return _with_width(Skip)(shape, n) if shape.side % 2 == 0 else _conv(shape, n)


def _window(shape: _Shape, n: Numbers) -> nn.Module:
    return _with_width(Window)(shape, n) if shape.side % 2 == 0 else _conv(shape, n)


def _over_pixels(make: Callable[[int, Numbers], nn.Module]) -> Callable[[_Shape, Numbers], nn.Module]:
    return _with_width(lambda c, n: OverPixels(make(c, n)))


Block = Callable[[_Shape, Numbers], nn.Module]

#: Blocks by family and kind. The first of each family is the simplest.
BLOCKS: dict[Family, dict[str, Block]] = {
    "image": {
        "conv": _conv, "norm": _norm, "pool": _pool, "residual": _with_width(Residual), "depthwise": _depthwise,
        "grouped": _grouped, "concat": _with_width(Concat), "split": _with_width(SplitJoin),
        "squeeze_excite": _with_width(SqueezeExcite), "gate": _with_width(Gate), "shuffle": _with_width(Shuffle),
        "transposed": _transposed, "dilated": _dilated, "upsample": _upsample, "skip": _skip,
        "channels_last": _with_width(ChannelsLast), "twice": _with_width(Twice),
        "parametrized": _with_width(Parametrized), "window": _window,
        "attention": _over_pixels(Attention), "torch_attention": _over_pixels(TorchAttention),
    },
    "tokens": {
        "mlp": _with_width(Mlp), "attention": _with_width(Attention), "torch_attention": _with_width(TorchAttention),
        "recurrent": _with_width(Recurrent), "cells": _with_width(Cells),
    },
    "features": {"mlp": _with_width(Mlp), "features": _with_width(Features)},
}  # fmt: skip

#: Heads by family.
HEADS: dict[Family, tuple[str, ...]] = {
    "image": ("pool_linear", "flatten_linear", "conv", "mlp", "two", "gap_conv"),
    "tokens": ("mean_linear", "tied", "per_token"),
    "features": ("linear", "two"),
}


class _Network(nn.Module):
    """Stem, blocks and head."""

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        self.head: nn.Module
        self.head_kind = HEADS[spec.family][spec.head % len(HEADS[spec.family])]
        shape = _Shape(spec.width, SIDE)
        self.stem: nn.Module
        if spec.family == "image":
            self.stem = nn.Sequential(nn.Conv2d(3, spec.width, 3, padding=1), nn.ReLU())
        elif spec.family == "tokens":
            self.stem = nn.Embedding(VOCABULARY, spec.width)
        else:
            self.stem = nn.Linear(6, spec.width)
        self.blocks = nn.ModuleList()
        for block in spec.blocks:
            self.blocks.append(BLOCKS[spec.family][block.kind](shape, Numbers(block.numbers)))
        self._make_head(shape, spec)

    def _make_head(self, shape: _Shape, spec: NetworkSpec) -> None:
        channels = shape.channels
        if self.head_kind == "tied":
            self.project = nn.Linear(channels, spec.width)
            tied = nn.Linear(spec.width, VOCABULARY, bias=False)
            tied.weight = self.stem.weight  # type: ignore[assignment]
            self.head = tied
        elif self.head_kind == "mlp":
            self.head = nn.Sequential(nn.Linear(channels, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 5))
        elif self.head_kind == "flatten_linear":
            self.head = nn.Linear(channels * shape.side**2, 5)
        elif self.head_kind in ("conv", "gap_conv"):
            self.head = nn.Conv2d(channels, 5, 1)
        else:
            self.head = nn.Linear(channels, 5)
        if self.head_kind == "two":
            self.auxiliary = nn.Linear(channels, 2)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        match self.head_kind:
            case "flatten_linear":
                return self.head(x.flatten(1))
            case "conv":
                return {"maps": self.head(x)}
            case "gap_conv":
                return self.head(F.adaptive_avg_pool2d(x, 1)).flatten(1)
            case "tied":
                return self.head(self.project(x))
            case "per_token" | "linear":
                return self.head(x)
            case "mean_linear":
                return self.head(x.mean(1))
        pooled = x if x.dim() == 2 else torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)
        if self.head_kind == "two":
            return self.head(pooled), self.auxiliary(pooled)
        return self.head(pooled)


def build(spec: NetworkSpec) -> Network:
    """Build the network that ``spec`` describes.

    The same spec gives the same bits; the global generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        module = _Network(spec)
        _randomise(module)
        if spec.family == "image":
            inputs = torch.randn(2, 3, SIDE, SIDE)
        elif spec.family == "tokens":
            inputs = torch.randint(0, VOCABULARY, (2, LENGTH))
        else:
            inputs = torch.randn(3, 6)
    way = " | ".join(f"{block.kind}{list(block.numbers)}" for block in spec.blocks)
    description = f"{spec.family} | stem {spec.width} | {way + ' | ' if way else ''}{module.head_kind}"
    return Network(module.eval(), (inputs,), description, spec)


def _randomise(module: nn.Module) -> None:
    """Give norms, biases and attention projections values that matter: a fresh one is the identity, or zero."""
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
                part.running_mean.normal_(0, 0.5)  # type: ignore[union-attr]
                part.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
                if part.affine:
                    part.weight.uniform_(0.5, 1.5)
                    part.bias.normal_(0, 0.5)
            elif isinstance(part, nn.MultiheadAttention) and part.in_proj_bias is not None:
                part.in_proj_bias.normal_(0, 0.3)
                part.out_proj.bias.normal_(0, 0.3)
