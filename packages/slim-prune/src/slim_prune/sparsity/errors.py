"""The error of the sparsity package."""

from __future__ import annotations

from slim_prune.errors import PlanError


class SparsityError(PlanError):
    """Masks, a scheme or a sparsity plan are malformed, or do not fit the model."""
