"""A model whose weights are stored in every sparse form, and the file that holds it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import checkpoint_kit as kit
import torch
from torch import nn

from slim_core.checkpoint import save
from slim_core.registry import Registry
from slim_core.workload import BuilderRef, Transform, Workload


class Holder(nn.Module):
    """Weights of every form; what it computes does not matter."""

    def __init__(self) -> None:
        super().__init__()
        self.bits = nn.Parameter(torch.zeros(8, 6, 3, 3))  # bitmap, channels last
        self.tied = self.bits
        self.rare = nn.Parameter(torch.zeros(50, 60))  # gaps, some longer than a byte
        self.blocks = nn.Parameter(torch.zeros(30, 40, dtype=torch.float16))  # blocks
        self.pairs = nn.Parameter(torch.zeros(9, 72, 2, dtype=torch.float64))  # 2:4 over channels
        self.bytes = nn.Parameter(torch.zeros(40, 40))  # int8, bitmap
        self.halves = nn.Parameter(torch.zeros(40, 41), requires_grad=False)  # int4, 1:4, odd count
        self.register_buffer("kept", torch.zeros(33, 33, dtype=torch.bfloat16))  # bitmap
        self.dense = nn.Parameter(torch.zeros(20, 20))  # named, but full of values

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.bits.sum() + self.blocks.float().sum()


HINTS: dict[str, Any] = {
    "tied": {},
    "rare": {},
    "blocks": {"block": [4, 8], "layout": "flat", "axis": 1},
    "pairs": {"n": 2, "m": 4, "layout": "channels", "axis": 1},
    "bytes": {"block": [3, 3], "layout": "channels", "axis": 1},
    "halves": {"n": 1, "m": 4, "layout": "flat", "axis": 0},
    "kept": {},
    "dense": {},
}


def holder(seed: int = 0) -> Holder:
    """Return it with zeros in the patterns of :data:`HINTS`, negative zeros, infinities and NaN."""
    generator = torch.Generator().manual_seed(seed)

    def few(*shape: int, share: float) -> torch.Tensor:
        return torch.where(torch.rand(shape, generator=generator) < share, torch.randn(shape, generator=generator), 0.0)

    model = Holder()
    bits = few(8, 6, 3, 3, share=0.2)
    bits.view(-1)[:4] = torch.tensor([-0.0, float("inf"), float("nan"), 0.0])
    model.bits = model.tied = nn.Parameter(bits.to(memory_format=torch.channels_last))
    model.rare = nn.Parameter(few(50, 60, share=0.02))
    model.rare.data[10:20] = 0
    whole = few(8, 5, share=0.3).repeat_interleave(4, 0).repeat_interleave(8, 1)[:30]
    model.blocks = nn.Parameter(torch.where(whole != 0, torch.randn(30, 40, generator=generator), 0.0).half())
    order = torch.rand(9, 72, 2, generator=generator).view(9, 18, 4, 2).argsort(2).argsort(2).view(9, 72, 2)
    model.pairs = nn.Parameter(torch.where(order < 2, torch.randn(9, 72, 2, generator=generator).double(), 0.0))
    integers = torch.randint(-127, 128, (40, 40), generator=generator) * (torch.rand(40, 40, generator=generator) < 0.2)
    model.bytes = nn.Parameter(integers * 0.25)
    one = torch.rand(41, 40, generator=generator).view(41, 10, 4).argsort(2).view(41, 40).T < 1
    model.halves = nn.Parameter(torch.randint(-8, 8, (40, 41), generator=generator) * one * 0.5, requires_grad=False)
    model.kept = few(33, 33, share=0.2).bfloat16()
    model.dense = nn.Parameter(few(20, 20, share=1.0))
    return model.eval()


def registry() -> Registry:
    found = kit.registry()
    found.register("models", "test/holder", Holder, plugin="test")
    return found


def workload(key: str = "sparse") -> Workload:
    """Return the workload; with another key than ``sparse`` the record means nothing to the writer."""
    model = holder()
    schemes = {
        "bytes": kit.scheme("int8", "per_tensor", axis=None, scale="a"),
        "halves": kit.scheme("int4", "per_tensor", axis=None, scale="b"),
    }
    scales = {"a": torch.tensor(0.25), "b": torch.tensor(0.5)}
    base = Workload(model, (torch.ones(2, 3),), builder=BuilderRef("test/holder"))
    return base.with_model(
        model, Transform("test.grid", 1, {key: HINTS}), Transform("test.grid", 1, {"schemes": schemes}, scales)
    )


def save_holder(path: Path, key: str = "sparse") -> Any:
    return save(workload(key), path, parity=False)
