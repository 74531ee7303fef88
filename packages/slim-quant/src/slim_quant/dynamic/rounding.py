"""Activations rounded with scales of the batch at hand, and products of integers. Pure functions.

Per tensor is what ONNX's ``DynamicQuantizeLinear`` computes: unsigned 8 bits with a zero point. Per token every vector
along the last dimension has a scale of its own: signed 8 bits, symmetric.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Activations = Literal["per_tensor", "per_token"]

UNSIGNED = 255
SIGNED = 127


def rounded(x: Tensor, activations: Activations = "per_tensor") -> tuple[Tensor, Tensor]:
    """Return integers, zero points taken away, in float32, and the scale: 0-dimensional, or ``(…, 1)`` per token."""
    if activations == "per_token":
        scale = token_scale(x)
        return torch.clamp(torch.round(x / scale), -SIGNED, SIGNED), scale
    if x.numel() == 0:
        return x, torch.ones((), device=x.device)
    low, high = x.amin().clamp(max=0.0), x.amax().clamp(min=0.0)
    scale = (high - low) / UNSIGNED
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero_point = torch.clamp(torch.round(-low / scale), 0, UNSIGNED)
    return torch.clamp(torch.round(x / scale) + zero_point, 0, UNSIGNED) - zero_point, scale


def token_scale(x: Tensor) -> Tensor:
    """Return the scale of each vector along the last dimension: ``(…, 1)``."""
    scale = x.abs().amax(-1, keepdim=True) / SIGNED
    return torch.where(scale == 0, torch.ones_like(scale), scale)


def integer_product(x: Tensor, weight: Tensor, scale: Tensor, activations: Activations = "per_tensor") -> Tensor:
    """Return ``x @ weight.T`` as a runtime computes it that rounds ``x`` first.

    The sums of integers are exact up to 2^24 in float32; beyond, they round as the runtime's conversion of its int32
    does.

    Args:
        x: ``(…, columns)``, float32.
        weight: integers in float32: ``(rows, columns)``.
        scale: of the weight: ``(rows, 1)`` or ``(1, 1)``.
        activations: how ``x`` is rounded.
    """
    integers, step = rounded(x, activations)
    product = F.linear(integers, weight)
    if activations == "per_token":
        return product * step * scale.reshape(-1)
    return product * (step * scale.reshape(-1))
