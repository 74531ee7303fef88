"""``scores()``: what a criterion says of every channel group of a model, without a plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from slim_core.graph import analyse
from slim_core.graph.isolate import collector_paused, unwrap
from slim_core.graph.types import ChannelGroup, Coupling
from slim_core.progress import Progress, SilentProgress
from slim_core.workload import DataSource, Inputs, Task
from slim_prune import importance as importances
from slim_prune.context import Context
from slim_prune.edits import state_of
from slim_prune.errors import PlanError
from slim_prune.importance.aggregate import Tensors

if TYPE_CHECKING:
    from slim_core.registry import Registry


@collector_paused()
def scores(
    model: nn.Module,
    example_inputs: Inputs,
    importance: str | Mapping[str, Any] | importances.Importance | importances.NeedsData = "l1",
    *,
    task: Task | None = None,
    train: DataSource | None = None,
    val: DataSource | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    coupling: Coupling | None = None,
    registry: Registry | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Return the scores of every channel group by name: ``(units,)`` each. The model is not changed.

    Args:
        model: any model whose forward runs on ``example_inputs``.
        example_inputs: positional inputs (tuple, batch first), keyword inputs (mapping) or one tensor.
        importance: a criterion's name, a mapping with its options, a function, or an object with ``prepare``.
        task: loss and metrics, for criteria that look at data.
        train: training batches, for these.
        val: validation batches, for these.
        seed: of everything random.
        progress: where long work reports to.
        coupling: the analysis of this very model, when it has been made already.
        registry: where plugins' criteria are looked up (default: built-in names first, then all installed plugins).

    Raises:
        UnknownNameError: nobody registered the criterion.
        ModelError: the model does not run on its inputs.
        PlanError: data are missing, or the criterion gave no usable scores.
    """
    label, criterion = importances.resolve(importance, registry)
    importances.check_data(label, criterion, task=task, train=train, val=val)
    model = unwrap(model)
    context = Context(
        model=model,
        example_inputs=example_inputs,
        coupling=coupling if coupling is not None else analyse(model, example_inputs, registry=registry),
        tensors=Tensors({name: tensor.detach() for name, tensor in state_of(model).items()}),
        score=_not_yet,
        task=task,
        train=train,
        val=val,
        seed=seed,
        progress=progress or SilentProgress(),
        registry=registry,
    )
    function = criterion.prepare(context) if hasattr(criterion, "prepare") else criterion
    return {group.name: importances.score(label, function, group, context.tensors) for group in context.coupling.groups}


def _not_yet(group: ChannelGroup) -> NDArray[np.float64]:
    raise PlanError(f"a criterion asks for the scores of '{group.name}' while it is being prepared")
