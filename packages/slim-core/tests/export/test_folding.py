"""Edits of ONNX graphs, on graphs written by hand, against onnx's own reference implementation."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from slim_core.export import folding


def model(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], shape: list[int]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


def types(proto: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in proto.graph.node]


def run(proto: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    return ReferenceEvaluator(proto).run(None, {"x": x})[0]


@given(
    values=arrays(np.float32, (4, 3), elements=st.floats(-100, 100, width=32)),
    scale=arrays(np.float32, 3, elements=st.floats(0.125, 2, width=32)),
    zero=arrays(np.int8, 3, elements=st.integers(-20, 20)),
)
def test_integers_equal_the_reference_implementation(values: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> None:
    node = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"], axis=1)
    proto = model([node], {"s": scale, "z": zero}, [4, 3])
    assert np.array_equal(folding.quantize_linear(values, scale, zero, 1), run(proto, values))


def test_halves_round_to_even_and_ends_saturate() -> None:
    values = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 1000, -1000], np.float32)
    got = folding.quantize_linear(values, np.float32(1), np.int8(0), 0)
    assert got.tolist() == [0, 2, 2, 0, -2, 127, -128]


def test_a_quantized_initializer_is_stored_as_integers() -> None:
    rng = np.random.default_rng(0)
    constants = {
        "w": rng.normal(size=(5, 4)).astype(np.float32),
        "s": np.array([0.01, 0.02, 0.01, 0.05], np.float32),
        "z": np.zeros(4, np.int8),
    }
    proto = model(
        [
            helper.make_node("QuantizeLinear", ["w", "s", "z"], ["q"], axis=1),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], axis=1),
            helper.make_node("MatMul", ["x", "d"], ["y"]),
        ],
        constants,
        [2, 5],
    )
    x = rng.normal(size=(2, 5)).astype(np.float32)
    before = run(proto, x)
    folding.clean(proto)
    assert types(proto) == ["DequantizeLinear", "MatMul"]
    assert {tensor.name for tensor in proto.graph.initializer} == {"q", "s", "z"}
    assert np.array_equal(run(proto, x), before)


def test_a_transposed_weight_is_transposed_in_the_file() -> None:
    rng = np.random.default_rng(0)
    constants = {
        "q": rng.integers(-127, 128, (3, 5)).astype(np.int8),
        "s": np.array([0.01, 0.02, 0.03], np.float32),
        "z": np.zeros(3, np.int8),
    }
    proto = model(
        [
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], axis=0),
            helper.make_node("Transpose", ["d"], ["t"], perm=[1, 0]),
            helper.make_node("MatMul", ["x", "t"], ["y"]),
        ],
        constants,
        [2, 5],
    )
    x = rng.normal(size=(2, 5)).astype(np.float32)
    before = run(proto, x)
    folding.clean(proto)
    assert types(proto) == ["DequantizeLinear", "MatMul"]
    assert np.array_equal(run(proto, x), before)


@pytest.mark.parametrize(
    ("activation", "scale", "zero", "dropped"),
    [
        ("Relu", 0.1, 0, True),
        ("Relu", 0.1, 3, False),  # negative values are representable: the ReLU does something
        ("Clip", 6 / 255, 0, True),
        ("Clip", 3 / 255, 0, True),
        ("Clip", 12 / 255, 0, False),  # values above 6 are representable
    ],
)
def test_an_activation_goes_only_where_saturation_does_the_same(
    activation: str, scale: float, zero: int, dropped: bool
) -> None:
    constants = {"s": np.float32(scale), "z": np.uint8(zero), "lo": np.float32(0), "hi": np.float32(6)}
    constants = {name: np.asarray(value) for name, value in constants.items()}
    inputs = ["x"] if activation == "Relu" else ["x", "lo", "hi"]
    proto = model(
        [
            helper.make_node(activation, inputs, ["a"]),
            helper.make_node("QuantizeLinear", ["a", "s", "z"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
        ],
        constants,
        [200],
    )
    x = np.linspace(-10, 30, 200).astype(np.float32)
    before = run(proto, x)
    folding.clean(proto)
    assert (activation not in types(proto)) is dropped
    assert np.array_equal(run(proto, x), before)


def test_an_activation_with_another_reader_stays() -> None:
    proto = model(
        [
            helper.make_node("Relu", ["x"], ["a"]),
            helper.make_node("QuantizeLinear", ["a", "s", "z"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
            helper.make_node("Add", ["a", "d"], ["y"]),
        ],
        {"s": np.float32(0.1) * np.ones((), np.float32), "z": np.zeros((), np.uint8)},
        [4],
    )
    folding.clean(proto)
    assert "Relu" in types(proto)


@pytest.mark.parametrize(
    ("axes", "becomes"), [([2, 3], "GlobalAveragePool"), ([-1, -2], "GlobalAveragePool"), ([1, 2], "ReduceMean")]
)
def test_a_mean_over_space_becomes_a_pool(axes: list[int], becomes: str) -> None:
    node = helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=1)
    proto = model([node], {"axes": np.array(axes, np.int64)}, [2, 3, 4, 5])
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    before = run(proto, x)
    folding.clean(proto)
    assert types(proto) == [becomes]
    np.testing.assert_allclose(run(proto, x), before, atol=1e-6)


def test_a_mean_that_drops_space_is_flattened_after_it_is_quantized() -> None:
    constants = {
        "axes": np.array([2, 3], np.int64),
        "s": np.float32(0.1) * np.ones((), np.float32),
        "z": np.full((), 100, np.uint8),
    }
    proto = model(
        [
            helper.make_node("ReduceMean", ["x", "axes"], ["m"], keepdims=0),
            helper.make_node("QuantizeLinear", ["m", "s", "z"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
        ],
        constants,
        [2, 3, 4, 5],
    )
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    before = run(proto, x)
    folding.clean(proto)
    assert types(proto) == ["GlobalAveragePool", "QuantizeLinear", "Flatten", "DequantizeLinear"]
    assert np.array_equal(run(proto, x), before)


def test_the_bias_of_a_float_result_counts_in_steps_of_the_product() -> None:
    rng = np.random.default_rng(0)
    constants = {
        "sx": np.float32(0.1) * np.ones((), np.float32),
        "zx": np.full((), 7, np.uint8),
        "w": rng.integers(-127, 128, (3, 5)).astype(np.int8),
        "sw": np.array([0.01, 0.02, 0.03], np.float32),
        "zw": np.zeros(3, np.int8),
        "b": rng.normal(size=3).astype(np.float32),
    }
    proto = model(
        [
            helper.make_node("QuantizeLinear", ["x", "sx", "zx"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "sx", "zx"], ["d"]),
            helper.make_node("DequantizeLinear", ["w", "sw", "zw"], ["v"], axis=0),
            helper.make_node("Gemm", ["d", "v", "b"], ["y"], transB=1),
        ],
        constants,
        [2, 5],
    )
    x = rng.normal(size=(2, 5)).astype(np.float32)
    before = run(proto, x)
    folding.clean(proto)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    step = constants["sx"] * constants["sw"]
    assert np.array_equal(stored["y_bias_integers"], np.rint(constants["b"].astype(np.float64) / step).astype(np.int32))
    assert "b" not in stored
    assert np.abs(run(proto, x) - before).max() <= step.max() / 2 * 1.01


def test_a_layer_used_twice_gets_a_bias_for_each_use() -> None:
    rng = np.random.default_rng(0)
    constants = {
        "s1": np.float32(0.1) * np.ones((), np.float32),
        "s2": np.float32(0.03) * np.ones((), np.float32),
        "z": np.full((), 7, np.uint8),
        "w": rng.integers(-127, 128, (5, 5)).astype(np.int8),
        "sw": np.array([0.01, 0.02, 0.03, 0.04, 0.05], np.float32),
        "zw": np.zeros(5, np.int8),
        "b": rng.normal(size=5).astype(np.float32),
    }
    proto = model(
        [
            helper.make_node("DequantizeLinear", ["w", "sw", "zw"], ["v"], axis=0),
            helper.make_node("QuantizeLinear", ["x", "s1", "z"], ["q1"]),
            helper.make_node("DequantizeLinear", ["q1", "s1", "z"], ["d1"]),
            helper.make_node("Gemm", ["d1", "v", "b"], ["g1"], transB=1),
            helper.make_node("QuantizeLinear", ["x", "s2", "z"], ["q2"]),
            helper.make_node("DequantizeLinear", ["q2", "s2", "z"], ["d2"]),
            helper.make_node("Gemm", ["d2", "v", "b"], ["g2"], transB=1),
            helper.make_node("Add", ["g1", "g2"], ["y"]),
        ],
        constants,
        [2, 5],
    )
    x = rng.normal(size=(2, 5)).astype(np.float32)
    before = run(proto, x)
    folding.clean(proto)
    names = [tensor.name for tensor in proto.graph.initializer] + [
        name for node in proto.graph.node for name in node.output
    ]
    assert len(set(names)) == len(names)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    for use, scale in (("g1", "s1"), ("g2", "s2")):
        step = (constants[scale] * constants["sw"]).astype(np.float64)
        assert np.array_equal(stored[f"{use}_bias_integers"], np.rint(constants["b"].astype(np.float64) / step))
    step = (constants["s1"] + constants["s2"]) * constants["sw"]
    assert np.abs(run(proto, x) - before).max() <= step.max() / 2 * 1.01


def test_dead_nodes_and_initializers_go() -> None:
    proto = model(
        [helper.make_node("Add", ["x", "c"], ["y"]), helper.make_node("Mul", ["x", "e"], ["unused"])],
        {"c": np.ones(2, np.float32), "e": np.ones(2, np.float32)},
        [2],
    )
    folding.clean(proto)
    assert types(proto) == ["Add"]
    assert [tensor.name for tensor in proto.graph.initializer] == ["c"]


def test_what_an_inner_graph_reads_stays() -> None:
    inner = helper.make_graph(
        [helper.make_node("Add", ["c", "c"], ["r"])],
        "inner",
        [],
        [helper.make_tensor_value_info("r", TensorProto.FLOAT, None)],
    )
    node = helper.make_node("If", ["b"], ["y"], then_branch=inner, else_branch=inner)
    proto = model([node], {"b": np.asarray(True), "c": np.ones(2, np.float32)}, [2])
    folding.clean(proto)
    assert {tensor.name for tensor in proto.graph.initializer} == {"b", "c"}
