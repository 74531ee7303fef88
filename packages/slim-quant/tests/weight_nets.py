"""Networks for the tests of weight-only and dynamic quantization: an encoder with tied weights, recurrent layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

WORDS = 50


class Encoder(nn.Module):
    """An embedding that the head shares, an attention layer of torch, a product with a bare parameter."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, width)
        self.layer = nn.TransformerEncoderLayer(width, 2, 64, dropout=0.0, batch_first=True)
        self.turn = nn.Parameter(torch.randn(width, width) / width**0.5)
        self.head = nn.Linear(width, WORDS, bias=False)
        self.head.weight = self.words.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layer(self.words(tokens)) @ self.turn)

    def twice(self, tokens: Tensor) -> Tensor:
        """A method of the user's own."""
        return 2 * self(tokens)


class Sequence(nn.Module):
    """A recurrent layer and a head."""

    def __init__(self, kind: str = "LSTM", **options: bool | int) -> None:
        super().__init__()
        self.cell = getattr(nn, kind)(12, 16, batch_first=True, **options)
        self.head = nn.Linear(32 if options.get("bidirectional") else 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0])


def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder().eval()


def tokens(batch: int = 3, length: int = 7, seed: int = 0) -> Tensor:
    return torch.randint(0, WORDS, (batch, length), generator=torch.Generator().manual_seed(seed))
