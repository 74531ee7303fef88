"""Carrying out shape edits: on modules and their attributes, on optimizer state, on EMA copies.

Tensors keep their identity: a parameter stays the same ``nn.Parameter`` object with smaller data, so ties hold, and
optimizers, schedulers and a user's own lists go on referring to it. Not here: deciding what to remove, undoing
(``rollback.py``).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from slim_core.graph.isolate import walk
from slim_prune.edits import Edits, TensorEdit, check_fits, state_of
from slim_prune.errors import PlanError

_LARGE = 2**20  # elements from which a matrix is cut in blocks
_BLOCK = 64  # rows per block: a few megabytes, which stay in cache


class AverageByName(Protocol):
    """A moving average that keeps its tensors by the model's names: :class:`slim_core.training.Ema`."""

    average: dict[str, Tensor]


#: What may hold a second copy of the weights: a module of the same structure (``AveragedModel`` too), tensors by name,
#: or an object with tensors by name.
Ema = nn.Module | Mapping[str, Tensor] | AverageByName


def operate(model: nn.Module, edits: Edits, *, optimizer: Optimizer | None = None, ema: Ema | None = None) -> None:
    """Carry out ``edits`` on ``model`` in place, and on what belongs to it. Everything is checked first.

    Args:
        model: the model.
        edits: the shape edits.
        optimizer: its optimizer; state tensors of a parameter's shape (momentum, Adam's moments) are cut alike.
        ema: a moving average of the weights: a module of the same structure, ``torch.optim.swa_utils.AveragedModel``,
            :class:`slim_core.training.Ema`, or tensors by name.

    Raises:
        PlanError: something does not fit; nothing has been changed then.
    """
    state = check_fits(edits, model)
    averaged = averaged_tensors(ema, edits)
    if optimizer is not None:
        check_optimizer(state, edits, optimizer)
    for _, tensor, cuts in edits.of(state):
        if optimizer is not None and isinstance(tensor, nn.Parameter):
            _cut_optimizer_state(optimizer, tensor, cuts)
        _cut_tensor(tensor, cuts)
    for _, tensor, cuts in edits.of(averaged):
        _cut_tensor(tensor, cuts)
    for target in (model, *modules_of(ema, edits)):
        set_attributes(target, edits)


def copy_and_operate(model: nn.Module, edits: Edits) -> nn.Module:
    """Return a smaller deep copy of ``model``; what is removed is never copied.

    Raises:
        PlanError: something does not fit.
    """
    state = check_fits(edits, model)
    memo: dict[int, Any] = {}
    for _, tensor, cuts in edits.of(state):
        data = sliced(tensor.detach(), cuts)
        if isinstance(tensor, nn.Parameter):
            memo[id(tensor)] = nn.Parameter(data, requires_grad=tensor.requires_grad)
        else:
            memo[id(tensor)] = data
    smaller = copy.deepcopy(model, memo)
    set_attributes(smaller, edits)
    return smaller


def sliced(tensor: Tensor, cuts: list[TensorEdit]) -> Tensor:
    """Return a new tensor that holds what ``cuts`` keep of ``tensor``, in the same memory format."""
    if tensor.is_meta:
        shape = list(tensor.shape)
        for cut in cuts:
            shape[cut.dim] = len(cut.kept)
        return tensor.new_empty(shape)
    channels_last = _is_channels_last(tensor)
    indices = {cut.dim: torch.from_numpy(cut.kept).to(tensor.device) for cut in cuts}
    if indices.keys() == {0, 1} and tensor.dim() == 2 and tensor.is_contiguous() and tensor.numel() >= _LARGE:
        run = _run(cuts[0] if cuts[0].dim == 1 else cuts[1])
        return _rows_and_columns(tensor, indices[0], indices[1][::run] // run, run)
    for dim in sorted(indices):  # whole rows first: they are contiguous
        tensor = tensor.index_select(dim, indices[dim])
    return tensor.contiguous(memory_format=torch.channels_last) if channels_last else tensor.contiguous()


def _rows_and_columns(tensor: Tensor, rows: Tensor, runs: Tensor, run: int) -> Tensor:
    """Cut both dimensions of a large matrix without an intermediate copy of its rows: all runs at once, or in blocks.

    Args:
        tensor: the matrix.
        rows: the rows that stay.
        runs: what stays of its columns, in runs of ``run`` columns each.
        run: length of a run: copying one is quicker than copying its columns one by one.
    """
    result = tensor.new_empty(len(rows), len(runs), run)
    table = tensor.view(len(tensor), -1, run)
    if run > 1:
        places = (rows[:, None] * table.shape[1] + runs).view(-1)
        torch.index_select(table.view(-1, run), 0, places, out=result.view(-1, run))
        return result.view(len(rows), -1)
    for start in range(0, len(rows), _BLOCK):
        block = table.index_select(0, rows[start : start + _BLOCK])
        torch.index_select(block, 1, runs, out=result[start : start + _BLOCK])
    return result.view(len(rows), -1)


def _run(edit: TensorEdit) -> int:
    """Return the largest length such that all kept indices stand in aligned runs of it: 49 behind 7 x 7 pixels."""
    kept = edit.kept
    starts = kept[1:][np.diff(kept) != 1]
    ends = kept[:-1][np.diff(kept) != 1] + 1
    return int(np.gcd.reduce(np.concatenate([starts, ends, kept[:1], kept[-1:] + 1, [edit.total]])))


def set_data(tensor: Tensor, data: Tensor) -> None:
    """Give ``tensor`` other data of any shape; it stays the same object.

    Autograd's accumulator of a parameter remembers its shape for as long as an old graph (a loss that is still
    referenced) is alive. Passing through another dtype makes PyTorch forget it.
    """
    if tensor.requires_grad and tensor.is_leaf:
        other = torch.float64 if tensor.dtype != torch.float64 else torch.float32
        tensor.data = tensor.data.new_empty(0, dtype=other)
    tensor.data = data


def average_by_name(ema: Ema) -> dict[str, Tensor]:
    """Return the tensors of a moving average under the names that it gives them.

    Raises:
        PlanError: it keeps them in a way that is not known.
    """
    if isinstance(ema, nn.Module):
        return state_of(ema)
    found = ema if isinstance(ema, Mapping) else getattr(ema, "average", None)
    if not isinstance(found, Mapping):
        raise PlanError(
            f"a {type(ema).__name__} is no moving average that can be cut",
            hint="pass a module of the model's structure, AveragedModel, slim_core.training.Ema, or tensors by name",
        )
    return dict(found)


def averaged_tensors(ema: Ema | None, edits: Edits) -> dict[str, Tensor]:
    """Return the tensors of an EMA by the model's names (``AveragedModel`` puts ``module.`` before them).

    Raises:
        PlanError: a tensor that would be cut has another shape there.
    """
    if ema is None:
        return {}
    state = average_by_name(ema)
    found: dict[str, Tensor] = {}
    for name, cuts in edits.by_name().items():
        tensor = state.get(name, state.get(f"module.{name}"))
        if tensor is None:
            continue  # an EMA of the parameters alone holds no buffers
        if any(tensor.dim() <= cut.dim or tensor.shape[cut.dim] != cut.total for cut in cuts):
            raise PlanError(f"the EMA's shape {tuple(tensor.shape)} is not the model's", where=name)
        found[name] = tensor
    if edits.tensors and not found:
        raise PlanError("the EMA holds none of the model's tensors", hint="pass the EMA that was made from this model")
    return found


def modules_of(ema: Ema | None, edits: Edits) -> Iterator[nn.Module]:
    """Yield the module of an EMA whose paths are the model's, if it is a module."""
    if isinstance(ema, nn.Module):
        inner = getattr(ema, "module", None)
        direct = {path for path, _ in walk(ema)}
        wraps = isinstance(inner, nn.Module) and not any(edit.module in direct for edit in edits.attributes)
        yield inner if isinstance(inner, nn.Module) and (wraps or _is_averaged_model(ema)) else ema


def _is_averaged_model(ema: nn.Module) -> bool:
    return isinstance(ema, torch.optim.swa_utils.AveragedModel)


def check_optimizer(state: Mapping[str, Tensor], edits: Edits, optimizer: Optimizer) -> None:
    """Check that the state of every parameter that is cut can be cut with it.

    That is state of the parameter's shape (the momentum of SGD, Adam's moments, what RMSprop and Adagrad sum up) and
    single numbers (how many steps were taken).

    Raises:
        PlanError: the optimizer is another model's, or keeps state that has another shape than the parameter; names
            the key.
    """
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    cut = {name: tensor for name, tensor, _ in edits.of(state) if isinstance(tensor, nn.Parameter)}
    if cut and not any(id(parameter) in held for parameter in cut.values()):
        raise PlanError(
            "the optimizer holds none of the parameters that are cut",
            hint="pass the optimizer that was made for this very model object, and inplace=True",
        )
    if isinstance(optimizer, torch.optim.LBFGS) and optimizer.state:
        raise PlanError(
            "LBFGS keeps state 'old_dirs', 'old_stps' and 'd' over all parameters end to end, which cannot be cut",
            hint="make a new optimizer after pruning",
        )
    for name, parameter in cut.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            if not _cuttable(value, parameter):
                raise PlanError(
                    f"{type(optimizer).__name__} keeps state '{key}' {_described(value)} for a parameter of shape "
                    f"{tuple(parameter.shape)}; only state of the parameter's own shape can be cut",
                    where=name,
                    hint="make a new optimizer after pruning",
                )


def _cuttable(value: Any, parameter: Tensor) -> bool:
    if isinstance(value, Tensor):
        return value.shape == parameter.shape or value.numel() <= 1
    return not isinstance(value, list | tuple | dict) or not value


def _described(value: Any) -> str:
    return f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"as a {type(value).__name__}"


def _cut_optimizer_state(optimizer: Optimizer, parameter: Tensor, cuts: list[TensorEdit]) -> None:
    state = optimizer.state.get(parameter, {})
    for key, value in state.items():
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            state[key] = sliced(value, cuts)


def _cut_tensor(tensor: Tensor, cuts: list[TensorEdit]) -> None:
    gradient = tensor.grad if tensor.is_leaf else None
    if gradient is not None:
        tensor.grad = None
    set_data(tensor, sliced(tensor.detach(), cuts))
    if gradient is not None:
        tensor.grad = sliced(gradient, cuts)


def set_attributes(model: nn.Module, edits: Edits) -> None:
    """Set the sizes that the modules remember."""
    modules = dict(walk(model))
    for edit in edits.attributes:
        setattr(modules[edit.module], edit.name, edit.after)


def _is_channels_last(tensor: Tensor) -> bool:
    return tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()
