"""The errors that slim-prune adds to the core's."""

from __future__ import annotations

from slim_core.errors import SlimError


class PlanError(SlimError):
    """A pruning plan is malformed, or does not fit the model that it is applied to."""
