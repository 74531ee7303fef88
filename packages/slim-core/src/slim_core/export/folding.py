"""Edits of an ONNX graph: quantized weights folded into integers, dead parts and tracing metadata removed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from slim_core.extras import require


def clean(proto: Any) -> list[str]:
    """Fold, prune and strip ``proto`` in place; return notes."""
    folded = fold_quantized_weights(proto)
    remove_dead(proto)
    strip_metadata(proto)
    name_batch(proto)
    return [f"{folded} quantized tensors stored as integers"] if folded else []


def fold_quantized_weights(proto: Any) -> int:
    """Replace every ``QuantizeLinear`` of an initialiser by an integer initialiser; return how many."""
    onnx = require("onnx", "slim-core[onnx]")
    graph = proto.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    folded = 0
    for node in list(graph.node):
        if node.op_type != "QuantizeLinear" or not all(name in constants for name in node.input):
            continue
        values = [onnx.numpy_helper.to_array(constants[name]) for name in node.input]
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
        zero_point = values[2] if len(values) > 2 else np.zeros_like(values[1], dtype=np.uint8)
        integers = quantize_linear(values[0], values[1], zero_point, axis)
        tensor = onnx.numpy_helper.from_array(integers, node.output[0])
        graph.initializer.append(tensor)
        graph.node.remove(node)
        folded += 1
    return folded


def quantize_linear(values: NDArray[Any], scale: NDArray[Any], zero_point: NDArray[Any], axis: int) -> NDArray[Any]:
    """What ONNX's ``QuantizeLinear`` computes: round half to even, then saturate to the zero point's type."""
    if scale.ndim == 1 and scale.size >= 1 and values.ndim >= 1:
        shape = [1] * values.ndim
        shape[axis] = -1
        scale, zero_point = scale.reshape(shape), zero_point.reshape(shape)
    limits = np.iinfo(zero_point.dtype)
    rounded = np.rint((values / scale).astype(np.float32)) + zero_point.astype(np.float32)
    saturated: NDArray[Any] = np.clip(rounded, limits.min, limits.max).astype(zero_point.dtype)
    return saturated


def remove_dead(proto: Any) -> None:
    """Remove nodes and initialisers that no output needs."""
    graph = proto.graph
    needed = {value.name for value in graph.output}
    kept: list[Any] = []
    for node in reversed(graph.node):
        if any(name in needed for name in node.output):
            kept.append(node)
            needed.update(_uses(node))
    del graph.node[:]
    graph.node.extend(reversed(kept))
    alive = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.initializer[:]
    graph.initializer.extend(alive)


def strip_metadata(proto: Any) -> None:
    """Remove what tells where the graph came from: properties, documentation, inferred shapes of inner values."""
    del proto.metadata_props[:]
    proto.ClearField("doc_string")
    _strip_graph(proto.graph)
    for function in proto.functions:
        del function.metadata_props[:]
        function.ClearField("doc_string")
        _strip_nodes(function.node)


def name_batch(proto: Any) -> None:
    """Call the symbolic batch dimension ``batch``."""
    symbols = [
        dimension.dim_param
        for value in proto.graph.input
        for dimension in value.type.tensor_type.shape.dim
        if dimension.dim_param
    ]
    if not symbols:
        return
    for value in [*proto.graph.input, *proto.graph.output]:
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param == symbols[0]:
                dimension.dim_param = "batch"


def _uses(node: Any) -> set[str]:
    names = set(node.input)
    for attribute in node.attribute:
        for graph in [attribute.g, *attribute.graphs]:
            for inner in graph.node:
                names |= _uses(inner)
            names.update(value.name for value in graph.output)
    return names


def _strip_graph(graph: Any) -> None:
    del graph.metadata_props[:]
    del graph.value_info[:]
    graph.ClearField("doc_string")
    for value in [*graph.input, *graph.output, *graph.initializer]:
        del value.metadata_props[:]
        value.ClearField("doc_string")
    _strip_nodes(graph.node)


def _strip_nodes(nodes: Any) -> None:
    for node in nodes:
        del node.metadata_props[:]
        node.ClearField("doc_string")
        for attribute in node.attribute:
            attribute.ClearField("doc_string")
            if attribute.HasField("g"):
                _strip_graph(attribute.g)
            for graph in attribute.graphs:
                _strip_graph(graph)
