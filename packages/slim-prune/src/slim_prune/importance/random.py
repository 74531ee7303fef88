"""Random scores: the baseline that a criterion has to beat."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from slim_core.graph.types import ChannelGroup
from slim_prune.importance import Importance

if TYPE_CHECKING:
    from slim_prune.context import Context


def random(group: ChannelGroup, tensors: Mapping[str, Tensor], *, seed: int = 0) -> Tensor:
    """Uniform scores that depend on ``seed`` and the group's name alone: ``(units,)``."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}:{group.name}".encode()))
    return torch.rand(group.units, generator=generator)


class Random:
    """Uniform scores, a function of the seed and the group's name: ``(units,)``. Needs no weights.

    Args:
        seed: of the scores; unset: the plan's.
    """

    label: ClassVar[str] = "random"
    needs: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *, seed: int | None = None) -> None:
        self._seed = seed

    def prepare(self, context: Context) -> Importance:
        """Take the plan's seed where there is no other."""
        return partial(random, seed=context.seed if self._seed is None else self._seed)
