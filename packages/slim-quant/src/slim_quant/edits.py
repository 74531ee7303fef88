"""Structural edits of a graph that quantization makes beyond quantizers, and that a checkpoint does again.

An edit is a JSON object with a ``kind``. It changes names and shapes; values come from the state dict.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import fx, nn

from slim_core.errors import ModelError
from slim_core.graph.export import ExportedModel
from slim_quant.fold import FOLDABLE
from slim_quant.graph import argument, get_tensor, op_name, owner_of, read_tensor, set_tensor, weight_position

#: kind -> the keys beside ``kind``, each the name of a node
KINDS: Mapping[str, tuple[str, ...]] = {"bias": ("layer",)}
_NODE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def add_bias(model: ExportedModel, layer: str) -> dict[str, Any]:
    """Give the convolution or linear layer at node ``layer`` a bias of zeros of its own; return the edit to record.

    Raises:
        ModelError: there is no such layer, or it has a bias already.
    """
    edit = {"kind": "bias", "layer": layer}
    apply_edits(model, [edit])
    return edit


def apply_edits(model: ExportedModel, edits: Iterable[Mapping[str, Any]]) -> None:
    """Make recorded edits; works on meta tensors too.

    Raises:
        ModelError: an edit does not fit the graph.
    """
    for edit in edits:
        _APPLY[edit["kind"]](model, edit)
    model.recompile()


def _bias(model: ExportedModel, edit: Mapping[str, Any]) -> None:
    node = next((item for item in model.graph.nodes if item.name == edit["layer"]), None)
    if node is None or op_name(node) not in FOLDABLE:
        raise ModelError(f"the exported graph has no layer '{edit['layer']}' that could have a bias")
    position, axis = FOLDABLE[op_name(node)]
    if argument(node, position) is not None:
        raise ModelError(f"the layer '{edit['layer']}' of the exported graph has a bias already")
    weight = _owned_weight(node)
    if weight is None:
        raise ModelError(f"the weight of the layer '{edit['layer']}' is computed")
    tensor = get_tensor(model, weight)
    groups = int(argument(node, 6, 1)) if axis == 1 else 1
    name = _free_name(model, f"{weight.removesuffix('weight')}bias")
    values = torch.zeros(tensor.shape[axis] * groups, dtype=tensor.dtype, device=tensor.device)
    set_tensor(model, name, nn.Parameter(values, requires_grad=tensor.requires_grad))
    args = list(node.args) + [None] * (position + 1 - len(node.args))
    args[position] = read_tensor(model, name, node)
    node.args = tuple(args)


def _owned_weight(node: fx.Node) -> str | None:
    """Return the name of a layer's weight, looking through its fake-quantizer."""
    weight = node.args[weight_position(node)]
    while isinstance(weight, fx.Node) and weight.op == "call_function":
        weight = weight.args[0]
    return owner_of(weight)


def _free_name(model: ExportedModel, name: str) -> str:
    taken = {*dict(model.named_parameters(remove_duplicate=False)), *dict(model.named_buffers(remove_duplicate=False))}
    while name in taken:
        name += "_added"
    return name


_APPLY: Mapping[str, Callable[[ExportedModel, Mapping[str, Any]], None]] = {"bias": _bias}
