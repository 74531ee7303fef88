"""Ranges of weights, which are all there at once: exact, and per channel."""

from __future__ import annotations

import torch
from torch import Tensor

from slim_core.errors import UnknownNameError
from slim_quant.schemes import Scheme, on_grid, qparams, scale_shape

WEIGHT_OBSERVERS = ("abs_max", "mse")


def weight_range(weight: Tensor, scheme: Scheme, axis: int, observer: str = "abs_max") -> tuple[Tensor, Tensor]:
    """Return the lowest and highest value to represent: 0-dimensional, one per channel of ``axis``, or one per group
    along ``axis`` in the shape of the scales.

    Args:
        weight: the weight.
        scheme: bits, symmetry, granularity.
        axis: the channel axis.
        observer: ``"abs_max"`` (all values representable) or ``"mse"`` (least squared error, by a search over 100
            shares of the extremes).

    Raises:
        UnknownNameError: there is no such observer.
    """
    if observer not in WEIGHT_OBSERVERS:
        raise UnknownNameError(f"unknown weight observer '{observer}'", hint=f"known: {', '.join(WEIGHT_OBSERVERS)}")
    rows = _rows(weight.detach(), scheme, axis)
    low, high = rows.amin(1), rows.amax(1)
    if scheme.symmetric:
        high = torch.maximum(-low, high)
        low = -high
    if observer == "mse" and not weight.is_meta:
        low, high = _least_error(rows, low, high, scheme)
    shape = scale_shape(tuple(weight.shape), scheme, axis)
    if scheme.granularity == "per_group":  # groups came last
        shape = (*shape[:axis], *shape[axis + 1 :], shape[axis])
        return low.view(shape).movedim(-1, axis), high.view(shape).movedim(-1, axis)
    return low.view(shape), high.view(shape)


def _rows(weight: Tensor, scheme: Scheme, axis: int) -> Tensor:
    """Return a row for each scale. A last group that is shorter is filled with zeros, which every range holds."""
    if scheme.granularity == "per_tensor":
        return weight.reshape(1, -1)
    if scheme.granularity == "per_channel":
        return weight.transpose(0, axis).flatten(1)
    size = int(scheme.group_size or 1)
    last = weight.movedim(axis, -1)
    return torch.nn.functional.pad(last, (0, -last.shape[-1] % size)).reshape(-1, size)


def _least_error(rows: Tensor, low: Tensor, high: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    plain = Scheme(scheme.bits, scheme.symmetric, "per_channel")
    best = torch.full_like(low, float("inf"))
    best_low, best_high = low, high
    for share in torch.linspace(1, 0.2, 100):
        scale, zero_point = qparams(low * share, high * share, scheme)
        error = (on_grid(rows, scale, zero_point, plain) - rows).square().sum(1)
        better = error < best
        best = torch.where(better, error, best)
        best_low, best_high = torch.where(better, low * share, best_low), torch.where(better, high * share, best_high)
    return best_low, best_high
