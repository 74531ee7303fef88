"""Families of networks in small: random units of every group go, and the output equals the masked original's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn


def conv_bn(inside: int, outside: int, kernel: int = 3, stride: int = 1, groups: int = 1, act=nn.ReLU) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inside, outside, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outside), act(),
    )  # fmt: skip


class Then(nn.Sequential):
    """A sequence that ends in a classifier."""

    def __init__(self, *body: nn.Module, channels: int) -> None:
        super().__init__(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 3))


class Bottleneck(nn.Module):
    def __init__(self, inside: int, inner: int, outside: int, groups: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv_bn(inside, inner, 1), conv_bn(inner, inner, 3, stride, groups),
            nn.Conv2d(inner, outside, 1), nn.BatchNorm2d(outside),
        )  # fmt: skip
        self.short = nn.Identity() if inside == outside else nn.Conv2d(inside, outside, 1, stride)

    def forward(self, x):
        return F.relu(self.body(x) + self.short(x), inplace=True)


class Dense(nn.Module):
    def __init__(self, inside: int, growth: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(inside + n * growth), nn.ReLU(), nn.Conv2d(inside + n * growth, growth, 3, padding=1)
            )
            for n in range(layers)
        )

    def forward(self, x):
        found = [x]
        for layer in self.layers:
            found.append(layer(torch.cat(found, 1)))
        return torch.cat(found, 1)


class Inception(nn.Module):
    def __init__(self, inside: int) -> None:
        super().__init__()
        self.a = conv_bn(inside, 4, 1)
        self.b = nn.Sequential(conv_bn(inside, 6, 1), conv_bn(6, 8))
        self.c = nn.Sequential(nn.AvgPool2d(3, 1, 1), conv_bn(inside, 4, 1))

    def forward(self, x):
        return torch.cat([self.a(x), self.b(x), self.c(x), F.max_pool2d(x, 3, 1, 1)], 1)


class ShuffleUnit(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(
            conv_bn(half, half, 1), nn.Conv2d(half, half, 3, padding=1, groups=half), nn.BatchNorm2d(half),
            conv_bn(half, half, 1),
        )  # fmt: skip

    def forward(self, x):
        a, b = x.chunk(2, dim=1)
        out = torch.cat((a, self.branch(b)), dim=1)
        n, c, h, w = out.size()
        return out.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)


class Inverted(nn.Module):
    """MobileNetV2's block; with squeeze-and-excitation and hard-swish, V3's and EfficientNet's."""

    def __init__(self, channels: int, outside: int, excite: bool = False, act=nn.ReLU6) -> None:
        super().__init__()
        inner = channels * 3
        self.expand = conv_bn(channels, inner, 1, act=act)
        self.mix = conv_bn(inner, inner, 3, groups=inner, act=act)
        self.squeeze = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(inner, 4, 1), nn.SiLU(), nn.Conv2d(4, inner, 1), nn.Hardsigmoid()
        ) if excite else None  # fmt: skip
        self.project = nn.Sequential(nn.Conv2d(inner, outside, 1, bias=False), nn.BatchNorm2d(outside))
        self.residual = channels == outside

    def forward(self, x):
        y = self.mix(self.expand(x))
        if self.squeeze is not None:
            y = y * self.squeeze(y)
        y = self.project(y)
        return x + y if self.residual else y


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = conv_bn(3, 8), conv_bn(8, 12), conv_bn(12, 16)
        self.up_two, self.up_one = nn.ConvTranspose2d(16, 12, 2, 2), nn.Conv2d(12, 8, 1)
        self.join_two, self.join_one = conv_bn(24, 12), conv_bn(16, 8)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        one = self.one(x)
        two = self.two(F.max_pool2d(one, 2))
        three = self.three(F.max_pool2d(two, 2))
        y = self.join_two(torch.cat([two, self.up_two(three)], 1))
        y = self.up_one(F.interpolate(y, scale_factor=2, mode="bilinear"))
        return {"maps": self.head(self.join_one(torch.cat([one, y], 1)))}


class ConvNeXtBlock(nn.Module):
    """Without its norm, for which the oracle does not hold."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.up, self.down = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)
        self.scale = nn.Parameter(torch.rand(channels))

    def forward(self, x):
        y = self.mix(x).permute(0, 2, 3, 1).contiguous()
        y = self.scale * self.down(F.gelu(self.up(y)))
        return x + y.permute(0, 3, 1, 2)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.head_dim = width // heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(b, n, self.num_heads * self.head_dim))


class ViT(nn.Module):
    """Without norms, for which the oracle does not hold."""

    def __init__(self, width: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 4, 4)
        self.cls = nn.Parameter(torch.randn(1, 1, width))
        self.pos = nn.Parameter(torch.randn(1, 5, width))
        self.attention, self.up, self.down = Attention(width, heads), nn.Linear(width, 32), nn.Linear(32, width)
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + self.pos
        x = x + self.attention(x)
        x = x + self.down(F.gelu(self.up(x)))
        return self.head(x[:, 0])


MODELS = {
    "vgg": (lambda: nn.Sequential(conv_bn(3, 8), nn.MaxPool2d(2), conv_bn(8, 12), nn.MaxPool2d(2), nn.Flatten(),
                                  nn.Linear(48, 10), nn.ReLU(), nn.Dropout(), nn.Linear(10, 3)), 3),
    "resnet": (lambda: Then(conv_bn(3, 8), Bottleneck(8, 4, 8), Bottleneck(8, 6, 12, stride=2), channels=12), 4),
    "resnext": (lambda: Then(conv_bn(3, 8), Bottleneck(8, 8, 8, groups=4),
                             Bottleneck(8, 8, 12, groups=2), channels=12), 6),
    "densenet": (lambda: Then(conv_bn(3, 8), Dense(8, 4, 3), conv_bn(20, 10, 1), Dense(10, 4, 2), channels=18), 7),
    "inception": (lambda: Then(conv_bn(3, 8), Inception(8), Inception(24), channels=40), 9),
    "shufflenet": (lambda: Then(conv_bn(3, 8), ShuffleUnit(8), ShuffleUnit(8), channels=8), 3),
    "mobilenet_v2": (lambda: Then(conv_bn(3, 8), Inverted(8, 8), Inverted(8, 12), channels=12), 4),
    "mobilenet_v3": (lambda: Then(conv_bn(3, 8), Inverted(8, 8, True, nn.Hardswish), channels=8), 3),
    "efficientnet": (lambda: Then(conv_bn(3, 8), Inverted(8, 8, True, nn.SiLU),
                                  Inverted(8, 12, True, nn.SiLU), channels=12), 6),
    "unet": (UNet, 7),
    "convnext": (lambda: Then(nn.Conv2d(3, 8, 2, 2), ConvNeXtBlock(8), ConvNeXtBlock(8), channels=8), 3),
    "vit": (ViT, 3),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_equals_the_masked_original(proves, name):
    make, groups = MODELS[name]
    coupling = proves(make(), (torch.randn(2, 3, 8, 8),), least_groups=groups)
    assert all(group.exact for group in coupling.groups)


def test_channels_last_on_meta_takes_the_same_way(proves, units):
    make, _ = MODELS["convnext"]
    model = make().to(memory_format=torch.channels_last)
    inputs = (torch.randn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last),)
    assert units(proves(model, inputs)) == {"0": 8, "1.up": 32, "2.up": 32}


def test_heads_of_a_vision_transformer_go_as_wholes(proves, members):
    coupling = proves(ViT(), (torch.randn(2, 3, 8, 8),))
    rows = members(coupling, "attention.qkv")["attention.qkv.weight", 0]
    assert rows[1] == [*range(4, 8), *range(20, 24), *range(36, 40)]


@pytest.mark.parametrize("weights", [False, True])
def test_torch_multihead_attention_loses_heads_with_their_part_of_the_embedding(proves, members, weights):
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.attention, self.head = nn.Linear(3, 8), nn.MultiheadAttention(8, 4), nn.Linear(8, 2)

        def forward(self, x):
            x = self.embed(x)
            return self.head(x + self.attention(x, x, x, need_weights=weights)[0])

    coupling = proves(Encoder(), (torch.randn(5, 2, 3),))
    assert members(coupling, "embed")["embed.weight", 0] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert members(coupling, "embed")["attention.in_proj_weight", 0][1] == [2, 3, 10, 11, 18, 19]


def test_torch_transformer_encoder_prunes_its_feed_forward(units):
    from slim_core.graph import analyse

    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    model = nn.Sequential(nn.Linear(3, 8), nn.TransformerEncoder(layer, 2), nn.Linear(8, 2))
    coupling = analyse(model, (torch.randn(2, 5, 3),))
    assert {group.name: (group.units, group.exact) for group in coupling.groups} == {
        "0": (2, False), "1.layers.0.linear1": (12, True), "1.layers.1.linear1": (12, True),
    }  # fmt: skip


def test_a_gated_decoder_with_shared_heads(proves, units):
    """Grouped-query attention: two key heads serve four query heads, so query heads go in pairs."""

    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head_dim = nn.Embedding(11, 16), 4
            self.q, self.k, self.v = nn.Linear(16, 16), nn.Linear(16, 8), nn.Linear(16, 8)
            self.o, self.up, self.gate, self.down = (
                nn.Linear(16, 16), nn.Linear(16, 24), nn.Linear(16, 24), nn.Linear(24, 16)
            )  # fmt: skip
            self.head = nn.Linear(16, 11, bias=False)

        def forward(self, ids):
            x = self.embed(ids)
            shape = (*x.shape[:-1], -1, self.head_dim)
            q, k, v = (f(x).view(shape).transpose(1, 2) for f in (self.q, self.k, self.v))
            k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
            x = x + self.o(y.reshape(*x.shape[:-1], -1))
            return self.head(x + self.down(F.silu(self.gate(x)) * self.up(x)))

    coupling = proves(Decoder(), (torch.randint(0, 11, (2, 5)),))
    assert units(coupling) == {"embed": 16, "q": 2, "up": 24}


class StreamAttention(nn.Module):
    """Takes the width inside from the width of the stream, so that neither can shrink without the other."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        y = ((q @ k.transpose(-2, -1)) * self.scale).softmax(-1) @ v
        return self.proj(y.transpose(1, 2).reshape(b, n, c))


def test_heads_go_with_their_slice_of_the_stream_where_the_forward_leaves_no_other_way(proves, members):
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Linear(3, 8), nn.Linear(8, 2)
            self.blocks = nn.ModuleList([StreamAttention(8, 4), StreamAttention(8, 4)])

        def forward(self, x):
            x = self.embed(x)
            for block in self.blocks:
                x = x + block(x)
            return self.head(x.mean(1))

    coupling = proves(Encoder(), (torch.randn(2, 5, 3),))
    assert members(coupling, "embed")["embed.weight", 0] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert members(coupling, "embed")["blocks.1.qkv.weight", 0][1] == [2, 3, 10, 11, 18, 19]


def test_windows_with_a_table_of_biases(proves, units):
    """Shifted windows, a table looked up by numbers, and patches merged by strided slices."""

    class Windows(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.attention = nn.Conv2d(3, 8, 1), StreamAttention(8, 4)
            self.table = nn.Parameter(torch.randn(49, 8))
            self.register_buffer("index", torch.randint(0, 49, (16,)))
            self.merge, self.head = nn.Linear(16, 12), nn.Linear(12, 3)

        def forward(self, x):
            x = torch.roll(self.stem(x).permute(0, 2, 3, 1), (-2, -2), (1, 2))
            b, h, w, c = x.shape
            y = x.view(b, h // 4, 4, w // 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, c)
            y = self.attention(y + self.table[self.index])
            y = y.view(b, h // 4, w // 4, 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
            x = x + torch.roll(y, (2, 2), (1, 2))
            return self.head(F.gelu(self.merge(torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 1::2]], -1))).mean((1, 2)))

    assert units(proves(Windows(), (torch.randn(2, 3, 8, 8),))) == {"stem": 4, "merge": 12}
