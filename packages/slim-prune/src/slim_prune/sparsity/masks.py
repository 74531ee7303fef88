"""``SparsityMasks``: which weights of a model are held at zero. Lives beside the model and never in its state dict."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from slim_core.graph.isolate import unwrap
from slim_prune.edits import state_of
from slim_prune.sparsity.errors import SparsityError


class SparsityMasks(Mapping[str, Tensor]):
    """Masks by state-dict name: bool tensors of the weights' shapes, true where a weight stays. Immutable.

    Args:
        masks: the masks; arrays or tensors.
    """

    def __init__(self, masks: Mapping[str, Tensor | NDArray[np.bool_]]) -> None:
        self._masks = {name: torch.as_tensor(mask).to(torch.bool) for name, mask in masks.items()}

    def __getitem__(self, name: str) -> Tensor:
        return self._masks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    def __repr__(self) -> str:
        kept, total = self.kept, self.total
        return f"SparsityMasks({len(self)} weights, {total - kept} of {total} at zero)"

    @classmethod
    def of(cls, model: nn.Module, names: Mapping[str, Any] | None = None) -> SparsityMasks:
        """Return the masks of the zeros that a model's weights have now.

        Args:
            model: the model.
            names: whose keys are the weights to look at; ``None``: all that may become sparse.
        """
        from slim_prune.sparsity.targets import find_targets

        wanted = list(names) if names is not None else [target.name for target in find_targets(model)]
        state = state_of(unwrap(model))
        return cls({name: state[name].detach() != 0 for name in wanted})

    # --- figures ---

    @property
    def total(self) -> int:
        """How many weights are covered."""
        return sum(mask.numel() for mask in self._masks.values())

    @property
    def kept(self) -> int:
        """How many of them stay."""
        return sum(int(mask.sum()) for mask in self._masks.values())

    @property
    def sparsity(self) -> float:
        """The share of the covered weights that is held at zero."""
        return 1 - self.kept / self.total if self.total else 0.0

    def statistics(self) -> list[dict[str, Any]]:
        """Return one row per weight: ``{"name", "shape", "kept", "total", "sparsity"}``."""
        rows = []
        for name, mask in self._masks.items():
            kept, total = int(mask.sum()), mask.numel()
            sparsity = 1 - kept / total if total else 0.0
            rows.append({"name": name, "shape": list(mask.shape), "kept": kept, "total": total, "sparsity": sparsity})
        return rows

    # --- on a model ---

    def check(self, model: nn.Module) -> dict[str, Tensor]:
        """Check that the masks fit a model, and return its weights by name.

        Raises:
            SparsityError: a weight is missing or has another shape.
        """
        state = state_of(unwrap(model))
        for name, mask in self._masks.items():
            if name not in state:
                raise SparsityError("the model has no such weight", where=name)
            if state[name].shape != mask.shape:
                raise SparsityError(
                    f"the mask has the shape {tuple(mask.shape)}, the weight {tuple(state[name].shape)}",
                    where=name,
                    hint="masks fit the model that they were made for; prune channels first, then make it sparse",
                )
        return {name: state[name] for name in self._masks}

    def apply_(self, model: nn.Module) -> nn.Module:
        """Set the weights that do not stay to zero, in place: exactly 0.0, whatever stood there. Returns the model.

        Raises:
            SparsityError: the masks do not fit; nothing has been changed then.
        """
        _zero(self.check(model), self._masks)
        return model

    def violations(self, model: nn.Module) -> int:
        """Return how many weights that should be zero are not."""
        weights = self.check(model)
        return sum(
            int(((weight.detach() != 0) & ~self._masks[name].to(weight.device)).sum())
            for name, weight in weights.items()
        )

    def attach(
        self, model: nn.Module, optimizer: Optimizer | None = None, *, gradients: bool = False
    ) -> SparsityHandle:
        """Hold the masked weights at zero while a model is trained in one's own loop.

        The masks are applied now and after every step of the optimizer. Nothing is registered on the model, and its
        state dict stays as it is.

        Args:
            model: the model.
            optimizer: its optimizer; ``None``: call :meth:`SparsityHandle.step` after each step.
            gradients: also set the gradients of masked weights to zero, so that they enter neither momentum nor the
                norm that clipping looks at.

        Raises:
            SparsityError: the masks do not fit.
        """
        return SparsityHandle(self, model, optimizer, gradients=gradients)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, SparsityMasks)
            and list(self) == list(other)
            and all(torch.equal(mask, other[name]) for name, mask in self._masks.items())
        )

    __hash__ = None  # type: ignore[assignment]


class SparsityHandle:
    """Masks that are kept on a model. Also a context manager, which removes them from the loop at its end."""

    def __init__(
        self, masks: SparsityMasks, model: nn.Module, optimizer: Optimizer | None = None, *, gradients: bool = False
    ) -> None:
        self._model = weakref.ref(unwrap(model))
        self._gradients = gradients
        self._hooks: list[Callable[[], None]] = []
        self._gradient_hooks: list[Callable[[], None]] = []
        self._set(masks)
        if optimizer is not None:
            held = {id(p) for group in optimizer.param_groups for p in group["params"]}
            if self._weights and not any(id(weight) in held for weight in self._weights.values()):
                self.remove()
                raise SparsityError(
                    "the optimizer holds none of the masked weights",
                    hint="pass the optimizer that was made for this very model object",
                )
            self._hooks.append(optimizer.register_step_post_hook(lambda *_: self.step()).remove)

    @property
    def masks(self) -> SparsityMasks:
        """The masks that are kept now."""
        return self._masks

    def update(self, masks: SparsityMasks) -> None:
        """Keep other masks from now on, and apply them.

        Raises:
            SparsityError: they do not fit; the old ones stay then.
        """
        self._set(masks)

    def step(self) -> None:
        """Apply the masks. Called by the optimizer's hook."""
        _zero(self._weights, self._masks)

    def remove(self) -> None:
        """Stop keeping the masks; the weights stay as they are."""
        for hooks in (self._hooks, self._gradient_hooks):
            for remove in hooks:
                remove()
            hooks.clear()

    def __enter__(self) -> SparsityHandle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def _set(self, masks: SparsityMasks) -> None:
        model = self._model()
        if model is None:
            raise SparsityError("the model of these masks is gone")
        weights = masks.check(model)
        placed = SparsityMasks({name: mask.to(weights[name].device) for name, mask in masks.items()})
        _zero(weights, placed)
        self._masks, self._weights = placed, weights
        for remove in self._gradient_hooks:
            remove()
        self._gradient_hooks.clear()
        if self._gradients:
            for name, weight in weights.items():
                if weight.requires_grad:
                    hook = weight.register_hook(_masking(placed[name]))  # type: ignore[no-untyped-call]
                    self._gradient_hooks.append(hook.remove)


def _masking(mask: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda gradient: gradient.masked_fill(~mask, 0)


def _zero(weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, weight in weights.items():
            mask = masks[name]
            weight.masked_fill_(~(mask if mask.device == weight.device else mask.to(weight.device)), 0)
