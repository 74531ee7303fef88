"""``shrink``: take units out of a model, in place. Also: what to cut, for those who do it elsewhere.

Here: parameters, buffers and module attributes. Not here: choosing units, copying models, optimizer state.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from slim_core.errors import SlimError
from slim_core.graph.attributes import attribute_edits
from slim_core.graph.isolate import unwrap, walk
from slim_core.graph.types import Coupling

Kept = Mapping[str, NDArray[np.int64]]


def removed_classes(coupling: Coupling, kept: Kept) -> NDArray[np.int64]:
    """Return the class numbers that go when ``kept`` stays.

    Raises:
        SlimError: an unknown group, a unit number out of range, or a group that would be left empty.
    """
    gone: list[NDArray[np.int64]] = []
    for name, units in kept.items():
        if name not in coupling.unit_classes:
            raise SlimError(
                f"the model has no channel group '{name}'", hint="known: " + ", ".join(coupling.unit_classes)
            )
        classes = coupling.unit_classes[name]
        units = np.asarray(units, dtype=np.int64)
        if len(units) == 0:
            raise SlimError(f"channel group '{name}' would be left without a unit", hint="keep at least one")
        mask = np.ones(len(classes), dtype=np.bool_)
        inside = units.min() >= 0 and units.max() < len(classes)
        if inside:
            mask[units] = False
        if not inside or np.count_nonzero(mask) != len(classes) - len(units):
            raise SlimError(f"kept units of channel group '{name}' are not distinct numbers below {len(classes)}")
        gone.append(classes[mask])
    return np.concatenate(gone) if gone else np.zeros(0, dtype=np.int64)


def cuts_of(coupling: Coupling, kept: Kept) -> dict[str, dict[int, NDArray[np.int64]]]:
    """Return which indices stay: by first state-dict name, then by dimension. Uncut dimensions are left out.

    Dimensions that keep the same indices share one array.
    """
    removed_classes(coupling, kept)
    sizes = {value.names[0]: value.shape for value in coupling.graph.values if value.kind in ("parameter", "buffer")}
    stays: dict[tuple[str, int], NDArray[np.bool_]] = {}
    for name, units in kept.items():
        group = coupling.group(name)
        gone = np.ones(group.units, dtype=np.bool_)
        gone[np.asarray(units, dtype=np.int64)] = False
        numbers = gone.nonzero()[0]
        if len(numbers) == 0:
            continue
        for member in group.members:
            place = (member.name, member.dim)
            if place not in stays:
                stays[place] = np.ones(sizes[member.name][member.dim], dtype=np.bool_)
            stays[place][member.indices[numbers]] = False
    cuts: dict[str, dict[int, NDArray[np.int64]]] = {}
    same: dict[bytes, NDArray[np.int64]] = {}
    for (name, dim), mask in stays.items():
        key = mask.tobytes()
        if key not in same:
            same[key] = mask.nonzero()[0]
        cuts.setdefault(name, {})[dim] = same[key]
    return cuts


def shrink(model: nn.Module, coupling: Coupling, kept: Kept) -> nn.Module:
    """Remove all units that ``kept`` leaves out, in place, and return ``model``.

    Parameters and buffers are replaced by smaller ones (ties, ``requires_grad``, dtype, device and memory format stay),
    and the attributes of known modules follow. Gradients are cut alike. A group that ``kept`` lacks stays whole.

    Args:
        model: the model that ``coupling`` was derived from, or a copy of it.
        coupling: what :func:`analyse` returned.
        kept: kept unit numbers by group name. They stay in their original order, however they are given.

    Raises:
        SlimError: an unknown group, a wrong unit number, an empty group, or a model of other sizes.
    """
    inner = unwrap(model)
    cuts = cuts_of(coupling, kept)
    names = {value.names[0]: value for value in coupling.graph.values if value.names}
    slots: dict[str, list[tuple[dict[str, Any], str]]] = {}
    for first in cuts:
        for name in names[first].names:
            path, _, leaf = name.rpartition(".")
            module = _submodule(inner, path, name)
            table: dict[str, Any] = module._parameters if leaf in module._parameters else module._buffers
            tensor = table.get(leaf)
            if tensor is None or tuple(tensor.shape) != names[first].shape:
                found = "nothing" if tensor is None else f"shape {tuple(tensor.shape)}"
                raise SlimError(
                    f"the model does not fit the coupling: {name} has {found}, expected {names[first].shape}",
                    hint="analyse this model again",
                )
            slots.setdefault(first, []).append((table, leaf))
    replaced: dict[int, tuple[Tensor, Tensor]] = {}
    for first, places in slots.items():
        owner, name = places[0]
        old = owner[name]
        smaller = _cut(old, cuts[first])
        replaced[id(old)] = (old, smaller)
        for owner, name in places:
            owner[name] = smaller
    _refer_anew(inner, replaced)
    for (_, attribute), (target, value) in attribute_edits(inner, coupling, kept).items():
        setattr(target, attribute, value)
    return model


def _refer_anew(model: nn.Module, replaced: Mapping[int, tuple[Tensor, Tensor]]) -> None:
    """Let lists of parameters that modules hold beside their own (as ``nn.LSTM`` does) hold the smaller ones."""

    def now(item: Any) -> Any:
        return replaced[id(item)][1] if isinstance(item, Tensor) and id(item) in replaced else item

    for _, module in walk(model):
        for name, value in module.__dict__.items():
            if type(value) in (list, tuple) and any(isinstance(item, Tensor) for item in value):
                module.__dict__[name] = type(value)(now(item) for item in value)
            elif isinstance(value, Tensor):
                module.__dict__[name] = now(value)


def _submodule(model: nn.Module, path: str, name: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise SlimError(
            f"the model does not fit the coupling: it has no {name}", hint="analyse this model again"
        ) from error


def _cut(tensor: Tensor, dims: Mapping[int, NDArray[np.int64]]) -> Tensor:
    data = _take(tensor.detach(), dims)
    if not isinstance(tensor, nn.Parameter):
        return data
    smaller = type(tensor)(data, requires_grad=tensor.requires_grad)
    smaller.__dict__.update(tensor.__dict__)
    if tensor.grad is not None:
        smaller.grad = _take(tensor.grad, dims)
    return smaller


def _take(data: Tensor, dims: Mapping[int, NDArray[np.int64]]) -> Tensor:
    last = data.dim() == 4 and not data.is_contiguous() and data.is_contiguous(memory_format=torch.channels_last)
    for dim, indices in dims.items():
        data = data.index_select(dim, torch.from_numpy(indices).to(data.device))
    return data.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
