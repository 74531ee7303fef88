"""Keys and what is read from them, against closed forms."""

from __future__ import annotations

from math import log2

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slim_core.errors import MeasureError
from slim_latency.agent import kernel_key
from slim_latency.kernels import FEATURES, WORK, parse_key

CASES = {
    "Conv.nchwc f32[1,32,48,48] f32[64,32,1,1] -> f32[1,64,48,48] {activation=Relu}":
        ("Conv.nchwc/pointwise", 64 * 48 * 48 * 32, 64 * 32 * 4),
    "Conv.nchwc f32[1,3,96,96] f32[32,3,3,3] -> f32[1,32,48,48] {strides=2,2}":
        ("Conv.nchwc/first", 32 * 48 * 48 * 27, 32 * 27 * 4),
    "Conv.nchwc f32[1,32,24,24] f32[32,1,5,5] -> f32[1,32,24,24] {group=32}":
        ("Conv.nchwc/depthwise", 32 * 24 * 24 * 25, 32 * 25 * 4),
    "Conv f32[2,64,8,8] f32[32,16,3,3] -> f32[2,32,8,8] {group=4}":
        ("Conv/grouped", 2 * 32 * 8 * 8 * 16 * 9, 32 * 16 * 9 * 4),
    "Gemm f32[1,1280] -> f32[1,1000]": ("Gemm", 1280 * 1000, 1280 * 1000 * 4),
    "MatMul f32[2,5,7] f32[2,7,3] -> f32[2,5,3]": ("MatMul", 2 * 5 * 7 * 3, 2 * 7 * 3 * 4),
    "QLinearConv.microsoft u8[1,12,12,40] -> u8[1,12,12,160] {kernel_shape=1,1}":
        ("QLinearConv.microsoft/pointwise:u8", 12 * 12 * 40 * 160, 40 * 160),
    "QLinearConv.microsoft u8[1,48,48,16] -> u8[1,24,24,16] {group=16 kernel_shape=3,3 strides=2,2}":
        ("QLinearConv.microsoft/depthwise:u8", 24 * 24 * 16 * 9, 16 * 9),
    "MaxPool.nchwc f32[1,64,48,48] -> f32[1,64,24,24] {kernel_shape=3,3 strides=2,2}": ("MaxPool.nchwc", 0, 0),
}  # fmt: skip


@pytest.mark.parametrize("key", CASES)
def test_kind_work_and_weights(key: str) -> None:
    kernel = parse_key(key)
    assert (kernel.family, kernel.macs, kernel.weight_bytes) == CASES[key]


def test_features_are_logarithms_of_sizes() -> None:
    kernel = parse_key("Conv.nchwc f32[1,32,48,48] f32[64,32,3,3] f32[1,64,24,24] -> f32[1,64,24,24] {strides=2,2}")
    found = dict(zip(FEATURES, kernel.features(), strict=True))
    assert found["macs"] == log2(1 + 64 * 24 * 24 * 32 * 9)
    assert found["window"] == log2(10)
    assert found["stride"] == log2(5)
    assert found["positions"] == log2(1 + 24 * 24)
    assert found["inputs"] == 3
    bytes_ = 4 * (32 * 48 * 48 + 64 * 32 * 9 + 2 * 64 * 24 * 24)
    assert found["bytes"] == log2(1 + bytes_)


def test_work_counts_what_is_moved_apart_from_weights() -> None:
    kernel = parse_key("Conv.nchwc f32[1,32,8,8] f32[64,32,1,1] f32[1,64,8,8] -> f32[1,64,8,8]")
    found = dict(zip(WORK, kernel.work(), strict=True))
    assert found["read_bytes"] == 4 * (32 * 64 + 64 * 64)
    assert found["written_bytes"] == 4 * 64 * 64
    assert found["lines"] == 64 * 8
    assert found["passes"] == 64 * 8 * 32


@given(
    st.sampled_from(["Conv", "Add", "MaxPool", "Gemm"]),
    st.lists(st.lists(st.integers(1, 64), min_size=2, max_size=4), min_size=1, max_size=3),
    st.dictionaries(st.sampled_from(["strides", "group", "activation", "axis"]), st.integers(2, 9), max_size=3),
)
def test_a_key_says_what_it_was_made_of(op: str, shapes: list[list[int]], attributes: dict[str, int]) -> None:
    given_ = {name: [value, value] if name == "strides" else value for name, value in attributes.items()}
    key = kernel_key(op, "com.microsoft.nchwc", [("f32", shape) for shape in shapes], [("f32", shapes[0])], given_)
    kernel = parse_key(key)
    assert kernel.op == f"{op}.nchwc"
    assert kernel.inputs == tuple(("f32", tuple(shape)) for shape in shapes)
    assert kernel.outputs == (("f32", tuple(shapes[0])),)
    assert set(kernel.attributes) == set(attributes)


def test_biases_padding_and_ones_are_left_out() -> None:
    attributes = {"pads": [1, 1, 1, 1], "group": 1, "strides": [1, 1], "auto_pad": "NOTSET", "kernel_shape": [3, 3]}
    inputs = [("f32", (1, 3, 8, 8)), ("f32", (4, 3, 3, 3)), ("f32", (4,))]
    assert kernel_key("Conv", "", inputs, [("f32", (1, 4, 8, 8))], attributes) == (
        "Conv f32[1,3,8,8] f32[4,3,3,3] -> f32[1,4,8,8]"
    )


def test_a_hidden_weight_is_told_by_the_window() -> None:
    key = kernel_key("QLinearConv", "com.microsoft", [("u8", (1, 8, 8, 3))], [("u8", (1, 8, 8, 4))],
                     {"kernel_shape": [3, 3]})  # fmt: skip
    assert parse_key(key).macs == 8 * 8 * 4 * 27


@pytest.mark.parametrize("key", ["", "Conv", "Conv f32[1,2 -> f32[1]", "Conv f32[1] -> f32[1] {group}", "a -> b"])
def test_what_is_no_key(key: str) -> None:
    with pytest.raises(MeasureError, match="not the key of a kernel"):
        parse_key(key)
