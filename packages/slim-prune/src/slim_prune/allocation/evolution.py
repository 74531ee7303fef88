"""The allocation ``evolution``: automated search, see :mod:`slim_prune.evolution`."""

from __future__ import annotations

from typing import Any

from slim_prune.allocation.problem import Problem
from slim_prune.context import Context


def evolution(problem: Problem, context: Context, **options: Any) -> dict[str, int]:
    """Return the best choice that a search finds; needs ``task`` and ``train`` (or ``val``).

    Args:
        problem: groups, grids, bounds, costs.
        context: model, data, seed, folder, progress.
        **options: the fields of :class:`slim_prune.evolution.config.SearchConfig`: ``algorithm``, ``trials``,
            ``holdout``, ``samples``, ``workers``, …

    Raises:
        SlimError: an option is unknown or has a wrong value.
        PlanError: task or data is missing, or the first candidate cannot be scored.
    """
    from slim_prune.evolution.config import SearchConfig
    from slim_prune.evolution.search import Evolution

    return Evolution(SearchConfig.of(options))(problem, context)
