"""Random scores: the baseline that a criterion has to beat."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import torch
from torch import Tensor

from slim_core.graph.types import ChannelGroup


def random(group: ChannelGroup, tensors: Mapping[str, Tensor], *, seed: int = 0) -> Tensor:
    """Uniform scores that depend on ``seed`` and the group's name alone: ``(units,)``."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}:{group.name}".encode()))
    return torch.rand(group.units, generator=generator)
