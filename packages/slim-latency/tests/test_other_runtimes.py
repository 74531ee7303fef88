"""The backends ``openvino`` and ``ncnn``: the core's contract, parity with eager, settings and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from slim_core.errors import MeasureError, MissingExtraError
from slim_core.export import to_onnx
from slim_core.measure import Artifact, measure
from slim_core.testing.contracts import BackendCase, BackendContract
from slim_core.testing.contracts.backend import onnx_artifact
from slim_latency.ncnn_runtime import NcnnBackend
from slim_latency.openvino_runtime import OpenVinoBackend

pytest.importorskip("openvino")
pytest.importorskip("ncnn")

_FILES: dict[Any, bytes] = {}


def artifact(model: nn.Module, example_inputs: Any, folder: Path) -> Artifact:
    """Export each of the contract's models once: they are the same in every test."""
    weights = next(iter(model.parameters())).detach()
    key = (type(model).__name__, tuple(example_inputs[0].shape), float(weights.sum()), model.training)
    if key not in _FILES:
        made = onnx_artifact(model, example_inputs, folder).onnx
        assert made is not None
        _FILES[key] = made.read_bytes()
    path = folder / "cached.onnx"
    path.write_bytes(_FILES[key])
    return Artifact(onnx=path)


class TestOpenVino(BackendContract):
    @pytest.fixture
    def case(self) -> BackendCase:
        return BackendCase(OpenVinoBackend, artifact, module="openvino")

    def test_settings_are_recorded(self, subtraction: Path) -> None:
        info = OpenVinoBackend().prepare(Artifact(onnx=subtraction), (A, B), threads=1).info
        assert info["settings"]["precision_hint"] == "f32"
        assert info["settings"]["streams"] == 1
        assert info["runtime"].startswith("openvino 20")

    def test_inputs_by_name_in_any_order(self, subtraction: Path) -> None:
        session = OpenVinoBackend().prepare(Artifact(onnx=subtraction), (A, B))
        assert session.run({"b": B, "a": A})[0].tolist() == [[4.0, -3.0]]

    def test_what_is_timed_computes_on_the_bound_inputs(self, subtraction: Path) -> None:
        session = OpenVinoBackend().prepare(Artifact(onnx=subtraction), (A, B))
        bound = session.bind((A * 2, B))
        bound()
        assert session._request.get_output_tensor(0).data.tolist() == [[9.0, 4.0]]

    def test_unknown_precision(self) -> None:
        with pytest.raises(MeasureError, match="unknown precision 'f8'"):
            OpenVinoBackend("f8")  # type: ignore[arg-type]

    def test_a_file_that_is_none(self, tmp_path: Path) -> None:
        (tmp_path / "bad.onnx").write_bytes(b"this is text")
        with pytest.raises(MeasureError, match="openvino does not load the file"):
            OpenVinoBackend().prepare(Artifact(onnx=tmp_path / "bad.onnx"), (A,))


class TestNcnn(BackendContract):
    @pytest.fixture
    def case(self) -> BackendCase:
        return BackendCase(NcnnBackend, artifact, module="ncnn")

    def test_a_batch_runs_one_after_the_other_and_says_so(self, small: Path) -> None:
        inputs = (torch.rand(3, 3, 8, 8),)
        session = NcnnBackend().prepare(Artifact(onnx=small), inputs)
        whole = session.run(inputs)[0]
        single = [session.run((inputs[0][number : number + 1],))[0] for number in range(3)]
        np.testing.assert_allclose(whole, np.concatenate(single), rtol=1e-5)
        assert session.info["notes"] == ["ncnn knows no batch: 3 samples are run one after the other"]

    def test_half_precision_is_close(self, small: Path) -> None:
        inputs = (torch.rand(1, 3, 8, 8),)
        exact = NcnnBackend().prepare(Artifact(onnx=small), inputs).run(inputs)[0]
        half = NcnnBackend("fp16").prepare(Artifact(onnx=small), inputs).run(inputs)[0]
        np.testing.assert_allclose(half, exact, atol=2e-2 * float(np.abs(exact).max()))

    def test_a_missing_converter_is_named(self, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(__import__("sys").modules, "pnnx", None)
        with pytest.raises(MissingExtraError, match="pnnx") as caught:
            NcnnBackend().prepare(Artifact(onnx=small), (torch.rand(1, 3, 8, 8),))
        assert "slim-latency[ncnn]" in (caught.value.hint or "")

    def test_an_operator_that_ncnn_lacks(self, tmp_path: Path) -> None:
        value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])
        out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])
        graph = helper.make_graph([helper.make_node("NoSuchOperator", ["x"], ["y"])], "g", [value], [out])
        onnx.save(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path / "m.onnx"
        )
        with pytest.raises(MeasureError):
            NcnnBackend().prepare(Artifact(onnx=tmp_path / "m.onnx"), (torch.rand(1, 4),))


A, B = torch.tensor([[5.0, 7.0]]), torch.tensor([1.0, 10.0])


@pytest.fixture
def subtraction(tmp_path: Path) -> Path:
    graph = helper.make_graph(
        [helper.make_node("Sub", ["a", "b"], ["d"])],
        "sub",
        [
            helper.make_tensor_value_info("a", TensorProto.FLOAT, ["n", 2]),
            helper.make_tensor_value_info("b", TensorProto.FLOAT, [2]),
        ],
        [helper.make_tensor_value_info("d", TensorProto.FLOAT, ["n", 2])],
    )
    path = tmp_path / "sub.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(torch.relu(self.conv(x)).mean((2, 3)))
        return y


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return to_onnx(
        Small().eval(), (torch.rand(2, 3, 8, 8),), tmp_path_factory.mktemp("small") / "m.onnx", check=False
    ).path


def test_all_runtimes_agree_with_eager_before_they_are_timed(small: Path) -> None:
    torch.manual_seed(0)
    model = Small().eval()
    found = measure(
        {
            "openvino": (OpenVinoBackend(), Artifact(model, small)),
            "ncnn": (NcnnBackend(), Artifact(model, small)),
        },
        (torch.rand(1, 3, 8, 8),),
        threads=1,
        rounds=6,
        warmup=1,
        min_sample_ms=0.0,
    )
    for timing in found.timings:
        assert timing.agreement is not None
        assert timing.agreement.ok
