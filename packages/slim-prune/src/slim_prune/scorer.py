"""Scoring channel groups by one criterion, each once, and the :class:`Context` that a plan or a measurement works in.

Not here: the criteria (``importance/``).
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from torch import nn

from slim_core.graph.types import ChannelGroup, Coupling
from slim_core.workload import Inputs
from slim_prune import importance as importances
from slim_prune.context import Context
from slim_prune.edits import state_of
from slim_prune.errors import PlanError
from slim_prune.importance import Importance
from slim_prune.importance.aggregate import Tensors


class Scorer:
    """Scores groups by one criterion, each once. A criterion that needs data is prepared before the first.

    Args:
        label: the criterion's name.
        criterion: what :func:`slim_prune.importance.resolve` returned.
    """

    def __init__(self, label: str, criterion: Any) -> None:
        self.context: Context | None = None
        self._label, self._criterion = label, criterion
        self._ready: Importance | None = None
        self._preparing = False
        self._scores: dict[str, NDArray[np.float64]] = {}

    def __call__(self, group: ChannelGroup) -> NDArray[np.float64]:
        """Return the scores of a group, ``(units,)``."""
        assert self.context is not None  # noqa: S101  set by context_of() right after it is made
        if self._ready is None:
            self._ready = self._prepared(self.context)
        if group.name not in self._scores:
            self._scores[group.name] = importances.score(self._label, self._ready, group, self.context.tensors)
        return self._scores[group.name]

    def _prepared(self, context: Context) -> Importance:
        prepare = getattr(self._criterion, "prepare", None)
        if prepare is None:
            return cast(Importance, self._criterion)
        if self._preparing:
            raise PlanError(f"importance '{self._label}' asks for its own scores while it is being prepared")
        self._preparing = True
        try:
            return cast(Importance, prepare(context))
        finally:
            self._preparing = False


def context_of(
    model: nn.Module, example_inputs: Inputs, coupling: Coupling, scorer: Scorer, **surroundings: Any
) -> Context:
    """Return the context in which ``scorer`` scores the groups of ``model``.

    Args:
        model: the model, without wrappers.
        example_inputs: its inputs.
        coupling: its analysis.
        scorer: a new scorer.
        surroundings: the other fields of :class:`Context`.
    """
    tensors = Tensors({name: tensor.detach() for name, tensor in state_of(model).items()})
    scorer.context = Context(model, example_inputs, coupling, tensors, scorer, **surroundings)
    return scorer.context
