"""Exact undo of a surgery in place: parameters, buffers, gradients, attributes, optimizer state and EMA, bit for bit.

The backup lives outside the model, so it is in no state dict. It costs the memory of the tensors that it holds: what
was cut is kept by reference, what was not is copied.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from slim_prune.edits import Edits, state_of
from slim_prune.surgery import Ema, average_by_name, averaged_tensors, modules_of, operate, set_data


class Rollback:
    """A model that was pruned in place and can be restored. Also a context manager, which restores at its end.

    Made by :meth:`slim_prune.PrunePlan.apply_reversibly`.
    """

    def __init__(
        self, model: nn.Module, edits: Edits, *, optimizer: Optimizer | None = None, ema: Ema | None = None
    ) -> None:
        self.model = model
        cut = {name: tensor for name, tensor, _ in edits.of(state_of(model))}
        averaged = averaged_tensors(ema, edits)
        undo = [*_registered(model, cut), *_attributes(model, edits)]
        if optimizer is not None:
            undo.append(undo_of_optimizer(optimizer))
        if isinstance(ema, nn.Module):
            undo.extend(_registered(ema, averaged))
        elif ema is not None:
            undo.extend(_average(ema, averaged))
        for target in modules_of(ema, edits):
            undo.extend(_attributes(target, edits))
        operate(model, edits, optimizer=optimizer, ema=ema)
        self._undo: list[Callable[[], None]] | None = undo

    @property
    def done(self) -> bool:
        """Whether the model has been restored."""
        return self._undo is None

    def rollback(self) -> nn.Module:
        """Restore everything to the bits it had before the surgery, and return the model.

        A second call does nothing.
        """
        undo, self._undo = self._undo, None
        with torch.no_grad():
            for step in undo or ():
                step()
        return self.model

    def discard(self) -> None:
        """Give the backup's memory back; the pruning stays."""
        self._undo = None

    def __enter__(self) -> nn.Module:
        return self.model

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.rollback()


def _registered(model: nn.Module, cut: Mapping[str, Tensor]) -> Iterator[Callable[[], None]]:
    yield _registrations(model)
    yield from _tensors(state_of(model).values(), cut)


def _attributes(model: nn.Module, edits: Edits) -> Iterator[Callable[[], None]]:
    modules = dict(model.named_modules())
    for edit in edits.attributes:
        module = modules.get(edit.module)
        if module is not None and edit.name in vars(module):
            yield _attribute(module, edit.name, vars(module)[edit.name])


def _registrations(model: nn.Module) -> Callable[[], None]:
    """Which tensor object stands under which name: ties and identities come back even if training swapped one."""
    kept = [(module, dict(module._parameters), dict(module._buffers)) for module in model.modules()]

    def undo() -> None:
        for module, parameters, buffers in kept:
            module._parameters.clear()
            module._parameters.update(parameters)
            module._buffers.clear()
            module._buffers.update(buffers)

    return undo


def _average(ema: Ema, cut: Mapping[str, Tensor]) -> Iterator[Callable[[], None]]:
    """The tensors of an average by name, which tensor stands under which name, and how many updates it has seen."""
    tensors = average_by_name(ema)
    table = ema if isinstance(ema, Mapping) else getattr(ema, "average", None)
    numbers = {} if isinstance(ema, Mapping) else {k: v for k, v in vars(ema).items() if type(v) in (int, float)}

    def undo() -> None:
        if isinstance(table, MutableMapping):
            table.clear()
            table.update(tensors)
        for name, value in numbers.items():
            setattr(ema, name, value)

    yield undo
    yield from _tensors(tensors.values(), cut)


def _tensors(tensors: Iterable[Tensor], cut: Mapping[str, Tensor]) -> Iterator[Callable[[], None]]:
    will_be_cut = {id(tensor) for tensor in cut.values()}
    for tensor in {id(tensor): tensor for tensor in tensors}.values():
        yield _tensor(tensor, tensor.data if id(tensor) in will_be_cut else tensor.detach().clone())


def _tensor(tensor: Tensor, data: Tensor) -> Callable[[], None]:
    gradient = None if tensor.grad is None else tensor.grad.clone()
    requires_grad = tensor.requires_grad

    def undo() -> None:
        tensor.grad = None
        if tensor.shape == data.shape and tensor.dtype == data.dtype and tensor.device == data.device:
            tensor.data.copy_(data)
        else:
            set_data(tensor, data)
        tensor.grad = gradient
        if tensor.is_leaf:
            tensor.requires_grad_(requires_grad)

    return undo


def _attribute(module: nn.Module, name: str, value: Any) -> Callable[[], None]:
    return lambda: setattr(module, name, value)


def undo_of_optimizer(optimizer: Optimizer) -> Callable[[], None]:
    """Return what brings an optimizer's state and parameter groups back to what they are now."""
    state = {parameter: _cloned(entries) for parameter, entries in optimizer.state.items()}
    groups = [
        (g, {k: list(v) if k == "params" else copy.deepcopy(v) for k, v in g.items()}) for g in optimizer.param_groups
    ]

    def undo() -> None:
        optimizer.state.clear()
        optimizer.state.update(state)
        for group, options in groups:  # the same dictionaries: a scheduler may hold them
            group.clear()
            group.update(options)
        optimizer.param_groups[:] = [group for group, _ in groups]

    return undo


def _cloned(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {key: _cloned(item) for key, item in value.items()}
    return copy.deepcopy(value)
