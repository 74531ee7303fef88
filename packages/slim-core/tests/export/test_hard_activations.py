"""Hard-swish and hard-sigmoid of integers: the same values as the functions themselves, to the bit of the integers."""

from __future__ import annotations

import numpy as np
import pytest

from slim_core.export import hard_activations

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")


def model(op: str, scale: float, zero_point: int, dtype: type, out: tuple[float, int], **attributes: float) -> object:
    """``x -> quantize -> dequantize -> op -> quantize -> dequantize``."""
    values = {
        "s": np.float32(scale), "z": dtype(zero_point), "os": np.float32(out[0]), "oz": dtype(out[1]),
    }  # fmt: skip
    make = onnx.helper.make_node
    nodes = [
        make("QuantizeLinear", ["x", "s", "z"], ["q"]),
        make("DequantizeLinear", ["q", "s", "z"], ["d"]),
        make(op, ["d"], ["y"], **attributes),
        make("QuantizeLinear", ["y", "os", "oz"], ["yq"]),
        make("DequantizeLinear", ["yq", "os", "oz"], ["out"]),
    ]
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes, "g", [info("x", 1, [None])], [info("out", 1, [None])],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )  # fmt: skip
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)


def run(proto: object, x: np.ndarray, *, optimized: bool) -> np.ndarray:
    options = ort.SessionOptions()
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimized else level.ORT_DISABLE_ALL
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


ATTRIBUTES = {"HardSwish": {}, "HardSigmoid": {"alpha": 1 / 6, "beta": 0.5}}
CASES = [
    (3 / 40, 128, np.uint8),  # both ends inside
    (3 / 100, 100, np.uint8),  # the lower end is the last integer
    (3 / 200, 200, np.uint8),  # the upper end lies beyond the last integer
    (3 / 60, -10, np.int8),
    (3 / 1, 60, np.uint8),
]


@pytest.mark.parametrize("op", ATTRIBUTES)
@pytest.mark.parametrize(("scale", "zero_point", "dtype"), CASES)
@pytest.mark.parametrize("optimized", [False, True])
def test_the_integers_are_those_of_the_function(
    op: str, scale: float, zero_point: int, dtype: type, optimized: bool
) -> None:
    out = (0.011, 0 if op == "HardSigmoid" else 35)
    proto = model(op, scale, zero_point, dtype, out, **ATTRIBUTES[op])
    limits = np.iinfo(dtype)
    x = ((np.arange(limits.min, limits.max + 1) - zero_point) * scale).astype(np.float32)  # every integer
    expected = run(proto, x, optimized=False)
    assert hard_activations.use_integers(proto) == 1
    assert not any(node.op_type == op for node in proto.graph.node)
    onnx.checker.check_model(proto)
    found = run(proto, x, optimized=optimized)
    steps = np.rint((found - expected) / np.float32(out[0]))
    assert np.abs(steps).max() <= 1  # where a product falls on a rounding boundary
    assert np.count_nonzero(steps) <= len(x) // 50


@pytest.mark.parametrize(
    ("scale", "zero_point", "dtype"),
    [(3 / 40.5, 128, np.uint8), (3 / 100, 99, np.uint8), (4.0, 128, np.uint8), (3 / 127, -2, np.int8)],
)
def test_other_scales_are_left_alone(scale: float, zero_point: int, dtype: type) -> None:
    """3 is no whole number of steps, or -3 lies beyond the last integer."""
    proto = model("HardSwish", scale, zero_point, dtype, (0.02, 20))
    assert hard_activations.use_integers(proto) == 0


def test_another_slope_is_left_alone() -> None:
    assert hard_activations.use_integers(model("HardSigmoid", 3 / 40, 128, np.uint8, (0.01, 0))) == 0
