"""Hard-swish and hard-sigmoid of integers, written so that runtimes stay in integers.

``hard_sigmoid(x) = clip(x, -3, 3) / 6 + 1 / 2`` is a line between two ends. Where ``x = (q - z) s`` and 3 is a whole
number ``k`` of steps, it equals ``(clip(q, z - k, z + k) - (z - k)) s / 6``: the same integers, clipped, read with
another scale and zero point. Nothing is rounded. ``hard_swish(x) = x hard_sigmoid(x)`` is then a product of integers,
for which runtimes have a kernel, where they compute the function itself in float between two conversions.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from slim_core.extras import require

#: 3 counts as a whole number of steps within so much of it: float32 scales are that exact
_EXACT = 1e-5


def use_integers(proto: Any) -> int:
    """Rewrite every ``HardSwish`` and ``HardSigmoid`` of dequantized integers whose steps fit; return how many."""
    onnx = require("onnx", "slim-core[onnx]")
    graph = proto.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    makers = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    changed = 0
    for node in [node for node in graph.node if node.op_type in ("HardSwish", "HardSigmoid")]:
        maker = makers.get(node.input[0])
        if maker is None or len(maker.input) < 3 or any(name not in constants for name in maker.input[1:]):
            continue
        scale, zero_point = (onnx.numpy_helper.to_array(constants[name]) for name in maker.input[1:])
        ends = _ends(scale, zero_point)
        if ends is None or (node.op_type == "HardSigmoid" and not _is_a_sixth(node)):
            continue
        _rewrite(onnx, graph, node, maker, scale, zero_point.dtype, ends)
        changed += 1
    return changed


def _ends(scale: Any, zero_point: Any) -> tuple[int, int] | None:
    """Return the integers of -3 and 3, or ``None`` where they are none."""
    if scale.size != 1 or zero_point.dtype not in (np.int8, np.uint8):
        return None
    steps = 3 / float(scale.reshape(()))
    whole, zero = round(steps), int(zero_point.reshape(()))
    limits = np.iinfo(zero_point.dtype)
    if whole < 1 or abs(steps - whole) > _EXACT * steps or zero - whole < limits.min:
        return None
    return zero - whole, min(zero + whole, limits.max)


def _is_a_sixth(node: Any) -> bool:
    values = {item.name: item.f for item in node.attribute}
    return bool(abs(values.get("alpha", 0.2) - 1 / 6) < 1e-6 and abs(values.get("beta", 0.5) - 0.5) < 1e-6)


def _rewrite(onnx: Any, graph: Any, node: Any, maker: Any, scale: Any, dtype: Any, ends: tuple[int, int]) -> None:
    name, limits = node.output[0], np.iinfo(dtype)
    low, high = ends
    parts = {
        "low": np.asarray(low, dtype),
        "high": np.asarray(high, dtype),
        "sixth": np.asarray(scale.reshape(()) / np.float32(6), np.float32),
    }
    graph.initializer.extend(onnx.numpy_helper.from_array(value, f"{name}_{part}") for part, value in parts.items())
    integers, made = maker.input[0], []
    if low > limits.min or high < limits.max:
        bounds = [f"{name}_low", f"{name}_high"]
        made.append(onnx.helper.make_node("Clip", [integers, *bounds], [f"{name}_clipped"]))
        integers = f"{name}_clipped"
    gate = name if node.op_type == "HardSigmoid" else f"{name}_gate"
    made.append(onnx.helper.make_node("DequantizeLinear", [integers, f"{name}_sixth", f"{name}_low"], [gate]))
    if node.op_type == "HardSwish":
        made.append(onnx.helper.make_node("Mul", [maker.output[0], gate], [name]))
    position = list(graph.node).index(node)
    graph.node.remove(node)
    for offset, fresh in enumerate(made):
        graph.node.insert(position + offset, fresh)
