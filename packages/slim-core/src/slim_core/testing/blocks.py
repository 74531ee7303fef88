"""The blocks of random networks: one small module per construction that real models use.

Each takes its input width and the integers that decide its details, and says its ``out_channels``. No block
normalizes over channels that may be pruned (layer and group norm), because the masked-original oracle does not hold
there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

_ACTIVATIONS: tuple[Callable[[], nn.Module], ...] = (
    nn.ReLU, nn.Identity, nn.SiLU, nn.Sigmoid, nn.GELU, nn.Hardswish, nn.Tanh, nn.LeakyReLU, nn.ReLU6, nn.Softplus,
)  # fmt: skip


class Numbers:
    """Hands out a block's integers one by one; zero when they have run out, so that shorter is simpler."""

    def __init__(self, numbers: tuple[int, ...]) -> None:
        self._rest = list(numbers)

    def pick(self, options: Any) -> Any:
        number = self._rest.pop(0) if self._rest else 0
        return options[number % len(options)]

    def flag(self) -> bool:
        return bool(self.pick((False, True)))

    def activation(self) -> nn.Module:
        return self.pick(_ACTIVATIONS)()  # type: ignore[no-any-return]

    def width(self) -> int:
        return self.pick((8, 4, 12, 16))  # type: ignore[no-any-return]

    def divisor(self, *sizes: int) -> int:
        options = [d for d in (2, 4) if all(size % d == 0 for size in sizes)]
        return self.pick([*options, 1])  # type: ignore[no-any-return]


# --- blocks for images (N, C, H, W) -----------------------------------------------------------------------------


def conv_bn(inside: int, outside: int, numbers: Numbers, *, groups: int = 1, stride: int = 1) -> nn.Sequential:
    kernel = numbers.pick((3, 1))
    norm = numbers.flag()
    layers: list[nn.Module] = [
        nn.Conv2d(inside, outside, kernel, stride, kernel // 2, groups=groups, bias=not norm or numbers.flag())
    ]
    if norm:
        layers.append(nn.BatchNorm2d(outside, affine=numbers.pick((True, True, False))))
    layers.append(numbers.activation())
    return nn.Sequential(*layers)


class Residual(nn.Module):
    """``x + f(x)``, with a projection where the width changes or the integers ask for one; in place or not."""

    def __init__(self, c: int, n: Numbers) -> None:
        super().__init__()
        self.inplace = n.flag()
        self.out_channels = n.pick((c, 8, 16))
        inner = n.width()
        self.body = nn.Sequential(conv_bn(c, inner, n), nn.Conv2d(inner, self.out_channels, 3, padding=1, bias=False))
        self.norm = nn.BatchNorm2d(self.out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if self.out_channels != c or n.flag():
            self.shortcut = nn.Sequential(nn.Conv2d(c, self.out_channels, 1), nn.BatchNorm2d(self.out_channels))
        self.act = n.activation()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.body(x))
        if self.inplace:
            out += self.shortcut(x)
        else:
            out = out + self.shortcut(x)
        return self.act(out)  # type: ignore[no-any-return]


class Concat(nn.Module):
    """Branches joined by ``cat``; the input itself may be one of them (dense connection)."""

    def __init__(self, c: int, n: Numbers) -> None:
        super().__init__()
        self.dense = n.flag()
        widths = [n.pick((4, 8)) for _ in range(n.pick((2, 3, 1)))]
        self.branches = nn.ModuleList(conv_bn(c, width, n) for width in widths)
        self.out_channels = sum(widths) + (c if self.dense else 0)

    def forward(self, x: Tensor) -> Tensor:
        parts = [branch(x) for branch in self.branches]
        return torch.cat([x, *parts] if self.dense else parts, 1)


class SplitJoin(nn.Module):
    """Parts of the channels take different ways: chunk, split or slices, then ``cat``."""

    def __init__(self, c: int, n: Numbers) -> None:
        super().__init__()
        self.how = n.pick(("chunk", "split", "slice", "stride"))
        first = c // 4 if self.how == "split" else (c + 1) // 2
        self.sizes = (first, c - first)
        width = n.pick((4, 8))
        plain = n.flag()
        self.left = conv_bn(self.sizes[0], width, n)
        self.right: nn.Module = nn.Identity() if plain else conv_bn(self.sizes[1], 4, n)
        self.out_channels = width + (self.sizes[1] if plain else 4)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "chunk":
            a, b = x.chunk(2, dim=1)
        elif self.how == "split":
            a, b = torch.split(x, list(self.sizes), dim=1)
        elif self.how == "slice":
            a, b = x[:, : self.sizes[0]], x[:, self.sizes[0] :]
        else:
            a, b = x[:, ::2], x[:, 1::2]
        return torch.cat([self.left(a), self.right(b)], 1)


class Shuffle(nn.Module):
    """Grouped convolution, then a channel shuffle, as in ShuffleNet."""

    def __init__(self, c: int, n: Numbers) -> None:
        super().__init__()
        self.groups = n.divisor(c)
        self.conv = conv_bn(c, c, n, groups=n.pick((self.groups, 1, c)))
        self.flat = n.flag()
        self.out_channels = c

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        batch, channels, height, width = x.shape
        x = x.view(batch, self.groups, channels // self.groups, height, width).transpose(1, 2)
        return x.flatten(1, 2) if self.flat else x.reshape(batch, -1, height, width)


class SqueezeExcite(nn.Module):
    """A gate per channel, computed from the pooled channels by convolutions or by linear layers."""

    def __init__(self, c: int, n: Numbers) -> None:
        super().__init__()
        self.linear = n.flag()
        squeezed = n.pick((4, 8))
        make: Callable[..., nn.Module] = nn.Linear if self.linear else (lambda i, o: nn.Conv2d(i, o, 1))
        self.reduce, self.expand = make(c, squeezed), make(squeezed, c)
        self.act = n.activation()
        self.gate = n.pick((nn.Sigmoid, nn.Hardsigmoid))()
        self.out_channels = c

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean((2, 3)) if self.linear else F.adaptive_avg_pool2d(x, 1)
        gate: Tensor = self.gate(self.expand(self.act(self.reduce(pooled))))
        return x * (gate[:, :, None, None] if self.linear else gate)


class Gate(nn.Module):
    """Multiplication by a learned scale, by a sibling convolution, or by a gated linear unit."""

    def __init__(self, c: int, n: Numbers) -> None:
        super().__init__()
        self.how = n.pick(("scale", "sibling", "glu", "swiglu"))
        self.out_channels = c
        if self.how == "scale":
            self.scale = nn.Parameter(torch.randn(c, 1, 1))
        elif self.how == "sibling":
            self.value, self.gate = nn.Conv2d(c, c, 1), nn.Conv2d(c, c, 3, padding=1)
        else:
            self.out_channels = n.width()
            self.both = nn.Conv2d(c, 2 * self.out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "scale":
            return x * self.scale
        if self.how == "sibling":
            return self.value(x) * torch.sigmoid(self.gate(x))  # type: ignore[no-any-return]
        if self.how == "glu":
            return F.glu(self.both(x), 1)
        value, gate = self.both(x).chunk(2, 1)
        return value * F.silu(gate)  # type: ignore[no-any-return]


class Skip(nn.Module):
    """Down, something, up again and joined with what came before, as in a U-Net."""

    def __init__(self, c: int, n: Numbers) -> None:
        super().__init__()
        inner = n.width()
        self.down = conv_bn(c, inner, n)
        self.how = n.pick(("nearest", "bilinear", "transposed"))
        self.up = nn.ConvTranspose2d(inner, inner, 2, 2) if self.how == "transposed" else nn.Identity()
        self.add = inner == c and n.flag()
        self.out_channels = c if self.add else c + inner

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(F.max_pool2d(x, 2))
        if self.how == "transposed":
            y = self.up(y)
        elif self.how == "nearest":
            y = F.interpolate(y, scale_factor=2, mode="nearest")
        else:
            y = F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=False)
        return x + y if self.add else torch.cat([x, y], 1)


class ChannelsLast(nn.Module):
    """Linear layers over the channels in (N, H, W, C), as in ConvNeXt (without its norm)."""

    def __init__(self, c: int, n: Numbers) -> None:
        super().__init__()
        self.mix = nn.Conv2d(c, c, 3, padding=1, groups=c)
        self.mlp = nn.Sequential(nn.Linear(c, n.width()), nn.GELU())
        self.back = nn.Linear(self.mlp[0].out_features, c)  # type: ignore[arg-type]
        self.scale = nn.Parameter(torch.rand(c) + 0.5)
        self.out_channels = c

    def forward(self, x: Tensor) -> Tensor:
        y = self.mix(x).permute(0, 2, 3, 1)
        y = self.scale * self.back(self.mlp(y))
        return x + y.permute(0, 3, 1, 2)  # type: ignore[no-any-return]


class Twice(nn.Module):
    """One convolution run twice, and its weight used once more outside its module."""

    def __init__(self, c: int, n: Numbers) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, padding=1)
        self.functional = n.flag()
        self.out_channels = c

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x))
        if self.functional:
            return F.conv2d(x, self.conv.weight, padding=1)
        return self.conv(x)  # type: ignore[no-any-return]


class Parametrized(nn.Module):
    """A convolution whose weight is computed by weight norm or spectral norm; depthwise or not; or a bare parameter."""

    def __init__(self, c: int, n: Numbers) -> None:
        super().__init__()
        how = n.pick((parametrizations.weight_norm, parametrizations.spectral_norm, None))
        groups = n.pick((1, c))
        self.out_channels = c if groups > 1 else n.width()
        conv = nn.Conv2d(c, self.out_channels, 3, padding=1, groups=groups)
        self.conv = conv if how is None else how(conv)
        self.kernel = nn.Parameter(torch.randn(self.out_channels, self.out_channels, 1, 1)) if how is None else None
        self.act = n.activation()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.conv(x))
        return x if self.kernel is None else F.conv2d(x, self.kernel)


class Window(nn.Module):
    """Pixels in windows of 2x2, each window mixed, and back, as in Swin; or patches merged by strided slices."""

    def __init__(self, c: int, n: Numbers) -> None:
        super().__init__()
        self.merge = n.flag()
        self.out_channels = n.width() if self.merge else c
        self.mix = nn.Linear(4 * c if self.merge else c, self.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        batch, height, width, channels = x.shape
        if self.merge:
            x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
            return self.mix(x).permute(0, 3, 1, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)  # type: ignore[no-any-return]
        y = x.view(batch, height // 2, 2, width // 2, 2, channels).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, channels)
        y = self.mix(y).view(batch, height // 2, width // 2, 2, 2, -1).permute(0, 1, 3, 2, 4, 5)
        return (x + y.reshape(batch, height, width, -1)).permute(0, 3, 1, 2)  # type: ignore[no-any-return]


class OverPixels(nn.Module):
    """A block for tokens (N, L, C), run over the pixels of an image."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.out_channels: int = inner.out_channels  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        y: Tensor = self.inner(x.flatten(2).transpose(1, 2))
        return y.transpose(1, 2).reshape(x.shape[0], -1, height, width)


# --- blocks for tokens (N, L, C) --------------------------------------------------------------------------------


class Attention(nn.Module):
    """Multi-head self-attention written by hand, in the ways in which people write it."""

    def __init__(self, c: int, n: Numbers) -> None:
        super().__init__()
        self.heads = n.divisor(c)
        self.head_dim = c // self.heads
        self.fused = n.pick(("no", "reshape", "chunk"))
        self.fixed = n.pick(("none", "heads", "head_dim", "both"))
        self.how = n.pick(("sdpa", "manual", "manual_scale"))
        if self.fused == "no":
            self.q, self.k, self.v = (nn.Linear(c, c, bias=n.flag()) for _ in range(3))
        else:
            self.qkv = nn.Linear(c, 3 * c, bias=n.flag())
        self.out = nn.Linear(c, c)
        self.residual = n.flag()
        self.scale = self.head_dim**-0.5
        self.out_channels = c

    def _split(self, x: Tensor) -> Tensor:  # (N, L, C) -> (N, heads, L, head_dim)
        batch, length, channels = x.shape
        if self.fixed in ("none", "heads"):
            x = x.view(batch, length, self.heads, channels // self.heads if self.fixed == "none" else -1)
        elif self.fixed == "head_dim":
            x = x.view(batch, length, -1, self.head_dim)
        else:
            x = x.view(batch, length, self.heads, self.head_dim)
        return x.transpose(1, 2)

    def _qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.fused == "no":
            return self._split(self.q(x)), self._split(self.k(x)), self._split(self.v(x))
        batch, length, _ = x.shape
        joined: Tensor = self.qkv(x)
        if self.fused == "chunk":
            q, k, v = joined.chunk(3, dim=-1)
            return self._split(q), self._split(k), self._split(v)
        q, k, v = joined.reshape(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return q, k, v

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self._qkv(x)
        if self.how == "sdpa":
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            scale = self.scale if self.how == "manual_scale" else q.shape[-1] ** -0.5
            y = torch.softmax((q @ k.transpose(-2, -1)) * scale, -1) @ v
        y = self.out(y.transpose(1, 2).reshape(x.shape[0], x.shape[1], -1))
        return x + y if self.residual else y  # type: ignore[no-any-return]


class TorchAttention(nn.Module):
    """``nn.MultiheadAttention`` with a residual connection."""

    def __init__(self, c: int, n: Numbers) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(c, n.divisor(c), bias=n.flag(), batch_first=True)
        self.weights = n.flag()
        self.residual = n.flag()
        self.out_channels = c

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.attention(x, x, x, need_weights=self.weights)
        return x + y if self.residual else y  # type: ignore[no-any-return]


class Mlp(nn.Module):
    """Linear, activation, linear; plain, residual or gated. Takes (N, C) and (N, L, C)."""

    def __init__(self, c: int, n: Numbers) -> None:
        super().__init__()
        self.how = n.pick(("plain", "residual", "gated"))
        self.out_channels = n.width() if self.how == "plain" else c
        hidden = n.width()
        self.up = nn.Linear(c, hidden, bias=not n.flag())
        self.gate = nn.Linear(c, hidden) if self.how == "gated" else None
        self.act = n.activation()
        self.down = nn.Linear(hidden, self.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.up(x))
        if self.gate is not None:
            y = y * self.gate(x)
        y = self.down(y)
        return x + y if self.how == "residual" else y  # type: ignore[no-any-return]


class Recurrent(nn.Module):
    """An LSTM, a GRU or a plain recurrent layer: stacked, in both directions, or with a learned first state."""

    def __init__(self, c: int, n: Numbers) -> None:
        super().__init__()
        kind = n.pick((nn.LSTM, nn.GRU, nn.RNN))
        width = n.pick((4, 8, 6))
        self.layer = kind(c, width, num_layers=n.pick((1, 2)), bidirectional=n.flag(), bias=not n.flag(),
                          batch_first=True)  # fmt: skip
        count = self.layer.num_layers * (2 if self.layer.bidirectional else 1)
        self.first = nn.Parameter(torch.randn(count, 1, width)) if kind is not nn.LSTM and n.flag() else None
        self.out_channels = width * (2 if self.layer.bidirectional else 1)

    def forward(self, x: Tensor) -> Tensor:  # (N, L, C)
        first = None if self.first is None else self.first.expand(-1, x.shape[0], -1).contiguous()
        return self.layer(x, first)[0]  # type: ignore[no-any-return]


class Cells(nn.Module):
    """A cell in a Python loop over the sequence, its states stacked."""

    def __init__(self, c: int, n: Numbers) -> None:
        super().__init__()
        self.cell = n.pick((nn.GRUCell, nn.LSTMCell, nn.RNNCell))(c, n.pick((4, 8)))
        self.out_channels: int = self.cell.hidden_size

    def forward(self, x: Tensor) -> Tensor:  # (N, L, C)
        state, found = None, []
        for step in x.unbind(1):
            state = self.cell(step, state)
            found.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(found, 1)


# --- blocks for features (N, C) ---------------------------------------------------------------------------------


class Features(nn.Module):
    """Linear layers with batch norm over features, joined by ``cat`` or by a product."""

    def __init__(self, c: int, n: Numbers) -> None:
        super().__init__()
        self.how = n.pick(("chain", "cat", "product", "outer"))
        width = n.width()
        self.left = nn.Sequential(nn.Linear(c, width), nn.BatchNorm1d(width), n.activation())
        self.right = nn.Linear(c, width)
        self.out_channels = 2 * width if self.how == "cat" else width

    def forward(self, x: Tensor) -> Tensor:
        left: Tensor = self.left(x)
        if self.how == "chain":
            return left
        right: Tensor = self.right(x)
        if self.how == "cat":
            return torch.cat((left, right), dim=-1)
        if self.how == "product":
            return left * right
        return torch.bmm(left.unsqueeze(2), right.unsqueeze(1)).sum(2)
