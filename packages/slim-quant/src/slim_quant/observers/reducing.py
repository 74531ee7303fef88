"""Sums and maxima over the processes of a ``torch.distributed`` group, on the device that its backend works with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def reduce_sum(values: Tensor, group: Any = None) -> Tensor:
    """Return the sum over all processes, on the CPU."""
    return _reduced(values, torch.distributed.ReduceOp.SUM, group)


def reduce_max(values: Tensor, group: Any = None) -> Tensor:
    """Return the elementwise maximum over all processes, on the CPU."""
    return _reduced(values, torch.distributed.ReduceOp.MAX, group)


def _reduced(values: Tensor, operation: Any, group: Any) -> Tensor:
    backend = torch.distributed.get_backend(group)
    device = torch.device("cuda", torch.cuda.current_device()) if backend == "nccl" else torch.device("cpu")
    moved = values.to(device, copy=True)
    torch.distributed.all_reduce(moved, operation, group)
    return moved.cpu()
