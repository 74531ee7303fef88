"""Normalization and the standard augmentation of small pictures, on whole batches of tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Normalize:
    """``(x - mean) / std``, in the units of ``x``; the result is ``float32``.

    Args:
        mean: mean of the training pictures.
        std: standard deviation of the training pictures.
    """

    mean: float
    std: float

    def __call__(self, pictures: Tensor) -> Tensor:
        return (pictures.float() - self.mean).mul_(1 / self.std)


@dataclass(frozen=True, slots=True)
class CropFlip:
    """Shift each picture at random, and mirror half of them left to right.

    A picture is padded with the value of its first pixel's background (``fill``) and cropped to its old size
    at a random place, as usual on CIFAR.

    Args:
        padding: largest shift in pixels.
        flip: mirror half of the pictures.
        fill: what is padded with, after normalization.
    """

    padding: int
    flip: bool
    fill: float = 0.0

    def __call__(self, pictures: Tensor, generator: torch.Generator) -> Tensor:
        count, _, height, width = pictures.shape
        shifts = torch.randint(0, 2 * self.padding + 1, (2, count, 1), generator=generator)
        rows = shifts[0] + torch.arange(height)  # (N, H)
        columns = shifts[1] + torch.arange(width)  # (N, W)
        if self.flip:
            mirrored = torch.rand(count, 1, generator=generator) < 0.5
            columns = torch.where(mirrored, columns.flip(1), columns)
        padded = functional.pad(pictures, (self.padding,) * 4, value=self.fill)
        batch = torch.arange(count)[:, None, None]
        return padded[batch, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)  # (N, C, H, W)
