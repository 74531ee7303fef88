"""Network slimming: training that drives the scales of norms towards zero, so that ``bn_scale`` can tell them apart.

Liu et al. 2017, "Learning Efficient Convolutional Networks through Network Slimming", arXiv:1708.06519. In ``fit`` it
is the callback :class:`Slimming`; in a loop of one's own, :func:`scale_penalty` is added to the loss. Not here: the
criterion (``norms.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from slim_core.errors import SlimError
from slim_core.graph.isolate import walk
from slim_core.training import Callback, FitState
from slim_prune.selection import check_patterns, matches

#: A scale below this lets next to nothing through; only for the figure in the history.
NEAR_ZERO = 1e-2


def norm_scales(
    model: nn.Module, *, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> dict[str, nn.Parameter]:
    """Return the scales of the batch and instance norms of ``model``, by state-dict name, each once.

    Args:
        model: any module.
        include: globs over module paths; empty: all norms.
        exclude: globs; they win over ``include``.

    Raises:
        PatternError: a pattern matches no module.
        SlimError: no norm with a scale is left.
    """
    modules = walk(model)
    check_patterns([*include, *exclude], [path for path, _ in modules])
    found: dict[str, nn.Parameter] = {}
    for path, module in modules:
        scale = module._parameters.get("weight") if isinstance(module, _NormBase) else None
        if scale is None or any(scale is known for known in found.values()):
            continue
        if include and not any(matches(pattern, path) for pattern in include):
            continue
        if not any(matches(pattern, path) for pattern in exclude):
            found[f"{path}.weight" if path else "weight"] = scale
    if not found:
        raise SlimError(
            f"{type(model).__name__} has no batch norm with a scale to make small",
            where=f"include={list(include)}, exclude={list(exclude)}" if include or exclude else None,
            hint="network slimming needs affine batch norms; 'l1' and 'taylor' score models without",
        )
    return found


def scale_penalty(scales: Iterable[Tensor]) -> Tensor:
    """Return the sum of the absolute values of ``scales``, a scalar to add to the loss, times a small strength."""
    return torch.stack([scale.abs().sum() for scale in scales]).sum()


class Slimming(Callback):
    """Adds ``strength`` times the sum of the absolute norm scales to the loss of ``fit``.

    The history gets a column ``small_scales``: the share of scales below 0.01, from 0 to 1.

    Args:
        strength: of the penalty. The paper takes 1e-4 to 1e-5, chosen by grid search.
        include: globs over module paths whose norms are made sparse; empty: all.
        exclude: globs; they win over ``include``.

    Raises:
        SlimError: in ``fit``: the model has no such norm. At once: the strength is not above 0.
    """

    def __init__(self, strength: float = 1e-4, *, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> None:
        if not 0 < strength < float("inf"):
            raise SlimError(f"the strength of slimming must be above 0, not {strength!r}", hint="the paper takes 1e-4")
        self.strength, self.include, self.exclude = strength, tuple(include), tuple(exclude)
        self._scales: list[nn.Parameter] = []

    def on_fit_start(self, state: FitState) -> None:
        self._scales = list(norm_scales(state.model, include=self.include, exclude=self.exclude).values())

    def loss(self, outputs: Any, batch: Any, state: FitState) -> Tensor:
        return self.strength * scale_penalty(self._scales)

    def on_epoch_end(self, state: FitState) -> None:
        with torch.no_grad():
            flat = torch.cat([scale.detach().abs().reshape(-1) for scale in self._scales])
        state.history[-1]["small_scales"] = float((flat < NEAR_ZERO).double().mean())

    def on_fit_end(self, state: FitState) -> None:
        self._scales = []
