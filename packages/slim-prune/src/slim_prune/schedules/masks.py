"""Masks that hold during training: the whole model learns as its pruned self would.

A mask is neither a parameter nor a buffer, and is in no state dict. Not here: masking for one evaluation
(``slim_prune/masking.py``).
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from slim_core.graph.masking import divides
from slim_core.training.callbacks import Callback, FitState
from slim_prune.edits import Edits, TensorEdit, check_fits
from slim_prune.prune_plan import PrunePlan
from slim_prune.surgery import Ema, averaged_tensors


class _Handle(Protocol):
    def remove(self) -> None: ...


class Masks:
    """What ``edits`` remove from ``model``, as slices that can be set to zero again and again.

    Args:
        model: the model at full size.
        edits: what is masked.

    Raises:
        PlanError: the edits do not fit the model.
    """

    def __init__(self, model: nn.Module, edits: Edits) -> None:
        self.model, self.edits = model, edits
        self._cuts = [
            (name, tensor, [cut for cut in cuts if len(cut.kept) < cut.total])
            for name, tensor, cuts in edits.of(check_fits(edits, model))
        ]
        self._indices: dict[tuple[int, torch.device], Tensor] = {}
        self._hooks: list[_Handle] = []

    @torch.no_grad()
    def apply(self) -> None:
        """Set the masked parts of weights and buffers to zero; running variances stay."""
        for name, tensor, cuts in self._cuts:
            self._zero(tensor, _zeroed(name, cuts))

    @torch.no_grad()
    def apply_to_gradients(self) -> None:
        """Set the masked parts of all gradients to zero: before they are clipped, and before the optimizer steps."""
        for _, tensor, cuts in self._cuts:
            if tensor.is_leaf and tensor.grad is not None:
                self._zero(tensor.grad, cuts)

    @torch.no_grad()
    def apply_to_state(self, optimizer: Optimizer) -> None:
        """Set the masked parts of an optimizer's state (of tensors of the parameter's shape) to zero."""
        for _, tensor, cuts in self._cuts:
            for value in optimizer.state.get(tensor, {}).values():
                if isinstance(value, Tensor) and value.shape == tensor.shape:
                    self._zero(value, cuts)

    @torch.no_grad()
    def apply_to_average(self, ema: Ema) -> None:
        """Set the masked parts of a moving average of the weights to zero.

        Raises:
            PlanError: it is not an average of this model.
        """
        averaged = averaged_tensors(ema, self.edits)
        for name, _, cuts in self._cuts:
            if name in averaged:
                self._zero(averaged[name], _zeroed(name, cuts))

    def hold(self, optimizer: Optimizer | None = None) -> Masks:
        """Mask now, every gradient as it arrives, and weights and state after each step of ``optimizer``.

        Undone by :meth:`remove`, or at the end of a ``with`` block; what is masked then stays zero until it is trained.
        """
        self.apply()
        self.apply_to_gradients()
        for _, tensor, cuts in self._cuts:
            if isinstance(tensor, nn.Parameter) and tensor.requires_grad:
                hook = self._gradient_hook(cuts)
                self._hooks.append(tensor.register_post_accumulate_grad_hook(hook))  # type: ignore[no-untyped-call]
        if optimizer is not None:
            self.apply_to_state(optimizer)
            self._hooks.append(optimizer.register_step_post_hook(self._after_step))
        return self

    def remove(self) -> None:
        """Hold nothing any longer."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def __enter__(self) -> nn.Module:
        return self.model

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self.apply()

    def _gradient_hook(self, cuts: list[TensorEdit]) -> Any:
        def hook(parameter: Tensor) -> None:
            if parameter.grad is not None:
                with torch.no_grad():
                    self._zero(parameter.grad, cuts)

        return hook

    def _zero(self, tensor: Tensor, cuts: list[TensorEdit]) -> None:
        for cut in cuts:
            key = (id(cut), tensor.device)
            if key not in self._indices:
                self._indices[key] = torch.from_numpy(cut.removed).to(tensor.device)
            tensor.index_fill_(cut.dim, self._indices[key], 0)


def _zeroed(name: str, cuts: list[TensorEdit]) -> list[TensorEdit]:
    return [cut for cut in cuts if not divides(name, cut.dim)]


class MaskCallback(Callback):
    """Holds what ``plan`` removes at zero during a run of :func:`slim_core.training.fit`.

    After it, ``plan.apply`` cuts nothing but zeros away.

    Args:
        plan: a plan for the model that is trained.
    """

    def __init__(self, plan: PrunePlan) -> None:
        self.plan = plan
        self._masks: Masks | None = None

    def on_fit_start(self, state: FitState) -> None:
        self._masks = self.plan.mask_during_training(state.model, state.optimizer)
        if state.ema is not None:
            self._masks.apply_to_average(state.ema)

    def on_fit_end(self, state: FitState) -> None:
        if self._masks is not None:
            self._masks.apply()
            self._masks.remove()
            self._masks = None
