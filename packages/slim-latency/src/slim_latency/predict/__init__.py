"""From a device table to estimates for networks that were never measured there.

``lines``: non-negative least squares, ``boost``: monotone boosted trees as plain arrays, ``fit``: what is learned from
a table, ``estimate``: what is said about a network. Cost models for budgets are in ``slim_latency.cost``.
"""

from __future__ import annotations

from slim_latency.predict.estimate import Estimate, Predictor, Share
from slim_latency.predict.fit import fit

__all__ = ["Estimate", "Predictor", "Share", "fit"]
