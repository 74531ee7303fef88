"""Small models, replayers of two test-local transforms, and a file that uses every field of the header."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from slim_core.checkpoint import save
from slim_core.registry import Registry
from slim_core.workload import BuilderRef, Transform, Workload


class Net(nn.Module):
    """A convolution with batch norm, tied linear layers, buffers of all kinds, and a plain tensor attribute."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.left = nn.Linear(width, 5)
        self.right = nn.Linear(width, 5)
        self.right.weight = self.left.weight
        self.register_buffer("gain", torch.tensor(1.5))  # no dimension
        self.register_buffer("mask", torch.tensor([True, False, True, True, False]))
        self.register_buffer("steps", torch.arange(5.0), persistent=False)
        self.register_buffer("empty", torch.empty(0, 3))
        self.offset = torch.linspace(0, 1, 5)  # neither a parameter nor a buffer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.conv(x))).mean((2, 3))  # (N, width)
        return self.left(x) * self.gain + torch.where(self.mask, self.right(x), self.steps) + self.offset


class Keep:
    """Keeps the recorded channels of ``conv``; a stand-in for a pruner's replayer."""

    def replay(self, model: nn.Module, transform: Transform, example_inputs: Any) -> nn.Module:
        return keep(model, transform.tensors["kept"].to(torch.int64))


class Grid:
    """Changes no shape: its record says on which grid the weights lie."""

    def replay(self, model: nn.Module, transform: Transform, example_inputs: Any) -> nn.Module:
        return model


def keep(model: nn.Module, kept: torch.Tensor) -> nn.Module:
    def cut(module: nn.Module, name: str, dim: int = 0) -> torch.Tensor:
        tensor = getattr(module, name)
        fresh = tensor.detach().index_select(dim, kept.to(tensor.device))
        value = nn.Parameter(fresh) if isinstance(tensor, nn.Parameter) else fresh
        setattr(module, name, value)
        return value

    for name in ("weight", "bias"):
        cut(model.conv, name)
    for name in ("weight", "bias", "running_mean", "running_var"):
        cut(model.norm, name)
    tied = model.right.weight is model.left.weight
    weight = cut(model.left, "weight", 1)
    if tied:
        model.right.weight = weight
    else:
        cut(model.right, "weight", 1)
    model.conv.out_channels = model.norm.num_features = model.left.in_features = model.right.in_features = len(kept)
    return model


def registry() -> Registry:
    found = Registry()
    found.register("models", "test/net", Net, plugin="test")
    found.register("transforms", "test.keep", Keep(), plugin="test")
    found.register("transforms", "test.grid", Grid, plugin="test")  # a class, as techniques are registered
    return found


def net(width: int = 6, seed: int = 0) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Net(width)
        for parameter in model.parameters():
            nn.init.normal_(parameter)
        model.norm.running_mean.uniform_(-1, 1)
        model.norm.running_var.uniform_(0.5, 2)
        model.norm.num_batches_tracked += 17
    return model.eval()


def workload(model: nn.Module | None = None, width: int = 6, **more: Any) -> Workload:
    inputs = more.pop("example_inputs", (torch.ones(4, 3, 4, 4),))
    model = net(width) if model is None else model
    return Workload(model, inputs, builder=BuilderRef("test/net", {"width": width}), **more)


def pruned() -> Workload:
    kept = torch.tensor([0, 2, 5], dtype=torch.int32)
    data = {"groups": [{"name": "conv", "kept": 3, "total": 6}], "importance": "l1"}
    base = workload()
    return base.with_model(keep(base.model, kept.long()), Transform("test.keep", 1, data, {"kept": kept}))


def scheme(packing: str = "int8", granularity: str = "per_channel", **more: Any) -> dict[str, Any]:
    found = {"bits": 4 if packing == "int4" else 8, "symmetric": True, "granularity": granularity, "axis": 0,
             "packing": packing, "scale": "scale", "zero_point": None}  # fmt: skip
    return {**found, **more}


def on_grid(shape: tuple[int, ...], low: int, high: int, scale: torch.Tensor, zero: torch.Tensor, seed: int = 0):
    """Return random integers of a shape, and the floats that they stand for; scale and zero must broadcast."""
    generator = torch.Generator().manual_seed(seed)
    integers = torch.randint(low, high + 1, shape, generator=generator)
    return integers, (integers - zero).to(torch.float32) * scale


def rich() -> Workload:
    """Return a pruned and quantized workload with mapping inputs, a frozen parameter and a channels-last weight."""
    made = pruned()
    model = made.model
    scales = torch.tensor([0.5, 0.25, 0.125])
    zeros = torch.tensor([3, 0, -7], dtype=torch.int32)
    _, weight = on_grid((3, 3, 3, 3), -128, 127, scales.view(3, 1, 1, 1), zeros.view(3, 1, 1, 1))
    model.conv.weight = nn.Parameter(weight.to(memory_format=torch.channels_last))
    group = torch.tensor([[0.5, 0.25], [1.0, 2.0], [0.125, 0.5], [1.0, 1.0], [0.25, 0.75]])
    _, tied = on_grid((5, 3), -8, 7, group[:, [0, 0, 1]], torch.tensor(0), seed=1)
    model.left.weight = model.right.weight = nn.Parameter(tied)
    model.norm.bias.requires_grad_(False)
    schemes = {
        "conv.weight": scheme(scale="c.scale", zero_point="c.zero", symmetric=False),
        "right.weight": scheme("int4", "per_group", axis=1, group_size=2, scale="tied.scale"),
    }
    tensors = {"c.scale": scales, "c.zero": zeros, "tied.scale": group}
    return made.with_model(model, Transform("test.grid", 2, {"schemes": schemes, "target": "cpu"}, tensors))


def save_rich(path: Path) -> None:
    save(rich(), path, recipe={"name": "rich", "steps": [{"kind": "x", "budget": 0.5}]},
         metrics={"accuracy": 0.75, "loss": float("nan")}, producers={"slim-core": "0.1.0"})  # fmt: skip


def split(raw: bytes) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """Return the container's header, the JSON under ``slim``, and the data of a file."""
    length = int.from_bytes(raw[:8], "little")
    container = json.loads(raw[8 : 8 + length])
    return container, json.loads(container["__metadata__"]["slim"]), raw[8 + length :]


def joined(container: dict[str, Any], slim: Any, data: bytes) -> bytes:
    """Return a file with another header, sealed anew; NaN and infinity are written as Python writes them."""
    if isinstance(slim, dict) and "sha256" in slim:
        text = json.dumps({**slim, "sha256": "0" * 64})
        slim = {**slim, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    container = {**container, "__metadata__": {"slim": slim if isinstance(slim, str) else json.dumps(slim)}}
    raw = json.dumps(container).encode()
    return len(raw).to_bytes(8, "little") + raw + data


def same_state(a: nn.Module, b: nn.Module) -> None:
    """Assert that two models hold the same tensors bit for bit, with the same ties and ``requires_grad``."""
    for method in ("named_parameters", "named_buffers"):
        mine = dict(getattr(a, method)(remove_duplicate=False))
        other = dict(getattr(b, method)(remove_duplicate=False))
        assert list(mine) == list(other)
        for name, tensor in mine.items():
            again = other[name]
            assert (tensor.dtype, tensor.shape, tensor.requires_grad) == (again.dtype, again.shape, again.requires_grad)
            assert tensor.stride() == again.stride() or math.prod(tensor.shape) == 0, name
            assert bits(tensor) == bits(again), name
        for one in mine:
            for two in mine:
                assert (mine[one] is mine[two]) == (other[one] is other[two]), (one, two)


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
