"""Recurrent models: torch's layers (stacked, bidirectional, projected, packed), and cells in a loop."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slim_core.testing.families.convolutional import CLASSES
from slim_core.testing.families.transformers import VOCABULARY


class LstmTagger(nn.Module):
    """Two bidirectional layers over embedded words, one label per word."""

    def __init__(self, w: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, w)
        self.lstm = nn.LSTM(w, 2 * w, num_layers=2, bidirectional=True, batch_first=True, dropout=0.1)
        self.fc = nn.Linear(4 * w, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        x, _ = self.lstm(self.embed(ids))
        return self.fc(x)  # type: ignore[no-any-return]


class GruClassifier(nn.Module):
    """Convolutional features over time, two recurrent layers, the last state."""

    def __init__(self, w: int) -> None:
        super().__init__()
        self.hidden_size = 2 * w
        self.conv = nn.Sequential(nn.Conv1d(3, w, 3, padding=1), nn.BatchNorm1d(w), nn.ReLU())
        self.gru = nn.GRU(w, self.hidden_size, num_layers=2, batch_first=True)
        self.fc = nn.Linear(self.hidden_size, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).transpose(1, 2)
        first = y.new_zeros(2, x.size(0), self.hidden_size)
        _, last = self.gru(y, first)
        return self.fc(last[-1])  # type: ignore[no-any-return]


class Seq2Seq(nn.Module):
    """An encoder whose state starts a decoder, attention by a dot product between them."""

    def __init__(self, w: int) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(VOCABULARY, w), nn.Embedding(VOCABULARY, w)
        self.encoder, self.decoder = nn.LSTM(w, 2 * w, batch_first=True), nn.LSTM(w, 2 * w, batch_first=True)
        self.combine, self.out = nn.Linear(4 * w, w), nn.Linear(w, VOCABULARY)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        memory, state = self.encoder(self.source(source))
        x, _ = self.decoder(self.target(target), state)
        weights = F.softmax(torch.bmm(x, memory.transpose(1, 2)), dim=-1)
        x = torch.cat([x, torch.bmm(weights, memory)], dim=-1)
        return self.out(torch.tanh(self.combine(x)))  # type: ignore[no-any-return]


class CellLoop(nn.Module):
    """Cells in a Python loop: an LSTM cell feeds a GRU cell."""

    def __init__(self, w: int) -> None:
        super().__init__()
        self.hidden_dim = 2 * w
        self.lstm, self.gru = nn.LSTMCell(3, self.hidden_dim), nn.GRUCell(self.hidden_dim, w)
        self.fc = nn.Linear(w, CLASSES)

    def forward(self, x: Tensor) -> Tensor:  # (N, T, 3)
        h = x.new_zeros(x.shape[0], self.hidden_dim)
        c = x.new_zeros(x.shape[0], self.hidden_dim)
        g = None
        for step in range(x.shape[1]):
            h, c = self.lstm(x[:, step], (h, c))
            g = self.gru(h, g)
        return self.fc(g)  # type: ignore[no-any-return]


class ProjectedLstm(nn.Module):
    """An LSTM with a projection of its state, then a plain recurrent layer."""

    def __init__(self, w: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4 * w, num_layers=2, proj_size=w, batch_first=True)
        self.rnn = nn.RNN(w, w, nonlinearity="relu", batch_first=True)
        self.fc = nn.Linear(w, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.lstm(x)
        y, _ = self.rnn(y)
        return self.fc(y[:, -1])  # type: ignore[no-any-return]


class PackedLstm(nn.Module):
    """Sequences of different lengths, packed; the lengths are values, so it is recorded with real tensors."""

    def __init__(self, w: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, w, padding_idx=0)
        self.lstm = nn.LSTM(w, 2 * w, batch_first=True)
        self.fc = nn.Linear(2 * w, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        lengths = (ids != 0).sum(1).cpu()
        packed = nn.utils.rnn.pack_padded_sequence(self.embed(ids), lengths, batch_first=True, enforce_sorted=False)
        packed, _ = self.lstm(packed)
        x, _ = nn.utils.rnn.pad_packed_sequence(packed, batch_first=True)
        return self.fc(x.sum(1))  # type: ignore[no-any-return]
