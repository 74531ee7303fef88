"""The oracle of surgery in the middle of a training: the same training at full size, with masks written by hand.

Nothing of the code under test is used: what belongs to a removed unit follows from the coupling, and is zeroed in
weights, gradients, optimizer state and average.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import nn

from slim_core.graph.masking import divides
from slim_core.testing.oracle import as_double
from slim_core.workload import call, tensors_of

#: With ``{}``: PyTorch's defaults. A larger ``eps`` keeps adaptive optimizers from blowing up rounding errors where a
#: gradient is zero in exact arithmetic (a bias in front of a batch norm).
OPTIMIZERS = {
    "sgd": lambda p, eps: torch.optim.SGD(p, 0.01),
    "momentum": lambda p, eps: torch.optim.SGD(p, 0.01, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": lambda p, eps: torch.optim.Adam(p, 1e-3, weight_decay=0.01, **eps),
    "amsgrad": lambda p, eps: torch.optim.Adam(p, 1e-3, amsgrad=True, **eps),
    "adamw": lambda p, eps: torch.optim.AdamW(p, 1e-3, weight_decay=0.1, **eps),
    "rmsprop": lambda p, eps: torch.optim.RMSprop(p, 1e-4, momentum=0.9, centered=True, weight_decay=0.01, **eps),
    "adagrad": lambda p, eps: torch.optim.Adagrad(p, 1e-3, weight_decay=0.01, **eps),
    "adadelta": lambda p, eps: torch.optim.Adadelta(p, 0.1, weight_decay=0.01, **eps),
    "adamax": lambda p, eps: torch.optim.Adamax(p, 1e-3, **eps),
    "nadam": lambda p, eps: torch.optim.NAdam(p, 1e-3, **eps),
    "radam": lambda p, eps: torch.optim.RAdam(p, 1e-3, **eps),
    "asgd": lambda p, eps: torch.optim.ASGD(p, 1e-3, t0=1),
}


def without_chance(model: nn.Module) -> nn.Module:
    """Turn dropout off: its random masks depend on the shapes."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        if isinstance(module, nn.MultiheadAttention | nn.RNNBase):
            module.dropout = 0.0
    return model


def groups_of(model: nn.Module) -> list[dict]:
    """Two parameter groups with options of their own."""
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    vectors = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    return [group for group in ({"params": matrices}, {"params": vectors, "weight_decay": 0.0}) if group["params"]]


def made(name: str, model: nn.Module, eps: float | None = None) -> torch.optim.Optimizer:
    groups = groups_of(model)
    if name in ("nadam", "radam", "adamax", "asgd", "sgd", "amsgrad"):
        groups = [{"params": group["params"]} for group in groups]
    return OPTIMIZERS[name](groups, {} if eps is None else {"eps": eps})


def twin_of(model: nn.Module, optimizer: torch.optim.Optimizer, name: str, eps: float | None = None):
    """Return a copy of a model in training, with its gradients and an optimizer in the same state."""
    other = copy.deepcopy(model)
    for parameter, original in zip(other.parameters(), model.parameters(), strict=True):
        parameter.grad = None if original.grad is None else original.grad.clone()
    again = made(name, other, eps)
    for parameter, original in zip(other.parameters(), model.parameters(), strict=True):
        if original in optimizer.state:  # not load_state_dict, which changes the dtype of some state
            again.state[parameter] = copy.deepcopy(optimizer.state[original])
    return other, again


class HandMasks:
    """Zeroes removed units by the coupling alone."""

    def __init__(self, model: nn.Module, coupling, kept) -> None:
        tensors = {
            **dict(model.named_buffers(remove_duplicate=False)),
            **dict(model.named_parameters(remove_duplicate=False)),
        }
        self.model = model
        self.places = []
        for group in coupling.groups:
            removed = np.setdiff1d(np.arange(group.units), kept.get(group.name, np.arange(group.units)))
            if len(removed):
                for member in group.members:
                    index = torch.from_numpy(member.indices[removed].reshape(-1))
                    self.places.append((member.name, tensors[member.name], member.dim, index))

    def weights(self) -> None:
        with torch.no_grad():
            for name, tensor, dim, index in self.places:
                if not divides(name, dim):
                    tensor.index_fill_(dim, index, 0)

    def gradients(self) -> None:
        for _, tensor, dim, index in self.places:
            if tensor.grad is not None:
                tensor.grad.index_fill_(dim, index, 0)

    def state(self, optimizer: torch.optim.Optimizer) -> None:
        for _, tensor, dim, index in self.places:
            for value in optimizer.state.get(tensor, {}).values():
                if isinstance(value, torch.Tensor) and value.shape == tensor.shape:
                    value.index_fill_(dim, index, 0)

    def average(self, average: dict[str, torch.Tensor]) -> None:
        for name, _, dim, index in self.places:
            if name in average and not divides(name, dim):
                average[name].detach().index_fill_(dim, index, 0)


def train_step(model, optimizer, inputs, number: int, *, masks: HandMasks | None = None, clip: float | None = 1.0):
    """One step on a loss that depends on ``number``; returns the loss."""
    model.train()
    outputs = [out for out in tensors_of(call(model, as_double(inputs))) if out.is_floating_point()]
    generator = torch.Generator().manual_seed(number)
    loss = sum(
        (out - torch.randn(out.shape, generator=generator, dtype=torch.float64)).square().mean() for out in outputs
    )
    optimizer.zero_grad()
    loss.backward()
    if masks is not None:
        masks.gradients()
    if clip is not None:
        nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    if masks is not None:
        masks.weights()
    return float(loss.detach())


def same(left, right, tolerance: float) -> bool:
    """Whether two tensors agree, relative to the largest value (or absolutely, for tiny ones)."""
    if left.shape != right.shape:
        return False
    if left.numel() == 0 or not left.is_floating_point():
        return bool((left == right).all())
    return float((left - right).abs().max()) <= tolerance * max(1.0, float(right.abs().max()))
