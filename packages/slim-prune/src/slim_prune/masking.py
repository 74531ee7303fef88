"""The masked original: the full model with the channels that a plan removes at zero. Nothing is rebuilt.

It computes what the pruned model computes, so allocations and sensitivity analyses evaluate under masks. Masks are
written into the weights and never enter the state dict.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from slim_core.graph.masking import divides
from slim_prune.edits import Edits, TensorEdit, check_fits, state_of


def masked_copy(model: nn.Module, edits: Edits) -> nn.Module:
    """Return a deep copy of ``model`` with everything that ``edits`` remove at zero."""
    check_fits(edits, model)
    masked = copy.deepcopy(model)
    zero_removed_(masked, edits)
    return masked


@contextmanager
def masked(model: nn.Module, edits: Edits) -> Iterator[nn.Module]:
    """Zero what ``edits`` remove in ``model`` itself, and put the very same bits back at the end.

    Only the zeroed slices are kept aside. Training inside is possible; the masked slices then come back as they were.
    """
    check_fits(edits, model)
    kept_aside = [
        (tensor, edit.dim, index, tensor.detach().index_select(edit.dim, index))
        for edit, tensor, index in _slices(model, edits)
    ]
    zero_removed_(model, edits)
    try:
        yield model
    finally:
        with torch.no_grad():
            for tensor, dim, index, values in reversed(kept_aside):
                tensor.index_copy_(dim, index, values)


def zero_removed_(model: nn.Module, edits: Edits) -> None:
    """Set everything that ``edits`` remove to zero, in place; what the model divides by stays."""
    with torch.no_grad():
        for edit, tensor, index in _slices(model, edits):
            tensor.index_fill_(edit.dim, index, 0)


def _slices(model: nn.Module, edits: Edits) -> Iterator[tuple[TensorEdit, Tensor, Tensor]]:
    state = state_of(model)
    for edit in edits.tensors:
        if not divides(edit.name, edit.dim):
            tensor = state[edit.name]
            yield edit, tensor, torch.from_numpy(edit.removed).to(tensor.device)
