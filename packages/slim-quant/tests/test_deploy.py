"""What onnxruntime makes of the file: every layer in integers, and the results that were simulated."""

from __future__ import annotations

import importlib
from pathlib import Path

import onnx
import pytest
import torch
from quant_nets import pictures, settle, trained
from torch import nn

from slim_core.export import to_onnx
from slim_quant import QuantResult, compare, quantize, runtime_operators

FLOAT_OPERATORS = {
    "Conv",
    "FusedConv",
    "Gemm",
    "FusedGemm",
    "MatMul",
    "Add",
    "Mul",
    "Relu",
    "Clip",
    "GlobalAveragePool",
    "ReduceMean",
}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return trained()


@pytest.fixture(scope="module")
def result(model: nn.Module) -> QuantResult:
    calibration = [pictures(64, seed)[0] for seed in range(4)]
    return quantize(model, calibration, example_inputs=(calibration[0][:1],))


@pytest.fixture(scope="module")
def path(result: QuantResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("deploy") / "int8.onnx"
    to_onnx(result.model, (torch.randn(1, 3, 16, 16),), path)
    return path


def test_every_layer_runs_in_integers(path: Path) -> None:
    operators = runtime_operators(path)
    assert operators["QLinearConv"] == 5
    assert operators["QGemm"] == 2
    assert operators["QLinearAdd"] == 1
    assert operators["QLinearGlobalAveragePool"] == 1
    assert operators["QuantizeLinear"] == 1  # the input
    assert not FLOAT_OPERATORS & set(operators)


def test_simulation_is_deployment(result: QuantResult, path: Path) -> None:
    """Values that fall on a rounding boundary may differ by a step of an activation; 40 dB leaves room for that."""
    found = compare(result.model, path, [pictures(256, 1000 + seed)[0] for seed in range(4)])
    assert found.samples == 1024
    assert found.agreement >= 99.5
    assert found.sqnr_db > 40


def test_accuracy_is_kept(model: nn.Module, result: QuantResult) -> None:
    x, labels = pictures(1000, 5)
    with torch.no_grad():
        before, after = ((net(x).argmax(1) == labels).float().mean() for net in (model, result.model))
    assert float(before) > 0.9
    assert abs(float(before) - float(after)) <= 0.005


def test_the_file_holds_integers_and_no_activation_that_saturation_does(path: Path, result: QuantResult) -> None:
    graph = onnx.load(path).graph
    types = {node.op_type for node in graph.node}
    assert not {"Relu", "Clip"} & types
    stored = {item.name: onnx.numpy_helper.to_array(item) for item in graph.initializer}
    weights = sum(array.size for array in stored.values() if array.dtype == "int8" and array.ndim > 1)
    assert weights == sum(parameter.numel() for parameter in result.model.parameters() if parameter.dim() > 1)
    assert all(array.ndim <= 1 for array in stored.values() if array.dtype == "float32")


def test_a_comparison_finds_differences(model: nn.Module, path: Path) -> None:
    """Against the float model the SQNR is that of quantization, and of another network it is none."""
    batch = [pictures(64, 7)[0]]
    torch.manual_seed(1)
    other = settle(type(model)(), batch[0])
    assert 15 < compare(model, path, batch).sqnr_db < 50
    assert compare(other, path, batch).sqnr_db < 5
    assert compare(other, path, batch).agreement < 60


@pytest.mark.parametrize(
    ("family", "name", "width", "integer"),
    [
        pytest.param("mobilenet_v1", "mobilenet_v1", 0.25, {"QLinearConv": 27, "QGemm": 1}, marks=pytest.mark.long),
        ("mobilenet_v2", "mobilenet_v2", 0.25, {"QLinearConv": 52, "QGemm": 1, "QLinearAdd": 11}),
        ("resnet", "resnet20", 0.5, {"QLinearConv": 21, "QGemm": 1, "QLinearAdd": 9}),
        pytest.param("vgg", "vgg11", 0.125, {"QLinearConv": 8, "QGemm": 1}, marks=pytest.mark.long),
    ],
)
@pytest.mark.slow
def test_zoo_models_run_in_integers(
    family: str, name: str, width: float, integer: dict[str, int], tmp_path: Path
) -> None:
    build = getattr(importlib.import_module(f"slim_zoo.models.{family}"), name)
    torch.manual_seed(0)
    x = torch.randn(16, 3, 32, 32)
    model = settle(build(width=width, num_classes=10, input_size=32), x)
    result = quantize(model, [x], example_inputs=(x[:1],))
    small = to_onnx(result.model, (x[:1],), tmp_path / "int8.onnx")
    operators = runtime_operators(small.path)
    assert {operator: operators.get(operator) for operator in integer} == integer
    assert not FLOAT_OPERATORS & set(operators)
    assert compare(result.model, small.path, [x]).sqnr_db > 25  # untrained residual streams are the worst case


@pytest.mark.slow
def test_hard_swish_and_gates_are_quantized_around(tmp_path: Path) -> None:
    from slim_zoo.models.mobilenet_v3 import mobilenet_v3_small

    torch.manual_seed(0)
    x = torch.randn(16, 3, 32, 32)
    model = settle(mobilenet_v3_small(width=0.5, num_classes=10, input_size=32), x)
    result = quantize(model, [x], example_inputs=(x[:1],))
    small = to_onnx(result.model, (x[:1],), tmp_path / "int8.onnx")
    operators = runtime_operators(small.path)
    assert operators["QLinearConv"] == 52
    assert "Conv" not in operators
    assert compare(result.model, small.path, [x]).sqnr_db > 25
