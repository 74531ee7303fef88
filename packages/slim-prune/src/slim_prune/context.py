"""``Context``: what data-driven importance criteria and allocations may look at, and where they report.

Not here: making one (``planning.py``), what allocations decide about (``allocation/problem.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from slim_core.graph.types import ChannelGroup, Coupling
from slim_core.progress import Progress, SilentProgress
from slim_core.workload import DataSource, Inputs, Task
from slim_prune.edits import Indices
from slim_prune.errors import PlanError
from slim_prune.importance.aggregate import Tensors

if TYPE_CHECKING:
    from slim_core.registry import Registry


@dataclass(frozen=True, eq=False)
class Context:
    """The surroundings of one plan.

    Args:
        model: the user's model, without wrappers. It must be left as it is: parameters, buffers, modes, gradients.
        example_inputs: inputs of one call of the model.
        coupling: the analysis of the model.
        tensors: parameters and buffers by state-dict name, detached.
        score: the checked importance scores of a group, ``(units,)``; worked out once for each group.
        task: loss and metrics, where the caller gave them.
        train: training batches, where the caller gave them.
        val: validation batches, where the caller gave them.
        folder: where state that can be resumed goes; ``None``: nothing is kept.
        seed: of everything random.
        progress: where long work reports to.
        registry: what plugins registered; ``None``: built-in names, then all installed plugins.
        notes: lines for the plan's notes; add to it with :meth:`note`.
        details: JSON values for the plan's ``details``, and so for the report of a step.
    """

    model: nn.Module
    example_inputs: Inputs
    coupling: Coupling
    tensors: Tensors
    score: Callable[[ChannelGroup], NDArray[np.float64]]
    task: Task | None = None
    train: DataSource | None = None
    val: DataSource | None = None
    folder: Path | None = None
    seed: int = 0
    progress: Progress = field(default_factory=SilentProgress)
    registry: Registry | None = None
    notes: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)

    def best(self, group: ChannelGroup, count: int) -> Indices:
        """Return the ``count`` units of ``group`` with the highest scores, ascending; of equal ones the first."""
        if count >= group.units:
            return np.arange(group.units, dtype=np.int64)
        order = np.argsort(-self.score(group), kind="stable")
        return np.sort(order[:count]).astype(np.int64)

    def kept(self, counts: Mapping[str, int]) -> dict[str, Indices]:
        """Return the units that stay, by group name, when each group keeps so many."""
        return {name: self.best(self.coupling.group(name), count) for name, count in counts.items()}

    def note(self, line: str) -> None:
        """Add one line to the plan's notes: what was left alone, lowered, or done in another way, and why."""
        self.notes.append(line)

    def require(self, *names: str, by: str) -> None:
        """Check that the caller gave ``task``, ``train`` or ``val``, whatever ``by`` needs of them.

        Raises:
            PlanError: something is missing; says how to give it.
        """
        missing = [name for name in names if getattr(self, name) is None]
        if missing:
            given = ", ".join(f"{name}=…" for name in missing)
            raise PlanError(
                f"{by} needs {' and '.join(missing)}, and the plan was made without",
                where=type(self.model).__name__,
                hint=f"pass {given} to slim_prune.plan; a recipe's workload and the option --data NAME bring them",
            )
