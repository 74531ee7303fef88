"""Exact undo of a sparsity plan in place: parameters, buffers, gradients, optimizer state and EMA, bit for bit."""

from __future__ import annotations

from types import TracebackType

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from slim_prune.edits import state_of
from slim_prune.rollback import undo_of_optimizer
from slim_prune.sparsity.orders import averaged_tensors
from slim_prune.surgery import Ema


class SparsityRollback:
    """A model that was made sparse in place and can be restored. Also a context manager, which restores at its end.

    Made by :meth:`slim_prune.sparsity.SparsityPlan.apply_reversibly`. It costs the memory of a copy.
    """

    def __init__(self, model: nn.Module, *, optimizer: Optimizer | None = None, ema: Ema | None = None) -> None:
        self.model = model
        tensors = dict(state_of(model))
        tensors |= {f"ema {name}": tensor for name, tensor in averaged_tensors(ema).items()}
        different = {id(tensor): tensor for tensor in tensors.values()}
        self._kept: list[tuple[Tensor, Tensor, Tensor | None]] | None = [
            (tensor, tensor.detach().clone(), None if tensor.grad is None else tensor.grad.clone())
            for tensor in different.values()
        ]
        self._optimizer = undo_of_optimizer(optimizer) if optimizer is not None else None

    @property
    def done(self) -> bool:
        """Whether the model has been restored, or the backup given back."""
        return self._kept is None

    def rollback(self) -> nn.Module:
        """Restore everything to the bits it had before, and return the model. A second call does nothing."""
        kept, self._kept = self._kept, None
        if kept is None:
            return self.model
        with torch.no_grad():
            for tensor, data, gradient in kept:
                tensor.copy_(data)
                tensor.grad = gradient
        if self._optimizer is not None:
            self._optimizer()
        return self.model

    def discard(self) -> None:
        """Give the backup's memory back; the zeros stay."""
        self._kept = self._optimizer = None

    def __enter__(self) -> nn.Module:
        return self.model

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.rollback()
