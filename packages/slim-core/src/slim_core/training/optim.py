"""Optimizers from a configuration, with weight decay only where it belongs."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from slim_core.errors import ModelError
from slim_core.training.config import FitConfig

_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)


def parameter_groups(model: nn.Module, weight_decay: float, *, decay_all: bool = False) -> list[dict[str, Any]]:
    """Split the trainable parameters into those with and those without weight decay.

    Without decay are the parameters of norms, biases, and everything with fewer than two dimensions.

    Raises:
        ModelError: nothing is trainable.
    """
    norms = {id(p) for module in model.modules() if isinstance(module, _NORMS) for p in module.parameters()}
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        plain = parameter.ndim < 2 or id(parameter) in norms or name.rsplit(".", 1)[-1].endswith("bias")
        (free if plain and not decay_all else decayed).append(parameter)
    if not decayed and not free:
        raise ModelError(
            "the model has no trainable parameter", hint="set requires_grad on those that fit should change"
        )
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def build_optimizer(model: nn.Module, config: FitConfig) -> torch.optim.Optimizer:
    """Return the optimizer that ``config`` names, over the model's trainable parameters."""
    groups = parameter_groups(model, config.weight_decay, decay_all=config.decay_all)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr)
    nesterov = config.nesterov and config.momentum > 0
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=nesterov)
