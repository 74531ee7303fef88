"""A tiny workload and ways to compare models exactly: what the contracts run on. No data set, no pytest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from slim_core.tasks import ClassificationTask
from slim_core.workload import Workload


class TinyNet(nn.Module):
    """Convolutions with batch norm, one of them depthwise, a residual add, and two linear layers; 4 classes."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.hidden = nn.Linear(width, 2 * width)
        self.head = nn.Linear(2 * width, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)  # (N, width, H, W)
        x = torch.relu(x + self.norm(self.depthwise(x)))
        x = x.mean((2, 3))  # (N, width)
        return self.head(torch.relu(self.hidden(x)))  # type: ignore[no-any-return]


def tiny_workload(*, width: int = 16, seed: int = 0) -> Workload:
    """Return a workload that every technique should be able to run on in a moment: 64 pictures of 3x8x8, 4 classes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TinyNet(width)
        # Statistics and affine terms as after training: ones and zeros would hide mistakes.
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.2, 0.2)
                module.running_mean = torch.rand_like(module.weight).detach() * 0.2
                module.running_var = torch.rand_like(module.weight).detach() + 0.5
    model.eval()
    images = torch.rand(64, 3, 8, 8, generator=generator)
    targets = torch.randint(0, 4, (64,), generator=generator)
    batches = [(images[i : i + 16], targets[i : i + 16]) for i in range(0, 64, 16)]
    return Workload(model, (images[:2],), task=ClassificationTask(), train=batches, val=batches)


def fingerprint(model: nn.Module) -> dict[str, str]:
    """Return everything of a model that must not change behind its owner's back, by name, as comparable text.

    Parameters and buffers bit for bit, with dtype, strides and ``requires_grad``; each module's class, mode and number
    of hooks.
    """
    marks: dict[str, str] = {}
    for name, tensor in [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]:
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        kind = f"{tensor.dtype} {tuple(tensor.shape)} {tensor.stride()} grad={tensor.requires_grad}"
        marks[f"tensor {name}"] = f"{kind} {hashlib.sha256(data).hexdigest()}"
    for name, module in model.named_modules(remove_duplicate=False):
        hooks = sum(len(value) for key, value in vars(module).items() if key.endswith("_hooks") and value)
        marks[f"module {name}"] = f"{type(module).__qualname__} training={module.training} hooks={hooks}"
    return marks


def differences(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Return the names that differ between two fingerprints."""
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def on_meta(inputs: Any) -> Any:
    """Return nested inputs with every tensor on the meta device."""
    if isinstance(inputs, torch.Tensor):
        return inputs.to("meta")
    if isinstance(inputs, Mapping):
        return {key: on_meta(value) for key, value in inputs.items()}
    if isinstance(inputs, tuple | list):
        return type(inputs)(on_meta(value) for value in inputs)
    return inputs


def layout(model: nn.Module) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return shape and dtype of every entry of the model's state dict, by name."""
    entries: dict[str, Any] = model.state_dict()
    return {name: (tuple(value.shape), str(value.dtype)) for name, value in entries.items()}
