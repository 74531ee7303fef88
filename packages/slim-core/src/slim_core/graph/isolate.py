"""Running a user's model without leaving a trace in it: stand-ins for its tensors, and everything put back after.

Module attributes, parameters, buffers, training flags and random number generators are restored on leaving, whatever
the forward did to them. The user's hooks run, because they may change what the model computes.
"""

from __future__ import annotations

import gc
import logging
import random
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from slim_core.errors import ModelError

StandIn = Callable[[str, Tensor], Tensor]

#: types of most attributes of a module; no other kind of container is looked into than list, tuple and dict
_WITHOUT_TENSORS = frozenset({bool, int, float, str, type(None), set, OrderedDict})
#: torch prints a traceback through these before it raises the error of a forward that fails without data
FORWARD_LOGGERS = ("torch._subclasses.fake_tensor",)
_MODULE_TABLES = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")


@dataclass(frozen=True, slots=True)
class StateTensor:
    """A parameter, a buffer or a plain tensor attribute, under all of its names."""

    tensor: Tensor
    names: tuple[str, ...]
    kind: str


def unwrap(model: nn.Module) -> nn.Module:
    """Return the user's module inside ``torch.compile``, ``DataParallel`` and ``DistributedDataParallel``.

    Raises:
        ModelError: ``model`` is no module.
    """
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            require_module(model)
            return model


def require_module(model: object) -> None:
    """Raise ``ModelError`` where ``model`` is no module."""
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"a model must be a torch.nn.Module, and a {type(model).__name__} was given",
            hint="pass the model first, then its example inputs",
        )


def require_ready(model: nn.Module) -> None:
    """Raise ``ModelError`` where ``model`` is no module, or a lazy layer in it has never run."""
    require_module(model)
    for item in state_of(model):
        if isinstance(item.tensor, nn.UninitializedParameter | nn.UninitializedBuffer):
            raise ModelError(
                f"'{item.names[0]}' is not initialised yet", hint="run the model once on its example inputs first"
            )


def walk(model: nn.Module, *, every_path: bool = False) -> list[tuple[str, nn.Module]]:
    """Return what ``model.named_modules()`` yields, in its order, several times faster.

    Args:
        model: the model.
        every_path: list a module that stands in several places under each of its paths.
    """
    found: list[tuple[str, nn.Module]] = [("", model)]
    seen = {model}

    def below(prefix: str, module: nn.Module) -> None:
        for name, child in module._modules.items():
            if child is None or (not every_path and child in seen):
                continue
            if not every_path:
                seen.add(child)
            found.append((prefix + name, child))
            if child._modules:
                below(f"{prefix}{name}.", child)

    below("", model)
    return found


def state_of(model: nn.Module) -> list[StateTensor]:
    """Return every parameter and buffer once, in state-dict order, tied names together."""
    names: dict[int, list[str]] = {}
    found: dict[int, tuple[Tensor, str]] = {}
    for path, module in walk(model, every_path=True):
        prefix = f"{path}." if path else ""
        for kind, table in (("parameter", module._parameters), ("buffer", module._buffers)):
            for name, tensor in table.items():
                if tensor is not None:
                    found.setdefault(id(tensor), (tensor, kind))
                    names.setdefault(id(tensor), []).append(prefix + name)
    return [StateTensor(tensor, tuple(names[key]), kind) for key, (tensor, kind) in found.items()]


@contextmanager
def isolated(
    model: nn.Module, stand_in: StandIn, state: Sequence[StateTensor] | None = None
) -> Iterator[dict[int, Tensor]]:
    """Put stand-ins in place of the model's tensors, in eval mode, and restore everything on leaving.

    Args:
        model: the user's model.
        stand_in: takes a first name and a tensor and returns what replaces it. Called once per tensor object.
        state: what :func:`state_of` returns for ``model``, if it is at hand.

    Yields:
        The stand-in of each tensor, by the ``id`` of the original.
    """
    modules = [module for _, module in walk(model)]
    snapshots = [_Snapshot(module) for module in modules]
    try:
        twins: dict[int, Tensor] = {id(item.tensor): stand_in(item.names[0], item.tensor)
                                    for item in (state_of(model) if state is None else state)}  # fmt: skip
        for module in modules:
            _swap(module, twins, stand_in)
        yield twins
    finally:
        for snapshot in snapshots:
            snapshot.restore()


def _swap(module: nn.Module, twins: dict[int, Tensor], stand_in: StandIn) -> None:
    def twin(tensor: Tensor) -> Tensor:
        if id(tensor) not in twins:
            twins[id(tensor)] = stand_in("", tensor)
        return twins[id(tensor)]

    attributes = module.__dict__
    attributes["training"] = False
    if attributes.get("_compiled_call_impl") is not None:  # after model.compile(): it would call the compiled code
        attributes["_compiled_call_impl"] = None
    for table in (module._parameters, module._buffers):
        for name, tensor in table.items():
            if tensor is not None:
                table[name] = twins[id(tensor)]  # type: ignore[assignment]
    for name, value in attributes.items():
        if type(value) in _WITHOUT_TENSORS:
            continue
        if isinstance(value, Tensor):
            attributes[name] = twin(value)
        elif type(value) in (list, tuple) and any(isinstance(item, Tensor) for item in value):
            attributes[name] = type(value)(twin(item) if isinstance(item, Tensor) else item for item in value)
        elif type(value) is dict and name not in _MODULE_TABLES and any(isinstance(v, Tensor) for v in value.values()):
            attributes[name] = {key: twin(v) if isinstance(v, Tensor) else v for key, v in value.items()}


class _Snapshot:
    """A module's attributes, and the content of its tables and plain containers."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._attributes = dict(module.__dict__)
        self._class = type(module)
        self._contents = [
            (value, value.copy()) for value in self._attributes.values() if type(value) in (dict, list, set)
        ]

    def restore(self) -> None:
        if type(self._module) is not self._class:
            self._module.__class__ = self._class
        attributes = self._module.__dict__
        attributes.clear()
        attributes.update(self._attributes)
        for container, content in self._contents:
            if isinstance(container, list):
                container[:] = content
            else:
                container.clear()
                container.update(content)


@contextmanager
def quiet_torch(model: nn.Module) -> Iterator[None]:
    """Run torch without fused transformer paths and compilation, and leave all random number generators as they are."""
    with ExitStack() as stack:
        initialized: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        cuda = list(range(torch.cuda.device_count())) if initialized else []
        stack.enter_context(torch.random.fork_rng(devices=cuda))
        python, legacy = random.getstate(), np.random.get_state()
        stack.callback(random.setstate, python)
        stack.callback(np.random.set_state, legacy)
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        for name in FORWARD_LOGGERS:
            logger = logging.getLogger(name)
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.CRITICAL)
        if "torch._dynamo" in sys.modules or any("_orig_mod" in module._modules for _, module in walk(model)):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


@contextmanager
def collector_paused() -> Iterator[None]:
    """Hold Python's cycle collector back: a full collection over torch's modules costs more than an analysis."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def edited(edits: Mapping[tuple[int, str], tuple[nn.Module, Any]]) -> Iterator[None]:
    """Set module attributes for a while; ``isolated`` around it restores them."""
    for (_, name), (module, value) in edits.items():
        setattr(module, name, value)
    yield
