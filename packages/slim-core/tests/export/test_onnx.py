"""Exported files: what is in them, what they compute, and what goes wrong loudly."""

from __future__ import annotations

import copy
import hashlib
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from slim_core.errors import ExportError, MissingExtraError, ModelError
from slim_core.export import ExportResult, to_onnx
from slim_core.export import onnx as module
from slim_core.graph.export import export_graph


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 5)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        return self.head(self.drop(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1)))


@pytest.fixture(scope="module")
def trained() -> Net:
    torch.manual_seed(0)
    model = Net()
    model(torch.randn(16, 3, 8, 8))
    return model


@pytest.fixture
def net(trained: Net) -> Net:
    return copy.deepcopy(trained)


@pytest.fixture(scope="module")
def exported(trained: Net, tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    return to_onnx(trained, (X,), tmp_path_factory.mktemp("onnx") / "net.onnx")


X = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def run(path: Path, *arrays: Tensor) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(
        None, {item.name: array.numpy() for item, array in zip(session.get_inputs(), arrays, strict=True)}
    )


@pytest.mark.parametrize("batch", [1, 4])
def test_the_file_computes_what_the_model_computes(net: Net, exported: ExportResult, batch: int) -> None:
    x = torch.randn(batch, 3, 8, 8)
    with torch.no_grad():
        np.testing.assert_allclose(run(exported.path, x)[0], net.eval()(x).numpy(), atol=1e-5)


def test_the_result_says_what_was_written(exported: ExportResult) -> None:
    assert exported.path.name == "net.onnx"
    assert exported.bytes == exported.path.stat().st_size
    assert exported.inputs == ("x",)
    assert len(exported.outputs) == 1
    assert exported.opset == next(item.version for item in onnx.load(exported.path).opset_import)
    assert exported.parity is not None
    assert exported.parity.batches == (1, 3)
    assert exported.max_diff is not None
    assert exported.max_diff < 1e-5


def test_the_same_model_gives_the_same_bytes_and_keeps_its_mode(
    net: Net, exported: ExportResult, tmp_path: Path
) -> None:
    net.train()
    net.conv.eval()
    to_onnx(net, (X,), tmp_path / "again.onnx", check=False)
    assert (tmp_path / "again.onnx").read_bytes() == exported.path.read_bytes()
    assert net.training
    assert net.drop.training
    assert not net.conv.training


def test_no_tracing_metadata_stays(exported: ExportResult) -> None:
    model = onnx.load(exported.path)
    assert not model.metadata_props
    assert not model.graph.value_info
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    data = exported.path.read_bytes()
    for word in (b"test_onnx", b"stack_trace", b"pkg.torch", os.fsencode(Path(__file__).parent)):
        assert word not in data


def test_batch_norm_is_folded_and_the_mean_is_a_pool(exported: ExportResult) -> None:
    graph = onnx.load(exported.path).graph
    assert [node.op_type for node in graph.node][:3] == ["Conv", "Relu", "GlobalAveragePool"]


def test_the_batch_is_dynamic_unless_that_is_not_wanted(net: Net, exported: ExportResult, tmp_path: Path) -> None:
    def first_dimension(path: Path) -> object:
        dimension = onnx.load(path).graph.input[0].type.tensor_type.shape.dim[0]
        return dimension.dim_param or dimension.dim_value

    assert first_dimension(exported.path) == "batch"
    assert first_dimension(to_onnx(net, (X,), tmp_path / "b.onnx", dynamic_batch=False, check=False).path) == 1


def test_inputs_by_name_in_the_order_given(tmp_path: Path) -> None:
    class Two(nn.Module):
        def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
            return left - 2 * right, left.sum(1)

    left, right = torch.randn(2, 3), torch.randn(2, 3)
    result = to_onnx(Two(), {"right": right, "left": left}, tmp_path / "two.onnx")
    assert result.inputs == ("right", "left")
    np.testing.assert_allclose(run(result.path, right, left)[0], (left - 2 * right).numpy(), atol=1e-6)


def test_exported_graphs_are_written_too(net: Net, tmp_path: Path) -> None:
    graph = export_graph(net, (X,))
    result = to_onnx(graph, (X,), tmp_path / "net.onnx")
    with torch.no_grad():
        np.testing.assert_allclose(run(result.path, X)[0], graph(X).numpy(), atol=1e-5)


class Quantized(nn.Module):
    """A linear layer with fake-quantized weight and input."""

    def __init__(self, low: int = -127, high: int = 127) -> None:
        super().__init__()
        self.low, self.high = low, high
        scale = torch.tensor([0.02, 0.01, 0.05, 0.03])
        integers = torch.randint(low, high + 1, (4, 6), generator=torch.Generator().manual_seed(0))
        self.weight = nn.Parameter(integers * scale[:, None])
        self.register_buffer("weight_scale", scale)
        self.register_buffer("weight_zero", torch.zeros(4, dtype=torch.int32))
        self.register_buffer("scale", torch.tensor(0.05))
        self.register_buffer("zero", torch.tensor(100, dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero, 0, 255)
        weight = torch.fake_quantize_per_channel_affine(
            self.weight, self.weight_scale, self.weight_zero, 0, self.low, self.high
        )
        return nn.functional.linear(x, weight)


@pytest.mark.parametrize(("low", "high"), [(-127, 127), (-128, 127), (-7, 7)])
def test_quantized_weights_are_integers_in_the_file(tmp_path: Path, low: int, high: int) -> None:
    model = Quantized(low, high)
    x = torch.randn(2, 6)
    graph = export_graph(model, (x,), dynamic_batch=False)
    result = to_onnx(graph, (x,), tmp_path / "q.onnx", dynamic_batch=False)
    stored = {item.name: onnx.numpy_helper.to_array(item) for item in onnx.load(result.path).graph.initializer}
    weights = [array for array in stored.values() if array.shape in ((4, 6), (6, 4)) and array.dtype == np.int8]
    assert len(weights) == 1
    expected = np.rint(model.weight.detach().numpy() / model.weight_scale.numpy()[:, None])
    assert np.array_equal(weights[0] if weights[0].shape == (4, 6) else weights[0].T, expected)
    assert not any(array.shape in ((4, 6), (6, 4)) and array.dtype == np.float32 for array in stored.values())
    with torch.no_grad():
        np.testing.assert_allclose(run(result.path, x)[0], model(x).numpy(), atol=1e-5)


def test_few_bits_of_activations_saturate_as_in_pytorch(tmp_path: Path) -> None:
    class Four(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", torch.tensor(0.5))
            self.register_buffer("zero", torch.tensor(3, dtype=torch.int32))

        def forward(self, x: Tensor) -> Tensor:
            return torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero, 0, 15)

    x = torch.linspace(-20, 20, 64).reshape(2, 32)
    graph = export_graph(Four(), (x,), dynamic_batch=False)
    result = to_onnx(graph, (x,), tmp_path / "four.onnx", dynamic_batch=False)
    assert np.array_equal(run(result.path, x)[0], Four()(x).numpy())


def test_an_operator_without_translation_is_named(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.eigvals(x).real

    with pytest.raises(ExportError, match=r"cannot be written as ONNX.*linalg_eig"):
        to_onnx(Odd(), (torch.randn(2, 3, 3),), tmp_path / "odd.onnx")
    assert not list(tmp_path.iterdir())


def test_a_failing_forward_is_a_model_error(net: Net, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="fails on its example inputs"):
        to_onnx(net, (torch.randn(1, 4, 8, 8),), tmp_path / "net.onnx")


def test_torch_prints_no_traceback_before_the_error_of_a_failing_forward(net: Net, tmp_path: Path) -> None:
    lines: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = lines.append  # type: ignore[method-assign]
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    logger.addHandler(handler)
    try:
        with pytest.raises(ModelError, match="mat1 and mat2"):
            to_onnx(nn.Linear(16, 5), (torch.zeros(1, 8),), tmp_path / "x.onnx")
    finally:
        logger.removeHandler(handler)
    assert lines == []


def test_a_missing_folder_is_not_made(net: Net, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="there is no folder") as caught:
        to_onnx(net, (torch.zeros(1, 3, 8, 8),), tmp_path / "a" / "x.onnx")
    assert "mkdir -p" in str(caught.value.hint)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_model_or_not_ready_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="a int was given"):
        to_onnx(3, (torch.zeros(1, 8),), tmp_path / "x.onnx")  # type: ignore[arg-type]
    lazy = nn.Sequential(nn.LazyLinear(4))
    for export in (export_graph, lambda *args: to_onnx(*args, tmp_path / "x.onnx")):
        with pytest.raises(ModelError, match=r"'0\.weight' is not initialised"):
            export(lazy, (torch.zeros(1, 8),))
    assert lazy[0].has_uninitialized_params()  # the error did not run it


def test_a_model_that_was_compiled_in_place_is_exported(net: Net, tmp_path: Path) -> None:
    x = torch.randn(2, 3, 8, 8)
    to_onnx(net, (x,), tmp_path / "plain.onnx")
    net.conv.compile(backend="eager")
    net.compile(backend="eager")
    to_onnx(net, (x,), tmp_path / "compiled.onnx")
    assert (tmp_path / "compiled.onnx").read_bytes() == (tmp_path / "plain.onnx").read_bytes()


def test_a_file_that_disagrees_is_an_error(net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(proto: onnx.ModelProto, runtime: str) -> list[str]:
        bias = next(item for item in proto.graph.initializer if item.name == "head.bias")
        bias.raw_data = (np.frombuffer(bias.raw_data, np.float32) + 1).tobytes()
        return []

    monkeypatch.setattr(module.folding, "clean", spoil)
    with pytest.raises(ExportError, match="does not agree with Net: largest difference 1"):
        to_onnx(net, (X,), tmp_path / "net.onnx")


def test_without_onnxruntime_the_parity_is_not_checked_and_a_note_says_so(
    net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    result = to_onnx(net, (X,), tmp_path / "net.onnx")
    assert result.parity is None
    assert any("onnxruntime is not installed" in note for note in result.notes)


def test_without_onnx_the_extra_is_named(net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtraError, match="onnx") as caught:
        to_onnx(net, (X,), tmp_path / "net.onnx")
    assert "slim-core[onnx]" in str(caught.value.hint)


def test_large_weights_go_to_a_second_file(net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SINGLE_FILE_LIMIT", 1000)
    result = to_onnx(net, (X,), tmp_path / "net.onnx")
    (data,) = tmp_path.glob("net.onnx.*.data")
    assert data.name.split(".")[2] == hashlib.sha256(data.read_bytes()).hexdigest()[:16]
    assert result.bytes == result.path.stat().st_size + data.stat().st_size
    assert data.stat().st_size >= net.conv.weight.numel() * 4
    assert result.max_diff is not None
    assert result.max_diff < 1e-5
    with torch.no_grad():
        net.conv.weight.add_(1)
    others = [tmp_path / "net.onnx.mine.data", tmp_path / "other.onnx.0123456789abcdef.data"]
    for other in others:
        other.write_bytes(b"")
    again = to_onnx(net, (X,), tmp_path / "net.onnx")
    assert again.max_diff is not None
    assert again.max_diff < 1e-4
    assert not data.exists()
    assert all(other.exists() for other in others)
    monkeypatch.undo()
    to_onnx(net, (X,), tmp_path / "net.onnx")
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "net.onnx", *others])


def test_an_export_that_stops_between_its_two_files_leaves_the_old_pair(
    net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SINGLE_FILE_LIMIT", 1000)
    path = tmp_path / "net.onnx"
    to_onnx(net, (X,), path)
    expected = onnxruntime.InferenceSession(str(path)).run(None, {"x": X.numpy()})
    with torch.no_grad():
        net.conv.weight.add_(1)
    renamed = os.replace

    def stop(source: Path, target: Path) -> None:
        if target == path:
            raise KeyboardInterrupt
        renamed(source, target)

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        to_onnx(net, (X,), path)
    assert len(list(tmp_path.glob("net.onnx.*.data"))) == 2
    got = onnxruntime.InferenceSession(str(path)).run(None, {"x": X.numpy()})
    assert all(np.array_equal(one, other) for one, other in zip(expected, got, strict=True))
    monkeypatch.setattr(os, "replace", renamed)
    to_onnx(net, (X,), path)
    assert len(list(tmp_path.glob("net.onnx.*.data"))) == 1


@pytest.mark.slow
def test_nothing_is_printed(tmp_path: Path) -> None:
    code = (
        "import torch; from slim_core.export import ExportResult, to_onnx;"
        f"to_onnx(torch.nn.Linear(3, 3), (torch.ones(1, 3),), {str(tmp_path / 'x.onnx')!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=200)
    assert done.stdout == ""
    assert done.stderr == ""
