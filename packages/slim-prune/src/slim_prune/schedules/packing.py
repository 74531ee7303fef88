"""Plans as tensors, so that callbacks can keep them in the state of a training run: JSON as bytes, no pickle."""

from __future__ import annotations

import json

import torch
from torch import Tensor

from slim_prune.errors import PlanError
from slim_prune.prune_plan import PrunePlan


def packed(plan: PrunePlan) -> Tensor:
    """Return the plan's JSON as a tensor of bytes, ``(length,)`` uint8."""
    text = json.dumps(plan.to_json(), sort_keys=True, allow_nan=False).encode()
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)


def unpacked(tensor: Tensor) -> PrunePlan:
    """Return the plan that :func:`packed` wrote.

    Raises:
        PlanError: the tensor holds no valid plan.
    """
    try:
        data = json.loads(tensor.cpu().to(torch.uint8).numpy().tobytes().decode())
    except (ValueError, RecursionError) as error:
        raise PlanError(f"the state of a run holds no pruning plan: {error}") from None
    return PrunePlan.from_json(data)
