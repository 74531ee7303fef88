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
    from slim_prune.errors import PlanError as PlanError
    from slim_prune.planning import plan as plan
    from slim_prune.prune_plan import PrunePlan as PrunePlan
    from slim_prune.recalibration import recalibrate as recalibrate
    from slim_prune.rollback import Rollback as Rollback

_LAZY = {
    "PlanError": "slim_prune.errors",
    "PrunePlan": "slim_prune.prune_plan",
    "Rollback": "slim_prune.rollback",
    "plan": "slim_prune.planning",
    "recalibrate": "slim_prune.recalibration",
}

__all__ = [*_LAZY]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'slim_prune' has no attribute {name!r}")
