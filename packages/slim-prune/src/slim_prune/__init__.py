"""slim-prune: structured pruning of any PyTorch model, as data first and surgery second.

Getting started::

    import slim_prune

    plan = slim_prune.plan(model, example_inputs, budget={"macs": 0.5})  # data: inspect it, save it, compare it
    plan.show()
    model = plan.apply(model)                                            # same class, smaller

Importing this package imports no torch: names resolve when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slim_prune.composition import compose as compose
    from slim_prune.errors import PlanError as PlanError
    from slim_prune.evolution.result import SearchResult as SearchResult
    from slim_prune.evolution.search import search as search
    from slim_prune.importance.scoring import scores as scores
    from slim_prune.importance.slimming import Slimming as Slimming
    from slim_prune.importance.slimming import norm_scales as norm_scales
    from slim_prune.importance.slimming import scale_penalty as scale_penalty
    from slim_prune.planning import plan as plan
    from slim_prune.prune_plan import PrunePlan as PrunePlan
    from slim_prune.recalibration import recalibrate as recalibrate
    from slim_prune.rollback import Rollback as Rollback
    from slim_prune.schedules.gradual import GradualPruning as GradualPruning
    from slim_prune.schedules.iterative import prune_iteratively as prune_iteratively
    from slim_prune.schedules.masks import MaskCallback as MaskCallback
    from slim_prune.schedules.soft import SoftPruning as SoftPruning
    from slim_prune.schedules.stepwise import Stepwise as Stepwise
    from slim_prune.sensitivity.analysis import sensitivity as sensitivity
    from slim_prune.sensitivity.curves import Curves as Curves
    from slim_prune.sensitivity.stopping import EarlyStop as EarlyStop

_LAZY = {
    "Curves": "slim_prune.sensitivity.curves",
    "EarlyStop": "slim_prune.sensitivity.stopping",
    "GradualPruning": "slim_prune.schedules.gradual",
    "MaskCallback": "slim_prune.schedules.masks",
    "PlanError": "slim_prune.errors",
    "PrunePlan": "slim_prune.prune_plan",
    "Rollback": "slim_prune.rollback",
    "SearchResult": "slim_prune.evolution.result",
    "Slimming": "slim_prune.importance.slimming",
    "SoftPruning": "slim_prune.schedules.soft",
    "Stepwise": "slim_prune.schedules.stepwise",
    "compose": "slim_prune.composition",
    "norm_scales": "slim_prune.importance.slimming",
    "plan": "slim_prune.planning",
    "prune_iteratively": "slim_prune.schedules.iterative",
    "recalibrate": "slim_prune.recalibration",
    "scale_penalty": "slim_prune.importance.slimming",
    "scores": "slim_prune.importance.scoring",
    "search": "slim_prune.evolution.search",
    "sensitivity": "slim_prune.sensitivity.analysis",
}

__all__ = [*_LAZY]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'slim_prune' has no attribute {name!r}")
