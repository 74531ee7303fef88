"""A copy of a model in which some parameters are empty, so that large weights are never there twice."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import nn

from slim_core.errors import ModelError


def copy_without(model: nn.Module, names: Iterable[str]) -> nn.Module:
    """Return a deep copy of ``model`` whose parameters ``names`` hold no values (they are on the meta device).

    Raises:
        ModelError: the model cannot be copied.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    memo = {}
    for name in names:
        tensor = parameters[name]
        if id(tensor) not in memo:
            memo[id(tensor)] = nn.Parameter(torch.empty_like(tensor, device="meta"), tensor.requires_grad)
    try:
        return copy.deepcopy(model, dict(memo))
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise ModelError(
            f"{type(model).__name__} cannot be copied: {type(error).__name__}: {first}",
            hint="make the model work with copy.deepcopy",
        ) from error
