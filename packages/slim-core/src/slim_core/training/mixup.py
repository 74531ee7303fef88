"""Mixup (Zhang et al., 2017, arXiv 1710.09412): convex combinations of pairs of samples and their targets."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from slim_core.data import batch_size, map_tensors


def mixup(inputs: Any, targets: Tensor, share: float, partners: Tensor, num_classes: int) -> tuple[Any, Tensor]:
    """Return ``share * sample + (1 - share) * partner`` for inputs and targets.

    Args:
        inputs: a batch of inputs of any structure; only its floating-point tensors are mixed.
        targets: class numbers ``(N,)`` or probabilities ``(N, num_classes)``.
        share: weight of the sample itself, from 0 to 1.
        partners: for each sample the number of its partner in the batch, ``(N,)``.
        num_classes: number of classes.
    """
    if not targets.is_floating_point():
        targets = functional.one_hot(targets, num_classes).float()

    def mix(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point() or tensor.ndim == 0 or len(tensor) != len(partners):
            return tensor
        return torch.lerp(tensor[partners.to(tensor.device)], tensor, share)

    return map_tensors(inputs, mix), mix(targets)


def mixup_draw(alpha: float, size: int, seed: int, step: int) -> tuple[float, Tensor]:
    """Draw the share from Beta(alpha, alpha) and a random partner for each sample: a pure function of seed and step."""
    rng = np.random.default_rng([seed & 0xFFFF_FFFF, step, 0x6D69])
    share = float(rng.beta(alpha, alpha))
    return share, torch.from_numpy(rng.permutation(size))


def mixup_batch(task: Any, batch: Any, alpha: float, seed: int, step: int, num_classes: int) -> Any:
    """Mix a batch whose task knows its targets (``targets`` and ``with_pair``, as the classification task does)."""
    share, partners = mixup_draw(alpha, batch_size(batch), seed, step)
    inputs, targets = mixup(task.inputs(batch), task.targets(batch), share, partners, num_classes)
    return task.with_pair(batch, inputs, targets)
