"""Fake-quantizers of a PyTorch graph become ``QuantizeLinear`` and ``DequantizeLinear`` in front of the ONNX exporter.

The exporter could translate ``fake_quantize_*`` itself, but ``torch.export`` has no shape rule for it under a dynamic
batch, and it knows 8 bits only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from slim_core.graph.export import copy_graph

_PER_TENSOR = (
    torch.ops.aten.fake_quantize_per_tensor_affine.default,
    torch.ops.aten.fake_quantize_per_tensor_affine.tensor_qparams,
)
_PER_CHANNEL = torch.ops.aten.fake_quantize_per_channel_affine.default


def is_fake_quantizer(node: fx.Node) -> bool:
    """Return whether a node calls one of torch's fake-quantizing operators, per tensor or per channel."""
    return node.target in _PER_TENSOR or node.target == _PER_CHANNEL


def has_fake_quantizers(model: nn.Module) -> bool:
    """Return whether a model is a graph in which at least one tensor is fake-quantized."""
    return isinstance(model, fx.GraphModule) and any(is_fake_quantizer(node) for node in model.graph.nodes)


def with_onnx_quantizers(model: nn.Module) -> nn.Module:
    """Return ``model`` with its fake-quantizers as ONNX operators. Tensors are shared; ``model`` is not changed."""
    if not isinstance(model, fx.GraphModule) or not has_fake_quantizers(model):
        return model
    changed = fx.GraphModule(model, copy_graph(model.graph), type(model).__name__)
    for number, node in enumerate([node for node in changed.graph.nodes if is_fake_quantizer(node)]):
        _replace(changed, node, f"quantizer_{number}")
    changed.recompile()
    return changed


def _replace(model: fx.GraphModule, node: fx.Node, name: str) -> None:
    per_channel = node.target == _PER_CHANNEL
    axis = node.args[3] if per_channel else None
    low, high = node.args[-2:]
    values = [_value(model, argument) for argument in node.args[1:3]]
    if any(value is None for value in values):
        return  # computed in the graph: left to the exporter's own translation
    scale, zero_point = values
    integers = torch.int8 if int(low) < 0 else torch.uint8  # type: ignore[arg-type]
    model.register_buffer(f"{name}_scale", torch.as_tensor(scale, dtype=torch.float32))
    model.register_buffer(f"{name}_zero_point", torch.as_tensor(zero_point).to(integers))
    with model.graph.inserting_before(node):
        parts = [model.graph.create_node("get_attr", f"{name}_{leaf}") for leaf in ("scale", "zero_point")]
        made = model.graph.call_function(quantize_dequantize(axis, int(low), int(high)), (node.args[0], *parts))  # type: ignore[arg-type]
    node.replace_all_uses_with(made)
    model.graph.erase_node(node)


def quantize_dequantize(axis: Any, low: int, high: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Return a function that ``torch.export`` traces into ``QuantizeLinear``, ``Clip`` where bits are few, and back."""

    def quantizer(values: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        attributes: dict[str, Any] = {} if axis is None else {"axis": axis}
        kind, shape = zero_point.dtype, values.shape
        result = torch.onnx.ops.symbolic(
            "QuantizeLinear", (values, scale, zero_point), attributes, dtype=kind, shape=shape
        )
        full = torch.iinfo(kind)
        if (low, high) not in ((full.min, full.max), (full.min + 1, full.max)):
            ends = [torch.tensor(end, dtype=kind) for end in (low, high)]
            result = torch.onnx.ops.symbolic("Clip", (result, *ends), dtype=kind, shape=shape)
        return torch.onnx.ops.symbolic(
            "DequantizeLinear", (result, scale, zero_point), attributes, dtype=values.dtype, shape=shape
        )

    return quantizer


def _value(model: fx.GraphModule, argument: Any) -> Any:
    if not isinstance(argument, fx.Node):
        return argument
    if argument.target == torch.ops.aten.expand.default:
        inner = _value(model, argument.args[0])
        return None if inner is None else inner.expand(argument.args[1]).clone()
    if argument.op != "get_attr":
        return None
    owner, _, leaf = str(argument.target).rpartition(".")
    return getattr(model.get_submodule(owner), leaf).detach()
