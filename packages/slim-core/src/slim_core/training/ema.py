"""Exponential moving average of a model's parameters and floating-point buffers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """``average = d * average + (1 - d) * value`` after each step; buffers that are not floats are copied.

    The decay ``d`` starts small and grows, ``min(decay, (1 + n) / (10 + n))`` at update ``n`` (from 0), so that short
    runs are not dominated by the starting weights.

    Args:
        model: whose parameters and buffers are averaged; the average starts as a copy of them.
        decay: the decay in the long run.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.average = {name: tensor.detach().clone() for name, tensor in _tensors(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take the model's present values in."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        averages: list[Tensor] = []
        values: list[Tensor] = []
        for name, tensor in _tensors(model).items():
            if tensor.is_floating_point():
                averages.append(self.average[name])
                values.append(tensor.detach())
            else:
                self.average[name].copy_(tensor)
        if averages:
            torch._foreach_lerp_(averages, values, 1 - decay)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Write the averages into the model."""
        for name, tensor in _tensors(model).items():
            tensor.copy_(self.average[name])

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Let the model hold the averages for a while."""
        kept = {name: tensor.detach().clone() for name, tensor in _tensors(model).items()}
        self.copy_to(model)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, tensor in _tensors(model).items():
                    tensor.copy_(kept[name])


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}
