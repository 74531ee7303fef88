"""The backend ``onnxruntime``: the core's contract, its settings, and what it says about bad files and inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from slim_core.errors import MeasureError
from slim_core.export import to_onnx
from slim_core.measure import Artifact, measure
from slim_core.tensors import TensorSpec
from slim_core.testing.contracts import BackendCase, BackendContract
from slim_core.testing.contracts.backend import onnx_artifact
from slim_core.testing.workloads import TinyNet
from slim_latency.onnx_runtime import OnnxRuntimeBackend


class Exports:
    """Exports of the contract's models, which are the same in every test: each is made once."""

    def __init__(self) -> None:
        self._files: dict[Any, bytes] = {}

    def artifact(self, model: nn.Module, example_inputs: Any, folder: Path) -> Artifact:
        key = (type(model).__name__, tuple(example_inputs[0].shape))
        if key not in self._files:
            made = onnx_artifact(model, example_inputs, folder).onnx
            assert made is not None
            self._files[key] = made.read_bytes()
        path = folder / "cached.onnx"
        path.write_bytes(self._files[key])
        return Artifact(onnx=path)


@pytest.fixture(scope="module")
def exports() -> Exports:
    return Exports()


class TestContract(BackendContract):
    @pytest.fixture
    def case(self, exports: Exports) -> BackendCase:
        return BackendCase(OnnxRuntimeBackend, exports.artifact, module="onnxruntime")


def graph_file(path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: list[Any] = []) -> Path:  # noqa: B006
    graph = helper.make_graph(nodes, "by hand", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)
    return path


@pytest.fixture
def subtraction(tmp_path: Path) -> Path:
    """A file that computes ``a - b`` of (N, 2) and (2,)."""
    return graph_file(
        tmp_path / "sub.onnx",
        [helper.make_node("Sub", ["a", "b"], ["difference"])],
        [
            helper.make_tensor_value_info("a", TensorProto.FLOAT, ["n", 2]),
            helper.make_tensor_value_info("b", TensorProto.FLOAT, [2]),
        ],
        [helper.make_tensor_value_info("difference", TensorProto.FLOAT, ["n", 2])],
    )


A, B = torch.tensor([[5.0, 7.0]]), torch.tensor([1.0, 10.0])


class TestInputs:
    def test_by_position(self, subtraction: Path) -> None:
        session = OnnxRuntimeBackend().prepare(Artifact(onnx=subtraction), (A, B))
        assert session.run((A, B))[0].tolist() == [[4.0, -3.0]]

    def test_by_name_in_any_order(self, subtraction: Path) -> None:
        session = OnnxRuntimeBackend().prepare(Artifact(onnx=subtraction), (A, B))
        assert session.run({"b": B, "a": A})[0].tolist() == [[4.0, -3.0]]

    def test_other_names_go_by_position(self, subtraction: Path) -> None:
        session = OnnxRuntimeBackend().prepare(Artifact(onnx=subtraction), (A, B))
        assert session.run({"x": A, "y": B})[0].tolist() == [[4.0, -3.0]]

    def test_tensors_that_are_not_contiguous(self, subtraction: Path) -> None:
        session = OnnxRuntimeBackend().prepare(Artifact(onnx=subtraction), (A, B))
        turned = torch.tensor([[5.0], [7.0]]).t()
        assert session.run((turned, B))[0].tolist() == [[4.0, -3.0]]

    def test_the_signature_of_the_file(self, subtraction: Path) -> None:
        session = OnnxRuntimeBackend().prepare(Artifact(onnx=subtraction), (A, B))
        assert session.inputs == (
            TensorSpec("a", (None, 2), "float32", "input"),
            TensorSpec("b", (2,), "float32", "input"),
        )

    def test_too_few(self, subtraction: Path) -> None:
        session = OnnxRuntimeBackend().prepare(Artifact(onnx=subtraction), (A, B))
        with pytest.raises(MeasureError, match=r"takes 2 inputs \(a, b\), 1 are given"):
            session.run((A,))

    def test_of_a_type_that_the_file_does_not_take(self, subtraction: Path) -> None:
        session = OnnxRuntimeBackend().prepare(Artifact(onnx=subtraction), (A, B))
        with pytest.raises(MeasureError, match="cannot run the file on these inputs"):
            session.run((A.double(), B))


class TestSettings:
    def test_they_are_recorded(self, subtraction: Path) -> None:
        info = OnnxRuntimeBackend("basic").prepare(Artifact(onnx=subtraction), (A, B), threads=2).info
        assert info["threads"] == 2
        assert info["settings"] == {
            "graph_level": "basic",
            "execution_mode": "sequential",
            "provider": "CPUExecutionProvider",
            "spinning": "inside a run",
        }

    def test_threads_and_level_reach_the_runtime(self, subtraction: Path) -> None:
        import onnxruntime as ort

        session = OnnxRuntimeBackend("extended").prepare(Artifact(onnx=subtraction), (A, B), threads=2)
        options = session._session.get_session_options()
        assert options.intra_op_num_threads == 2
        assert options.graph_optimization_level == ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        assert options.get_session_config_entry("session.force_spinning_stop") == "1"

    def test_spinning_on_can_be_asked_for(self, subtraction: Path) -> None:
        info = OnnxRuntimeBackend(keep_spinning=True).prepare(Artifact(onnx=subtraction), (A, B)).info
        assert info["settings"]["spinning"] == "also after a run"
        assert info["threads"] is None

    def test_the_default_level_rewrites_the_graph(self, tmp_path: Path) -> None:
        torch.manual_seed(0)
        model, inputs = TinyNet().eval(), (torch.rand(1, 3, 8, 8),)
        to_onnx(model, inputs, tmp_path / "m.onnx", check=False)
        outputs = [
            OnnxRuntimeBackend(level).prepare(Artifact(onnx=tmp_path / "m.onnx"), inputs).run(inputs)[0]
            for level in ("disabled", "all")
        ]
        np.testing.assert_allclose(outputs[0], outputs[1], rtol=1e-4, atol=1e-5)

    def test_unknown_level(self) -> None:
        with pytest.raises(MeasureError, match="unknown graph level 'turbo'"):
            OnnxRuntimeBackend("turbo")  # type: ignore[arg-type]

    def test_fewer_than_one_thread(self, subtraction: Path) -> None:
        with pytest.raises(MeasureError, match="threads must be at least 1"):
            OnnxRuntimeBackend().prepare(Artifact(onnx=subtraction), (A, B), threads=0)


class TestBadFiles:
    def test_one_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(MeasureError, match="there is no file"):
            OnnxRuntimeBackend().prepare(Artifact(onnx=tmp_path / "no.onnx"), (A, B))

    def test_one_that_is_no_model(self, tmp_path: Path) -> None:
        (tmp_path / "bad.onnx").write_bytes(b"this is text")
        with pytest.raises(MeasureError, match="onnxruntime does not load the file") as caught:
            OnnxRuntimeBackend().prepare(Artifact(onnx=tmp_path / "bad.onnx"), (A, B))
        assert caught.value.where == str(tmp_path / "bad.onnx")
        assert "\n" not in caught.value.what

    def test_one_with_an_operator_that_the_runtime_lacks(self, tmp_path: Path) -> None:
        value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
        out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
        path = graph_file(tmp_path / "odd.onnx", [helper.make_node("NoSuchOperator", ["x"], ["y"])], [value], [out])
        with pytest.raises(MeasureError, match="NoSuchOperator"):
            OnnxRuntimeBackend().prepare(Artifact(onnx=path), (A,))

    def test_a_model_that_was_not_exported(self) -> None:
        with pytest.raises(MeasureError, match="runs ONNX files, and 'net' has none") as caught:
            OnnxRuntimeBackend().prepare(Artifact(TinyNet(), name="net"), (A,))
        assert "to_onnx" in (caught.value.hint or "")


class TestMeasured:
    def test_a_file_is_checked_against_its_model(self, tmp_path: Path) -> None:
        torch.manual_seed(0)
        model, inputs = TinyNet().eval(), (torch.rand(2, 3, 8, 8),)
        to_onnx(model, inputs, tmp_path / "m.onnx", check=False)
        backend = OnnxRuntimeBackend()
        found = measure(
            {"m": (backend, Artifact(model, tmp_path / "m.onnx"))}, inputs, rounds=6, warmup=1, min_sample_ms=0.0
        )
        assert found["m"].agreement is not None
        assert found["m"].agreement.ok
        assert found.versions["onnxruntime"]
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.5)
        with pytest.raises(MeasureError, match="'m' does not compute what its reference computes"):
            measure({"m": (backend, Artifact(model, tmp_path / "m.onnx"))}, inputs, rounds=6)

    def test_an_int8_file_against_the_model_that_it_rounds(self, tmp_path: Path) -> None:
        class Rounded(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return torch.fake_quantize_per_tensor_affine(x, 0.05, 0, -128, 127)

        inputs = (torch.linspace(-8, 8, 12).reshape(3, 4),)
        path = graph_file(
            tmp_path / "q.onnx",
            [
                helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
                helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
            ],
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
            [
                helper.make_tensor("scale", TensorProto.FLOAT, [], [0.05]),
                helper.make_tensor("zero", TensorProto.INT8, [], [0]),
            ],
        )
        artifact = Artifact(Rounded(), path, quantized=True)
        found = measure({"q": (OnnxRuntimeBackend(), artifact)}, inputs, rounds=6, warmup=1, min_sample_ms=0.0)
        assert found["q"].agreement is not None
        assert found["q"].agreement.tolerance is None
        assert found["q"].agreement.max_diff <= 0.05
