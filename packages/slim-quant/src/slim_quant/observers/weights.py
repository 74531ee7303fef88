"""Ranges of weights, which are all there at once: exact, and per channel."""

from __future__ import annotations

import torch
from torch import Tensor

from slim_core.errors import UnknownNameError
from slim_quant.schemes import Scheme, on_grid, qparams

WEIGHT_OBSERVERS = ("abs_max", "mse")


def weight_range(weight: Tensor, scheme: Scheme, axis: int, observer: str = "abs_max") -> tuple[Tensor, Tensor]:
    """Return the lowest and highest value to represent: 0-dimensional, or one per channel of ``axis``.

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
    rows = (
        weight.detach().transpose(0, axis).flatten(1) if scheme.granularity == "per_channel" else weight.reshape(1, -1)
    )
    low, high = rows.amin(1), rows.amax(1)
    if scheme.symmetric:
        high = torch.maximum(-low, high)
        low = -high
    if observer == "mse" and not weight.is_meta:
        low, high = _least_error(rows, low, high, scheme)
    return (low, high) if scheme.granularity == "per_channel" else (low[0], high[0])


def _least_error(rows: Tensor, low: Tensor, high: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    best = torch.full_like(low, float("inf"))
    best_low, best_high = low, high
    for share in torch.linspace(1, 0.2, 100):
        scale, zero_point = qparams(low * share, high * share, scheme)
        error = (on_grid(rows, scale, zero_point, scheme) - rows).square().sum(1)
        better = error < best
        best = torch.where(better, error, best)
        best_low, best_high = torch.where(better, low * share, best_low), torch.where(better, high * share, best_high)
    return best_low, best_high
