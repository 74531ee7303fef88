"""When the channels go: all at once, in steps with training between, softly, or in the middle of a training run.

Four ways, one final budget:

* one shot: :func:`slim_prune.plan` and :meth:`~slim_prune.PrunePlan.apply`;
* :class:`Stepwise`: several cuts, each planned anew from the weights of the moment, with whatever training between
  them; :func:`prune_iteratively` does it for a workload, resumably;
* :class:`SoftPruning`: channels are set to zero after each epoch and go on learning; one cut at the end;
* :class:`GradualPruning`: cuts, or masks, while ``fit`` is running.

The last two are callbacks of :func:`slim_core.training.fit`; their methods also work in a user's own loop. As recipes
write it: a block ``schedule:`` of any structured pruning step (``config.py``).
"""

from __future__ import annotations

from slim_prune.schedules.gradual import GradualPruning
from slim_prune.schedules.iterative import IterativeResult, prune_iteratively
from slim_prune.schedules.masks import MaskCallback, Masks
from slim_prune.schedules.path import asymptotic, limit_at, shares
from slim_prune.schedules.soft import SoftPruning, silence_
from slim_prune.schedules.stepwise import Stepwise

__all__ = [
    "GradualPruning",
    "IterativeResult",
    "MaskCallback",
    "Masks",
    "SoftPruning",
    "Stepwise",
    "asymptotic",
    "limit_at",
    "prune_iteratively",
    "shares",
    "silence_",
]
