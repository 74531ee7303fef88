"""Edits of an ONNX graph: quantized weights folded into integers, dead parts and tracing metadata removed.

Everything here keeps what the graph computes, to the bit where integers are concerned.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from slim_core.export import hard_activations
from slim_core.export.compressed import lower_weights
from slim_core.extras import require


def clean(proto: Any, runtime: str = "onnxruntime") -> list[str]:
    """Fold, prune and strip ``proto`` in place; return notes."""
    notes = lower_weights(proto, runtime)
    use_global_pooling(proto)
    folded = fold_quantized_weights(proto)
    fold_weight_transposes(proto)
    quantize_last_biases(proto)
    drop_saturated_activations(proto)
    hard_activations.use_integers(proto)
    remove_dead(proto)
    strip_metadata(proto)
    name_batch(proto)
    return [*notes, *([f"{folded} quantized tensors stored as integers"] if folded else [])]


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


def fold_weight_transposes(proto: Any) -> None:
    """Transpose integer weights in the file, in place of ``Transpose`` after their ``DequantizeLinear``."""
    onnx = require("onnx", "slim-core[onnx]")
    graph = proto.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    makers = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    for node in list(graph.node):
        maker = makers.get(node.input[0]) if node.op_type == "Transpose" else None
        if maker is None or maker.input[0] not in weights or any(item.name == "block_size" for item in maker.attribute):
            continue
        if any(other.op_type != "Transpose" for other in graph.node if maker.output[0] in other.input):
            continue  # the weight is read as it is, too: it would stand in the file twice
        array = onnx.numpy_helper.to_array(weights[maker.input[0]])
        order = next((list(item.ints) for item in node.attribute if item.name == "perm"), list(range(array.ndim))[::-1])
        moved = onnx.numpy_helper.from_array(np.ascontiguousarray(array.transpose(order)), f"{node.output[0]}_integers")
        fresh = onnx.helper.make_node("DequantizeLinear", [moved.name, *maker.input[1:]], list(node.output), maker.name)
        axis = next((item.i for item in maker.attribute if item.name == "axis"), None)
        if axis is not None:
            fresh.attribute.append(onnx.helper.make_attribute("axis", order.index(axis % array.ndim)))
        graph.initializer.append(moved)
        position = list(graph.node).index(node)
        graph.node.remove(node)
        graph.node.insert(position, fresh)


def quantize_last_biases(proto: Any) -> None:
    """Store the bias of a ``Gemm`` of integers with a float result as int32.

    onnxruntime quantizes a float bias itself only where the result is quantized too. The step is input scale times
    weight scale, in which the integer product counts.
    """
    onnx = require("onnx", "slim-core[onnx]")
    graph = proto.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    makers = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    for node in [node for node in graph.node if node.op_type == "Gemm" and len(node.input) == 3]:
        values, weight = makers.get(node.input[0]), makers.get(node.input[1])
        readers = [other for other in graph.node if node.output[0] in other.input]
        plain = all(item.f == 1.0 for item in node.attribute if item.name in ("alpha", "beta"))
        if values is None or weight is None or node.input[2] not in constants or not plain:
            continue
        names = [values.input[1], weight.input[1]]
        scales = [onnx.numpy_helper.to_array(constants[name]) for name in names if name in constants]
        if len(scales) != 2 or any(other.op_type == "QuantizeLinear" for other in readers):
            continue
        bias = onnx.numpy_helper.to_array(constants[node.input[2]])
        step = np.asarray(scales[0].reshape(()) * scales[1], np.float32)
        integers = np.rint(bias.astype(np.float64) / step.astype(np.float64))
        if bias.ndim != 1 or (step.ndim and len(step) != len(bias)) or np.abs(integers).max(initial=0) >= 2**31:
            continue
        parts = [np.asarray(integers, np.int32), step, np.zeros(step.shape, np.int32)]
        base = f"{node.output[0]}_bias"  # by its use: one bias may serve twice, with another step each time
        names = [f"{base}_{part}" for part in ("integers", "step", "zero_point")]
        graph.initializer.extend(onnx.numpy_helper.from_array(*pair) for pair in zip(parts, names, strict=True))
        made = onnx.helper.make_node("DequantizeLinear", names, [f"{base}_float"], axis=0)
        graph.node.insert(list(graph.node).index(node), made)
        node.input[2] = made.output[0]


def drop_saturated_activations(proto: Any) -> None:
    """Remove ``Relu`` and ``Clip`` whose every reader quantizes to a range that saturates at the same values."""
    onnx = require("onnx", "slim-core[onnx]")
    graph = proto.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    kept_values = {value.name for value in graph.output}
    for node in [node for node in graph.node if node.op_type in ("Relu", "Clip")]:
        readers = [other for other in graph.node if node.output[0] in other.input]
        ends = _ends(onnx, node, constants)
        quantizers = all(other.op_type == "QuantizeLinear" and other.input[0] == node.output[0] for other in readers)
        if not readers or not quantizers or ends is None or node.output[0] in kept_values:
            continue
        if all(_saturates(onnx, reader, ends, constants) for reader in readers):
            for reader in readers:
                reader.input[0] = node.input[0]
            graph.node.remove(node)


def use_global_pooling(proto: Any) -> None:
    """Write a mean over all space of an image tensor as ``GlobalAveragePool``, which runtimes have in integers."""
    onnx = require("onnx", "slim-core[onnx]")
    graph = proto.graph
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in [*graph.value_info, *graph.input]}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in list(graph.node):
        if node.op_type != "ReduceMean" or len(node.input) != 2 or node.input[1] not in constants:
            continue
        rank = ranks.get(node.input[0], 0)
        axes = {int(axis) % max(rank, 1) for axis in onnx.numpy_helper.to_array(constants[node.input[1]]).reshape(-1)}
        keeps = all(item.i == 1 for item in node.attribute if item.name == "keepdims")
        readers = [other for other in graph.node if node.output[0] in other.input]
        quantized = len(readers) == 1 and readers[0].op_type == "QuantizeLinear"
        if rank < 4 or axes != set(range(2, rank)) or not (keeps or quantized):
            continue
        node.op_type = "GlobalAveragePool"
        del node.attribute[:]
        del node.input[1:]
        if not keeps:  # the pool keeps its dimensions: they go from the integers
            (quantizer,) = readers
            flat, quantizer.output[0] = quantizer.output[0], f"{quantizer.output[0]}_wide"
            flatten = onnx.helper.make_node("Flatten", [quantizer.output[0]], [flat], axis=1)
            graph.node.insert(list(graph.node).index(quantizer) + 1, flatten)


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


def _ends(onnx: Any, node: Any, constants: dict[str, Any]) -> tuple[float, float] | None:
    """Return the lowest and highest result of ``Relu`` or ``Clip``, or ``None`` when they are not constant."""
    if node.op_type == "Relu":
        return 0.0, float("inf")
    names = [*node.input[1:], "", ""][:2]
    if any(name and name not in constants for name in names):
        return None
    low, high = (float(onnx.numpy_helper.to_array(constants[name]).reshape(())) if name else None for name in names)
    return (float("-inf") if low is None else low), (float("inf") if high is None else high)


def _saturates(onnx: Any, reader: Any, ends: tuple[float, float], constants: dict[str, Any]) -> bool:
    """Tell whether both ends fall on or beyond the last integers of ``reader``, so that clipping changes nothing."""
    if len(reader.input) < 3 or any(name not in constants for name in reader.input[1:3]):
        return False
    scale, zero_point = (onnx.numpy_helper.to_array(constants[name]) for name in reader.input[1:3])
    if scale.size != 1:
        return False
    limits = np.iinfo(zero_point.dtype)
    with np.errstate(over="ignore"):
        low, high = (
            float(np.rint(np.float32(end) / scale.reshape(()))) + float(zero_point.reshape(())) for end in ends
        )
    return low <= limits.min and high >= limits.max
