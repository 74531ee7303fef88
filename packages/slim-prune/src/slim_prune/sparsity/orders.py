"""Channel orders: permutations of dimensions that leave what a model computes as it is.

Finding them: ``permuting.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from slim_prune.edits import state_of
from slim_prune.sparsity.errors import SparsityError
from slim_prune.surgery import Ema


@dataclass(frozen=True, slots=True, eq=False)
class Order:
    """A new order of one dimension of one tensor: index i takes what stood at ``order[i]``.

    Args:
        group: the channel group that it belongs to; all of a group's orders go together.
        name: state-dict name, the first where it is tied.
        dim: the dimension.
        order: a permutation, int64.
    """

    group: str
    name: str
    dim: int
    order: NDArray[np.int64]

    def to_json(self) -> dict[str, Any]:
        return {"group": self.group, "name": self.name, "dim": self.dim, "size": len(self.order)}


def check_orders(orders: Iterable[Order], state: Mapping[str, Tensor]) -> None:
    """Check that orders fit a model's tensors, and are permutations.

    Raises:
        SparsityError: says the first that does not.
    """
    for order in orders:
        where = f"{order.name}, dimension {order.dim}"
        if order.name not in state:
            raise SparsityError("the model has no such tensor", where=order.name)
        shape = tuple(state[order.name].shape)
        if not 0 <= order.dim < len(shape) or shape[order.dim] != len(order.order):
            raise SparsityError(f"an order of {len(order.order)} indices does not fit the shape {shape}", where=where)
        if not np.array_equal(np.sort(order.order), np.arange(len(order.order))):
            raise SparsityError("an order must hold each index once", where=where)


def reorder_(
    orders: Sequence[Order], model: nn.Module, *, optimizer: Optimizer | None = None, ema: Ema | None = None
) -> None:
    """Put channels in their new order, in place; tensors keep their identity. Everything is checked first.

    Args:
        orders: the orders.
        model: the model.
        optimizer: its optimizer; state tensors of a parameter's shape are ordered alike.
        ema: a moving average of the weights: a module of the same structure, or tensors by name.

    Raises:
        SparsityError: an order does not fit; nothing has been changed then.
    """
    state = state_of(model)
    check_orders(orders, state)
    averaged = averaged_tensors(ema)
    check_orders([order for order in orders if order.name in averaged], averaged)
    with torch.no_grad():
        for order in orders:
            tensor = state[order.name]
            index = torch.from_numpy(order.order).to(tensor.device)
            if optimizer is not None:
                for value in optimizer.state.get(tensor, {}).values():
                    if isinstance(value, Tensor) and value.shape == tensor.shape:
                        value.copy_(value.index_select(order.dim, index))
            if tensor.grad is not None:
                tensor.grad.copy_(tensor.grad.index_select(order.dim, index))
            tensor.copy_(tensor.index_select(order.dim, index))
            twin = averaged.get(order.name)
            if twin is not None:
                twin.data.copy_(twin.data.index_select(order.dim, index.to(twin.device)))


def averaged_tensors(ema: Ema | None) -> dict[str, Tensor]:
    """Return the tensors of a moving average by the model's names (``AveragedModel`` puts ``module.`` before them)."""
    if ema is None:
        return {}
    if isinstance(ema, nn.Module):
        found = state_of(ema)
    else:
        found = dict(ema) if isinstance(ema, Mapping) else dict(ema.average)
    return {name.removeprefix("module."): tensor for name, tensor in found.items()}
