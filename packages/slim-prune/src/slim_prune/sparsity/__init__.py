"""Sparsity: single weights, blocks, or N of M neighbours at zero. The model keeps its shapes.

    from slim_prune import sparsity

    plan = sparsity.plan(model, sparsity=0.9)            # data: inspect it, save it, compare it
    model = plan.apply(model)                            # a copy with zeros
    with plan.masks.attach(model, optimizer):            # train on; the zeros stay
        ...

Zeros make the checkpoint smaller. They make a model faster only on runtimes with kernels for them: see the guide's
table. To make a model faster everywhere, remove whole channels with :func:`slim_prune.plan`.

Importing this package imports no torch: names resolve when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slim_prune.sparsity.callbacks import GradualSparsity as GradualSparsity
    from slim_prune.sparsity.callbacks import KeepMasks as KeepMasks
    from slim_prune.sparsity.errors import SparsityError as SparsityError
    from slim_prune.sparsity.gradual import Gradual as Gradual
    from slim_prune.sparsity.masks import SparsityHandle as SparsityHandle
    from slim_prune.sparsity.masks import SparsityMasks as SparsityMasks
    from slim_prune.sparsity.planning import plan as plan
    from slim_prune.sparsity.schedule import CubicSchedule as CubicSchedule
    from slim_prune.sparsity.schedule import cubic as cubic
    from slim_prune.sparsity.schemes import NM as NM
    from slim_prune.sparsity.schemes import Block as Block
    from slim_prune.sparsity.schemes import Unstructured as Unstructured
    from slim_prune.sparsity.sparsity_plan import SparsityPlan as SparsityPlan
    from slim_prune.sparsity.undo import SparsityRollback as SparsityRollback

_LAZY = {
    "Block": "schemes",
    "CubicSchedule": "schedule",
    "Gradual": "gradual",
    "GradualSparsity": "callbacks",
    "KeepMasks": "callbacks",
    "NM": "schemes",
    "SparsityError": "errors",
    "SparsityHandle": "masks",
    "SparsityMasks": "masks",
    "SparsityPlan": "sparsity_plan",
    "SparsityRollback": "undo",
    "Unstructured": "schemes",
    "cubic": "schedule",
    "plan": "planning",
}

__all__ = [*_LAZY]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"slim_prune.sparsity.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'slim_prune.sparsity' has no attribute {name!r}")
