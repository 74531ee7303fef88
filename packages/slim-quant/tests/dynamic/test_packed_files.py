"""Files of packed models on onnxruntime and OpenVINO: which kernels run, and that they compute what was simulated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from weight_nets import Encoder, Sequence, encoder, tokens

from slim_core.export import to_onnx
from slim_quant import quantize_dynamic, quantize_weights, runtime_operators

pytestmark = pytest.mark.filterwarnings("ignore")


def written(model: nn.Module, inputs: Any, folder: Path, runtime: str = "onnxruntime") -> tuple[Path, Any]:
    result = to_onnx(model, (inputs,), folder / "m.onnx", runtime=runtime)
    return result.path, result.parity


def on_onnxruntime(path: Path, inputs: np.ndarray) -> np.ndarray:
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {session.get_inputs()[0].name: inputs})[0]
    return found


def on_openvino(path: Path, inputs: np.ndarray) -> tuple[np.ndarray, list[tuple[str, list[str]]]]:
    """Return the output and, for each kernel, its name and the element types of its inputs."""
    openvino = pytest.importorskip("openvino")
    settings = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)
    kernels = [
        (
            item.get_rt_info()["layerType"].astype(str),
            [port.get_element_type().get_type_name() for port in item.inputs()],
        )
        for item in compiled.get_runtime_model().get_ops()
    ]
    return np.array(compiled([inputs])[0]), kernels


@pytest.fixture(scope="module")
def wide() -> Encoder:
    torch.manual_seed(0)
    return Encoder(128).eval()


@pytest.mark.parametrize(("bits", "group"), [(4, 32), pytest.param(8, None, marks=pytest.mark.slow)])
def test_onnxruntime_multiplies_and_looks_up_with_packed_weights(
    wide: Encoder, bits: int, group: int | None, tmp_path: Path
) -> None:
    model = quantize_weights(wide, (tokens(),), bits=bits, group_size=group).model
    path, parity = written(model, tokens(), tmp_path)
    operators = runtime_operators(path)
    assert operators["MatMulNBits"] == 6
    assert operators["GatherBlockQuantized"] == 1
    assert "DequantizeLinear" not in operators
    assert parity.sqnr_db > 100
    batch = tokens(5, seed=3)
    with torch.no_grad():
        expected = model(batch).numpy()
    assert np.abs(on_onnxruntime(path, batch.numpy()) - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize(("bits", "kept"), [(4, "u4"), pytest.param(8, "u8", marks=pytest.mark.slow)])
def test_openvino_keeps_the_integers_and_agrees(wide: Encoder, bits: int, kept: str, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    model = quantize_weights(wide, (tokens(),), bits=bits, group_size=32).model
    path, _ = written(model, tokens(), tmp_path, "openvino")
    found, kernels = on_openvino(path, tokens().numpy())
    products = [types for kind, types in kernels if kind == "FullyConnected"]
    assert len(products) == 6
    assert all(types[1] == kept for types in products)
    with torch.no_grad():
        expected = model(tokens()).numpy()
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize(("bits", "group", "symmetric"), [
    (3, 20, True), pytest.param(2, 48, False, marks=pytest.mark.long)
])  # fmt: skip
@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", pytest.param("generic", marks=pytest.mark.long)])
def test_ragged_and_odd_groups_are_right_in_every_form(
    bits: int, group: int, symmetric: bool, runtime: str, tmp_path: Path
) -> None:
    model = quantize_weights(encoder(), (tokens(),), bits=bits, group_size=group, symmetric=symmetric).model
    path, parity = written(model, tokens(), tmp_path, runtime)
    assert parity.sqnr_db > 100
    found, _ = on_openvino(path, tokens().numpy())
    with torch.no_grad():
        expected = model(tokens()).numpy()
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


class Embeddings(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.places, self.kinds = nn.Embedding(50, 32), nn.Embedding(9, 32), nn.Embedding(2, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.words(x) + self.places(torch.arange(x.shape[1])) + self.kinds(torch.zeros_like(x))


def test_several_lookups_do_not_share_names(tmp_path: Path) -> None:
    model = quantize_weights(Embeddings(), (tokens(),), bits=4).model
    _, parity = written(model, tokens(), tmp_path, "openvino")
    assert parity.max_diff < 1e-6


def test_the_generic_form_is_onnx_alone(wide: Encoder, tmp_path: Path) -> None:
    model = quantize_weights(wide, (tokens(),), bits=4, skip=["words"]).model
    path, parity = written(model, tokens(), tmp_path, "generic")
    proto = onnx.load(str(path))
    assert {node.domain for node in proto.graph.node} <= {"", "ai.onnx"}
    assert [item.version for item in proto.opset_import if item.domain == ""] == [21]
    blocks = [node for node in proto.graph.node if node.op_type == "DequantizeLinear"]
    assert len(blocks) == 5
    assert parity.sqnr_db > 100
    assert runtime_operators(path)["MatMulNBits"] >= 4  # onnxruntime keeps them packed, too


def test_an_int4_file_is_a_sixth_of_the_float_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(1000, 256), nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 256)).eval()
    floats, _ = written(net, tokens(), tmp_path)
    size = floats.stat().st_size
    path, _ = written(quantize_weights(net, (tokens(),), bits=4).model, tokens(), tmp_path)
    assert path.stat().st_size <= 0.16 * size


@pytest.mark.parametrize("activations", ["per_tensor", pytest.param("per_token", marks=pytest.mark.slow)])
def test_dynamic_products_run_in_integers(activations: Any, tmp_path: Path) -> None:
    model = quantize_dynamic(encoder(), (tokens(),), activations=activations).model
    path, _ = written(model, tokens(), tmp_path)
    operators = runtime_operators(path)
    if activations == "per_tensor":
        assert operators["DynamicQuantizeMatMul"] == 6
    else:
        assert operators["MatMulInteger"] == 6
    batch = tokens(5, seed=3)
    with torch.no_grad():
        expected = model(batch).numpy()
    assert np.abs(on_onnxruntime(path, batch.numpy()) - expected).max() < 1e-3 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("kind", "operator", "options"),
    [
        ("LSTM", "DynamicQuantizeLSTM", {"num_layers": 2, "bidirectional": True}),
        ("LSTM", "DynamicQuantizeLSTM", {"bias": False}),
        ("GRU", "GRU", {"bidirectional": True}),
        pytest.param("RNN", "RNN", {}, marks=pytest.mark.slow),
    ],
)
def test_recurrent_layers_run_as_the_runtime_can(kind: str, operator: str, options: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 9, 12)
    model = quantize_dynamic(Sequence(kind, **options).eval(), (x,)).model
    path, parity = written(model, x, tmp_path)
    assert runtime_operators(path)[operator] == options.get("num_layers", 1)
    assert parity.sqnr_db > 60
    kinds = {
        tensor.data_type
        for tensor in onnx.load(str(path)).graph.initializer
        if len(tensor.dims) > 1 and np.prod(tensor.dims) > 100
    }
    assert kinds <= {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}
