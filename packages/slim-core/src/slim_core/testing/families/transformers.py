"""Transformers in the ways in which people write them: sizes from tensors, from attributes, from torch's own layers."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slim_core.testing.families.convolutional import CLASSES

VOCABULARY = 23


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))  # type: ignore[no-any-return]


class JointAttention(nn.Module):
    """One projection for q, k and v; the head's size is taken from the stream, so that a head owns a slice of it."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.qkv, self.proj = nn.Linear(dim, dim * 3), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        attn = (q * self.scale) @ k.transpose(-2, -1)
        x = (attn.softmax(dim=-1) @ v).transpose(1, 2).reshape(B, N, C)
        return self.proj(x)  # type: ignore[no-any-return]


class HeadDimAttention(nn.Module):
    """The head's size is an attribute: heads come and go without the stream."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        self.scale = self.head_dim**-0.5
        self.qkv, self.proj = nn.Linear(dim, dim * 3), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.proj(x.transpose(1, 2).reshape(b, n, self.num_heads * self.head_dim))  # type: ignore[no-any-return]


class Block(nn.Module):
    def __init__(self, dim: int, attention: nn.Module) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim), attention
        self.norm2, self.mlp = nn.LayerNorm(dim), Mlp(dim, 4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class ViT(nn.Module):
    """Dosovitskiy et al. 2020, arXiv:2010.11929: class token and position embedding are parameters of the model."""

    def __init__(self, w: int, attention: type[nn.Module] = JointAttention, side: int = 32, patch: int = 8) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, w, patch, patch)
        self.cls_token = nn.Parameter(torch.randn(1, 1, w) * 0.02)
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + (side // patch) ** 2, w) * 0.02)
        self.blocks = nn.Sequential(*(Block(w, attention(w, 4)) for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(w), nn.Linear(w, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])  # type: ignore[no-any-return]


def vit_head_dim(w: int) -> nn.Module:
    return ViT(w, HeadDimAttention)


# --- Swin -------------------------------------------------------------------------------------------------------


class WindowAttention(nn.Module):
    """Liu et al. 2021, arXiv:2103.14030: a table of biases per head, looked up by relative position."""

    def __init__(self, dim: int, window: int, num_heads: int) -> None:
        super().__init__()
        self.dim, self.num_heads = dim, num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.relative_position_bias_table = nn.Parameter(torch.randn((2 * window - 1) ** 2, num_heads) * 0.02)
        coords = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        relative = (coords[:, :, None] - coords[:, None, :]).permute(1, 2, 0) + window - 1
        self.register_buffer("relative_position_index", relative[..., 0] * (2 * window - 1) + relative[..., 1])
        self.qkv, self.proj = nn.Linear(dim, dim * 3), nn.Linear(dim, dim)
        self.softmax = nn.Softmax(dim=-1)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        B_, N, C = x.shape
        qkv = self.qkv(x).reshape(B_, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        attn = (q * self.scale) @ k.transpose(-2, -1)
        index: Tensor = self.relative_position_index  # type: ignore[assignment]
        bias = self.relative_position_bias_table[index.view(-1)].view(N, N, -1).permute(2, 0, 1).contiguous()
        attn = attn + bias.unsqueeze(0)
        if mask is not None:
            windows = mask.shape[0]
            attn = attn.view(B_ // windows, windows, self.num_heads, N, N) + mask.unsqueeze(1).unsqueeze(0)
            attn = attn.view(-1, self.num_heads, N, N)
        x = (self.softmax(attn) @ v).transpose(1, 2).reshape(B_, N, C)
        return self.proj(x)  # type: ignore[no-any-return]


class SwinBlock(nn.Module):
    def __init__(self, dim: int, num_heads: int, window: int, shift: int, side: int) -> None:
        super().__init__()
        self.window_size, self.shift_size = window, shift
        self.norm1, self.attn = nn.LayerNorm(dim), WindowAttention(dim, window, num_heads)
        self.norm2, self.mlp = nn.LayerNorm(dim), Mlp(dim, 4 * dim)
        mask = None
        if shift:
            count = (side // window) ** 2
            mask = torch.zeros(count, window * window, window * window)
            mask[-1, :2, 2:] = -100.0
        self.register_buffer("attn_mask", mask)

    def forward(self, x: Tensor) -> Tensor:  # (N, H, W, C)
        B, H, W, C = x.shape
        size = self.window_size
        shortcut, x = x, self.norm1(x)
        if self.shift_size:
            x = torch.roll(x, shifts=(-self.shift_size, -self.shift_size), dims=(1, 2))
        x = x.view(B, H // size, size, W // size, size, C).permute(0, 1, 3, 2, 4, 5).contiguous()
        x = self.attn(x.view(-1, size * size, C), self.attn_mask)
        x = x.view(B, H // size, W // size, size, size, -1).permute(0, 1, 3, 2, 4, 5).contiguous().view(B, H, W, -1)
        if self.shift_size:
            x = torch.roll(x, shifts=(self.shift_size, self.shift_size), dims=(1, 2))
        x = shortcut + x
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class PatchMerging(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm, self.reduction = nn.LayerNorm(4 * dim), nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        parts = [x[:, 0::2, 0::2, :], x[:, 1::2, 0::2, :], x[:, 0::2, 1::2, :], x[:, 1::2, 1::2, :]]
        return self.reduction(self.norm(torch.cat(parts, -1)))  # type: ignore[no-any-return]


class Swin(nn.Module):
    def __init__(self, w: int) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, w, 4, 4)
        self.stage1 = nn.Sequential(SwinBlock(w, 4, 4, 0, 8), SwinBlock(w, 4, 4, 2, 8))
        self.merge = PatchMerging(w)
        self.stage2 = nn.Sequential(SwinBlock(2 * w, 4, 4, 0, 4))
        self.norm, self.head = nn.LayerNorm(2 * w), nn.Linear(2 * w, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage1(self.patch_embed(x).permute(0, 2, 3, 1))
        x = self.norm(self.stage2(self.merge(x)))
        return self.head(x.flatten(1, 2).mean(1))  # type: ignore[no-any-return]


# --- BERT -------------------------------------------------------------------------------------------------------


class BertSelfAttention(nn.Module):
    """Three projections; sizes are attributes; the scale is computed from one of them when it runs."""

    def __init__(self, hidden_size: int, num_attention_heads: int) -> None:
        super().__init__()
        self.num_attention_heads = num_attention_heads
        self.attention_head_size = hidden_size // num_attention_heads
        self.all_head_size = num_attention_heads * self.attention_head_size
        self.query = nn.Linear(hidden_size, self.all_head_size)
        self.key = nn.Linear(hidden_size, self.all_head_size)
        self.value = nn.Linear(hidden_size, self.all_head_size)
        self.dropout = nn.Dropout(0.1)

    def transpose_for_scores(self, x: Tensor) -> Tensor:
        x = x.view(*x.size()[:-1], self.num_attention_heads, self.attention_head_size)
        return x.permute(0, 2, 1, 3)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        query = self.transpose_for_scores(self.query(hidden))
        key = self.transpose_for_scores(self.key(hidden))
        value = self.transpose_for_scores(self.value(hidden))
        scores = torch.matmul(query, key.transpose(-1, -2)) / math.sqrt(self.attention_head_size)
        probabilities = self.dropout(nn.functional.softmax(scores + mask, dim=-1))
        context = torch.matmul(probabilities, value).permute(0, 2, 1, 3).contiguous()
        return context.view(*context.size()[:-2], self.all_head_size)


class BertLayer(nn.Module):
    """Devlin et al. 2018, arXiv:1810.04805: norms after the sums."""

    def __init__(self, hidden_size: int, heads: int, intermediate: int) -> None:
        super().__init__()
        self.attention = BertSelfAttention(hidden_size, heads)
        self.attention_output, self.attention_norm = nn.Linear(hidden_size, hidden_size), nn.LayerNorm(hidden_size)
        self.intermediate, self.output = nn.Linear(hidden_size, intermediate), nn.Linear(intermediate, hidden_size)
        self.output_norm = nn.LayerNorm(hidden_size)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        hidden = self.attention_norm(hidden + self.attention_output(self.attention(hidden, mask)))
        return self.output_norm(hidden + self.output(F.gelu(self.intermediate(hidden))))  # type: ignore[no-any-return]


class Bert(nn.Module):
    """Three embedding tables, a mask input, a pooler, and a language-model output that is tied to the first table."""

    def __init__(self, w: int, length: int = 12) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(VOCABULARY, w, padding_idx=0)
        self.position_embeddings, self.token_type_embeddings = nn.Embedding(length, w), nn.Embedding(2, w)
        self.norm = nn.LayerNorm(w)
        self.register_buffer("position_ids", torch.arange(length).expand((1, -1)), persistent=False)
        self.layers = nn.ModuleList(BertLayer(w, 4, 4 * w) for _ in range(2))
        self.pooler = nn.Linear(w, w)
        self.classifier = nn.Linear(w, CLASSES)
        self.transform, self.transform_norm = nn.Linear(w, w), nn.LayerNorm(w)
        self.decoder = nn.Linear(w, VOCABULARY)
        self.decoder.weight = self.word_embeddings.weight

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> dict[str, Tensor]:
        length = input_ids.size(1)
        positions: Tensor = self.position_ids[:, :length]  # type: ignore[index]
        hidden = self.word_embeddings(input_ids) + self.token_type_embeddings(token_type_ids)
        hidden = self.norm(hidden + self.position_embeddings(positions))
        mask = (1.0 - attention_mask[:, None, None, :].to(hidden.dtype)) * -10000.0
        for layer in self.layers:
            hidden = layer(hidden, mask)
        pooled = torch.tanh(self.pooler(hidden[:, 0]))
        words = self.decoder(self.transform_norm(F.gelu(self.transform(hidden))))
        return {"logits": self.classifier(pooled), "words": words}


# --- GPT --------------------------------------------------------------------------------------------------------


class CausalSelfAttention(nn.Module):
    """Joint q, k and v, cut by the width of the stream; a triangular mask in a buffer."""

    def __init__(self, n_embd: int, n_head: int, block_size: int) -> None:
        super().__init__()
        self.c_attn, self.c_proj = nn.Linear(n_embd, 3 * n_embd), nn.Linear(n_embd, n_embd)
        self.n_head, self.n_embd = n_head, n_embd
        self.register_buffer("bias", torch.tril(torch.ones(block_size, block_size)).view(1, 1, block_size, block_size))

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split(self.n_embd, dim=2)
        k = k.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        q = q.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        v = v.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        bias: Tensor = self.bias  # type: ignore[assignment]
        att = att.masked_fill(bias[:, :, :T, :T] == 0, float("-inf"))
        y = (F.softmax(att, dim=-1) @ v).transpose(1, 2).contiguous().view(B, T, C)
        return self.c_proj(y)  # type: ignore[no-any-return]


class Gpt(nn.Module):
    """Radford et al. 2019: learned positions, a causal mask, and an output that is tied to the embedding."""

    def __init__(self, w: int, block_size: int = 12) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(VOCABULARY, w), nn.Embedding(block_size, w)
        self.h = nn.ModuleList(Block(w, CausalSelfAttention(w, 4, block_size)) for _ in range(2))
        self.ln_f, self.lm_head = nn.LayerNorm(w), nn.Linear(w, VOCABULARY, bias=False)
        self.wte.weight = self.lm_head.weight

    def forward(self, ids: Tensor) -> Tensor:
        positions = torch.arange(0, ids.size(1), dtype=torch.long, device=ids.device)
        x = self.wte(ids) + self.wpe(positions)
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))  # type: ignore[no-any-return]


class RmsNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        variance = x.pow(2).mean(-1, keepdim=True)
        return self.weight * (x * torch.rsqrt(variance + 1e-6))


def rotate_half(x: Tensor) -> Tensor:
    x1, x2 = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return torch.cat((-x2, x1), dim=-1)


class LlamaLayer(nn.Module):
    """Touvron et al. 2023, arXiv:2302.13971: rotary positions, shared key heads, a gated MLP."""

    def __init__(self, width: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.head_dim, self.num_key_value_groups = width // heads, heads // kv_heads
        self.q_proj = nn.Linear(width, heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(width, kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(width, kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(heads * self.head_dim, width, bias=False)
        self.gate_proj, self.up_proj = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, 3 * width, bias=False)
        self.down_proj = nn.Linear(3 * width, width, bias=False)
        self.input_norm, self.post_norm = RmsNorm(width), RmsNorm(width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        y = self.input_norm(x)
        shape = (*y.shape[:-1], -1, self.head_dim)
        q, k, v = (f(y).view(shape).transpose(1, 2) for f in (self.q_proj, self.k_proj, self.v_proj))
        q, k = q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin
        batch, kv_heads, length, size = k.shape
        groups = self.num_key_value_groups
        k = k[:, :, None].expand(batch, kv_heads, groups, length, size).reshape(batch, kv_heads * groups, length, size)
        v = v[:, :, None].expand(batch, kv_heads, groups, length, size).reshape(batch, kv_heads * groups, length, size)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(*y.shape[:-1], -1)
        x = x + self.o_proj(y)
        y = self.post_norm(x)
        return x + self.down_proj(F.silu(self.gate_proj(y)) * self.up_proj(y))  # type: ignore[no-any-return]


class Llama(nn.Module):
    def __init__(self, w: int, heads: int = 4) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCABULARY, w)
        self.layers = nn.ModuleList(LlamaLayer(w, heads, heads // 2) for _ in range(2))
        self.norm, self.lm_head = RmsNorm(w), nn.Linear(w, VOCABULARY, bias=False)
        frequencies = 1.0 / (10000 ** (torch.arange(0, w // heads, 2).float() / (w // heads)))
        self.register_buffer("inv_freq", frequencies, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed_tokens(ids)
        positions = torch.arange(ids.shape[1], device=ids.device).to(x.dtype)
        angles = torch.outer(positions, self.inv_freq)  # type: ignore[arg-type]
        angles = torch.cat((angles, angles), dim=-1)
        for layer in self.layers:
            x = layer(x, angles.cos(), angles.sin())
        return self.lm_head(self.norm(x))  # type: ignore[no-any-return]


# --- torch's own layers -----------------------------------------------------------------------------------------


class TorchEncoder(nn.Module):
    """``nn.TransformerEncoder`` between an embedding and a classifier."""

    def __init__(self, w: int) -> None:
        super().__init__()
        self.d_model = w
        self.embed = nn.Embedding(VOCABULARY, w)
        layer = nn.TransformerEncoderLayer(w, 4, 4 * w, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, nn.LayerNorm(w), enable_nested_tensor=False)
        self.fc = nn.Linear(w, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        return self.fc(self.encoder(self.embed(ids)).mean(1))  # type: ignore[no-any-return]


class TorchTransformer(nn.Module):
    """``nn.Transformer``: encoder and decoder, with cross-attention."""

    def __init__(self, w: int) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(VOCABULARY, w), nn.Embedding(VOCABULARY, w)
        self.transformer = nn.Transformer(w, 4, 1, 1, 2 * w, batch_first=True)
        self.out = nn.Linear(w, VOCABULARY)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        return self.out(  # type: ignore[no-any-return]
            self.transformer(self.source(source), self.target(target), tgt_mask=mask, tgt_is_causal=True)
        )


class CrossAttention(nn.Module):
    """``nn.MultiheadAttention`` between learned queries and features of another width, as detection transformers."""

    def __init__(self, w: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2 * w, 8, 8)
        self.queries = nn.Parameter(torch.randn(6, w))
        self.attention = nn.MultiheadAttention(w, 4, kdim=2 * w, vdim=2 * w, batch_first=True)
        self.norm, self.out = nn.LayerNorm(w), nn.Linear(w, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        memory = self.conv(x).flatten(2).transpose(1, 2)
        queries = self.queries.unsqueeze(0).expand(x.shape[0], -1, -1)
        return self.out(self.norm(queries + self.attention(queries, memory, memory)[0]))  # type: ignore[no-any-return]
