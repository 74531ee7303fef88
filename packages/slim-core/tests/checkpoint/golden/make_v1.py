"""Writes ``v1.safetensors``, the golden file of format version 1. It was run once; the file is read for ever.

    python packages/slim-core/tests/checkpoint/golden/make_v1.py OUT.safetensors

Every number is a small multiple of a power of two, so that the model's output is exact on every machine.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from slim_core.checkpoint import save
from slim_core.registry import Registry
from slim_core.workload import BuilderRef, Transform, Workload

RECIPE = {"name": "golden", "steps": [{"kind": "golden.keep", "budget": {"macs": 0.5}}], "seed": 7}
METRICS = {"accuracy": 0.9375, "loss": float("inf"), "images": 640}
PRODUCERS = {"slim-core": "0.1.0.dev0", "torch": "2.13.0"}


class GoldenNet(nn.Module):
    """A convolution, tied linear layers, and a buffer of every kind."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, width, 3, padding=1)
        self.left = nn.Linear(width, 3)
        self.right = nn.Linear(width, 3, bias=False)
        self.right.weight = self.left.weight
        self.register_buffer("gain", torch.tensor(0.5))
        self.register_buffer("mask", torch.tensor([True, False, True]))
        self.register_buffer("halves", torch.tensor([1.5, -2.0, 0.25], dtype=torch.bfloat16))
        self.register_buffer("count", torch.tensor([1, 2, 3]))
        self.register_buffer("ramp", torch.arange(3.0), persistent=False)

    def forward(self, image: torch.Tensor, shift: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.conv(image).sum((2, 3)) / 4  # (N, width)
        both = self.left(x) * self.gain + torch.where(self.mask, self.right(x), self.ramp)
        return {"logits": both + shift[:, None] + self.halves.float(), "count": self.count * 2}


class GoldenKeep:
    """Keeps the recorded channels of the convolution."""

    def replay(self, model: nn.Module, transform: Transform, example_inputs: Any) -> nn.Module:
        kept = transform.tensors["kept"].long().to(model.conv.weight.device)
        model.conv.weight = nn.Parameter(model.conv.weight.detach()[kept])
        model.conv.bias = nn.Parameter(model.conv.bias.detach()[kept])
        model.left.weight = model.right.weight = nn.Parameter(model.left.weight.detach()[:, kept])
        return model


class GoldenGrid:
    """Changes no shape."""

    def replay(self, model: nn.Module, transform: Transform, example_inputs: Any) -> nn.Module:
        return model


def registry() -> Registry:
    found = Registry()
    found.register("models", "golden/net", GoldenNet, plugin="golden")
    found.register("transforms", "golden.keep", GoldenKeep(), plugin="golden")
    found.register("transforms", "golden.grid", GoldenGrid(), plugin="golden")
    return found


def conv_integers() -> torch.Tensor:
    return (torch.arange(4 * 2 * 3 * 3) * 37 % 31 - 15).reshape(4, 2, 3, 3)


def left_integers() -> torch.Tensor:
    return (torch.arange(3 * 4) * 5 % 16 - 8).reshape(3, 4)


def workload() -> Workload:
    model = GoldenNet()
    kept = torch.tensor([0, 3, 4, 7], dtype=torch.int32)
    keep = Transform("golden.keep", 1, {"groups": [{"name": "conv", "kept": 4, "total": 8}]}, {"kept": kept})
    model = GoldenKeep().replay(model, keep, None)
    scale = torch.tensor([0.25, 0.5, 0.25, 1.0])
    zero = torch.tensor([0, 3, -5, 7], dtype=torch.int32)
    groups = torch.tensor([[0.5, 1.0], [1.0, 0.5], [2.0, 1.0]])
    floats = (conv_integers() - zero.view(4, 1, 1, 1)).float() * scale.view(4, 1, 1, 1)
    model.conv.weight = nn.Parameter(floats.to(memory_format=torch.channels_last))
    model.conv.bias = nn.Parameter(torch.tensor([0.0, 1.0, -1.0, 2.5]), requires_grad=False)
    model.left.weight = model.right.weight = nn.Parameter(left_integers().float() * groups[:, [0, 0, 1, 1]])
    model.left.bias = nn.Parameter(torch.tensor([0.5, -0.5, 4.0]))
    schemes = {
        "conv.weight": {"bits": 8, "symmetric": False, "granularity": "per_channel", "axis": 0, "packing": "int8",
                        "scale": "conv.scale", "zero_point": "conv.zero_point"},
        "left.weight": {"bits": 4, "symmetric": True, "granularity": "per_group", "axis": 1, "group_size": 2,
                        "packing": "int4", "scale": "left.scale", "zero_point": None},
    }  # fmt: skip
    tensors = {"conv.scale": scale, "conv.zero_point": zero, "left.scale": groups}
    grid = Transform("golden.grid", 3, {"schemes": schemes}, tensors)
    inputs = {"image": torch.zeros(3, 2, 2, 2), "shift": torch.tensor([5, -7, 9])}
    return Workload(model.eval(), inputs, builder=BuilderRef("golden/net", {"width": 8}), transforms=(keep, grid))


if __name__ == "__main__":
    save(workload(), Path(sys.argv[1]), recipe=RECIPE, metrics=METRICS, producers=PRODUCERS)
