"""Small edits of an exported graph that folding, placement and insertion share: tensors by name, nodes by meaning."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx import _pytree as fx_pytree

from slim_core.graph.export import ExportedModel
from slim_core.workload import Inputs


def op_name(node: fx.Node) -> str:
    """Return ``"aten.conv2d.default"`` for a call of an ATen operator, ``"getitem"`` and the like otherwise."""
    if node.op != "call_function":
        return node.op
    return str(node.target) if isinstance(node.target, torch._ops.OpOverload) else getattr(node.target, "__name__", "")


def module_path(node: fx.Node) -> str:
    """Return the path of the innermost module that ran ``node``."""
    stack = node.meta.get("nn_module_stack") or {}
    return next(reversed([path for path, _ in stack.values()]), "")


def weight_position(node: fx.Node) -> int:
    """Return which argument of a layer is its weight."""
    return 0 if op_name(node) == "aten.embedding.default" else 1


def layer_name(node: fx.Node) -> str:
    """Return the name of a layer: the path of the module that owns its weight, or its node's name."""
    position = weight_position(node)
    weight = owner_of(node.args[position]) if len(node.args) > position else None
    if weight is None:
        return module_path(node) or node.name
    return weight.removesuffix(".weight")


def argument(node: fx.Node, position: int, default: Any = None) -> Any:
    """Return a positional argument, or ``default`` where it was left out."""
    return node.args[position] if len(node.args) > position else default


def get_tensor(model: nn.Module, name: str) -> Tensor:
    """Return the parameter, buffer or constant at the dotted ``name``."""
    owner, _, leaf = name.rpartition(".")
    tensor: Tensor = getattr(model.get_submodule(owner), leaf)
    return tensor


def set_tensor(model: nn.Module, name: str, tensor: Tensor, *, persistent: bool = True) -> None:
    """Put a parameter (if ``tensor`` is one) or buffer at the dotted ``name``, making the modules on the way."""
    *path, leaf = name.split(".")
    owner = model
    for part in path:
        if part not in owner._modules:
            owner.add_module(part, nn.Module())
        owner = owner.get_submodule(part)
    if isinstance(tensor, nn.Parameter):
        owner.register_parameter(leaf, tensor)
    else:
        owner.register_buffer(leaf, tensor, persistent=persistent)


def drop_tensor(model: ExportedModel, name: str) -> None:
    """Remove the tensor at ``name`` and what reads it without using it."""
    for node in list(model.graph.nodes):
        if node.op == "get_attr" and node.target == name and not node.users:
            model.graph.erase_node(node)
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    if leaf in module._parameters or leaf in module._buffers:
        delattr(module, leaf)


def read_tensor(model: ExportedModel, name: str, before: fx.Node) -> fx.Node:
    """Return a ``get_attr`` node for ``name``, a fresh one in front of ``before``."""
    with model.graph.inserting_before(before):
        node = model.graph.create_node("get_attr", name)
    node.meta["val"] = get_tensor(model, name).detach()
    return node


def owner_of(node: Any) -> str | None:
    """Return the state-dict name that ``node`` reads, or ``None``."""
    return str(node.target) if isinstance(node, fx.Node) and node.op == "get_attr" else None


def tied_names(model: nn.Module, name: str) -> tuple[str, ...]:
    """Return all names of the parameter or buffer at ``name``, sorted."""
    tensor = get_tensor(model, name)
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return tuple(sorted(other for other, candidate in named if candidate is tensor))


def is_float(node: Any) -> bool:
    """Tell whether ``node`` is a float32 tensor, and not a scalar, an index or a tuple."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return isinstance(value, Tensor) and value.dtype == torch.float32


def rank(node: Any) -> int:
    """Return the number of dimensions of a tensor node, 0 for anything else."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return value.dim() if isinstance(value, Tensor) else 0


def flat_inputs(model: ExportedModel, inputs: Inputs | Tensor) -> list[Any]:
    """Return ``inputs`` in the order of the graph's placeholders."""
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if isinstance(inputs, Mapping):
        kwargs = dict(inputs)
    else:
        args = tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
    return list(fx_pytree.tree_flatten_spec((args, kwargs), model._in_spec))


class Tap(fx.Interpreter):
    """Runs a graph and hands the values of some nodes to callbacks, freeing everything else as it goes."""

    def __init__(self, model: ExportedModel, taps: Mapping[str, Callable[[Tensor], None]]) -> None:
        super().__init__(model)
        self._taps = taps

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        callback = self._taps.get(n.name)
        if callback is not None:
            callback(result)
        return result


def tap(model: ExportedModel, inputs: Inputs | Tensor, taps: Mapping[str, Callable[[Tensor], None]]) -> None:
    """Run ``model`` on ``inputs`` without gradients and call ``taps[node name]`` with each node's value."""
    with torch.no_grad():
        Tap(model, taps).run(*flat_inputs(model, inputs), enable_io_processing=False)
