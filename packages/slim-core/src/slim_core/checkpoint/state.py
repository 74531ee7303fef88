"""The tensors of a model by name: parameters, buffers in and out of the state dict, and the constants of fx graphs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from slim_core.checkpoint.header import ROLES
from slim_core.checkpoint.limits import NAME, RESERVED
from slim_core.checkpoint.strict_json import shown
from slim_core.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a model.

    Args:
        name: its dotted path.
        role: ``parameter``, ``buffer``, ``transient`` (a buffer outside the state dict) or ``constant``.
        tensor: the tensor.
        owner: the module that holds it.
        frozen: a parameter that takes no gradient.
    """

    name: str
    role: str
    tensor: Tensor
    owner: nn.Module
    frozen: bool = False


def plain_model(model: nn.Module) -> nn.Module:
    """Return the model inside the wrappers of ``torch.compile`` and ``DataParallel``."""
    while True:
        inner = model.__dict__.get("_modules", {}).get("_orig_mod")
        if inner is None and isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def named_entries(model: nn.Module) -> Iterator[Entry]:
    """Yield every name of every tensor; tied tensors come once per name."""
    constants = isinstance(model, fx.GraphModule)
    for path, module in model.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        for name, parameter in module._parameters.items():
            if parameter is not None:
                yield Entry(f"{prefix}{name}", "parameter", parameter, module, not parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                role = "transient" if name in module._non_persistent_buffers_set else "buffer"
                yield Entry(f"{prefix}{name}", role, buffer, module)
        if constants:
            for name, value in vars(module).items():
                if isinstance(value, Tensor):
                    yield Entry(f"{prefix}{name}", "constant", value, module)


def state_of(model: nn.Module) -> tuple[list[Entry], tuple[tuple[str, ...], ...]]:
    """Return the tensors to store, each once, sorted by name, and the groups of names that are one tensor.

    Raises:
        CheckpointError: something cannot be stored.
    """
    for path, module in model.named_modules():
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            raise CheckpointError(
                f"{type(module).__name__} keeps extra state that is not a tensor (get_extra_state)",
                field=f"modules.{path}",
                hint="keep it in buffers",
            )
    by_tensor: dict[int, list[Entry]] = {}
    for entry in named_entries(model):
        _check(entry)
        by_tensor.setdefault(id(entry.tensor), []).append(entry)
    entries, ties = [], []
    for group in by_tensor.values():
        group.sort(key=lambda entry: entry.name)
        roles = {entry.role for entry in group}
        if len(roles) > 1:
            raise CheckpointError(
                f"one tensor is {' and '.join(sorted(roles))}: {', '.join(entry.name for entry in group)}",
                field=f"tensors.{group[0].name}",
                hint="register it in one way",
            )
        entries.append(group[0])
        if len(group) > 1:
            ties.append(tuple(entry.name for entry in group))
    return sorted(entries, key=lambda entry: entry.name), tuple(sorted(ties))


def _check(entry: Entry) -> None:
    where, tensor = f"tensors.{shown(entry.name)}", entry.tensor
    if not NAME.match(f"{ROLES[entry.role]}{entry.name}") or entry.name.startswith(RESERVED):
        raise CheckpointError(
            "this name cannot be stored: letters, digits and _ . : / @ + - are allowed, at most 512 characters",
            field=where,
            hint="rename the module or parameter",
        )
    if isinstance(tensor, nn.UninitializedParameter | nn.UninitializedBuffer):
        raise CheckpointError(
            "it is not initialized yet", field=where, hint="run the model once, so that its lazy modules get shapes"
        )
    if tensor.is_meta:
        raise CheckpointError("it is on the meta device and has no values", field=where)
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise CheckpointError("only dense tensors can be stored", field=where, hint="convert it with to_dense()")
