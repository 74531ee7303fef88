"""Exported files on both runtimes: what was simulated is computed, and what is reported is what is there."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from quant_nets import pictures, trained
from torch import nn

from slim_core.errors import DataError, ExportError, MeasureError, UnknownNameError
from slim_quant import QuantResult, quantize
from slim_quant.deploy import Exported, compare, export, table, zeros_for
from slim_quant.runtimes import open_file

RUNTIMES = ["onnxruntime", *(["openvino"] if importlib.util.find_spec("openvino") else [])]
DATA = [pictures(128, 70 + seed)[0] for seed in range(2)]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return trained()


@pytest.fixture(scope="module", params=RUNTIMES)
def made(request: pytest.FixtureRequest, model: nn.Module) -> QuantResult:
    return quantize(model, [DATA[0]], example_inputs=(DATA[0][:1],), target=request.param)


@pytest.fixture(scope="module")
def written(made: QuantResult, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("files")
    return export(made, folder / "int8.onnx", batches=DATA)


def test_simulation_is_deployment_on_the_target(written: Exported, made: QuantResult) -> None:
    found = written.deployment
    assert found.runtime.startswith(written.target)
    assert found.samples == 256
    assert found.agreement >= 99.5
    assert found.sqnr_db > 35


def test_the_file_holds_its_weights_as_integers(written: Exported, made: QuantResult) -> None:
    weights = sum(tensor.numel() for tensor in made.model.parameters() if tensor.dim() > 1)
    assert written.weight_bytes == weights
    assert written.bytes == written.path.stat().st_size
    floats = [
        item.dims for item in onnx.load(written.path).graph.initializer
        if item.data_type == onnx.TensorProto.FLOAT and len(item.dims) > 1
    ]  # fmt: skip
    assert floats == []


def test_both_runtimes_read_both_files(written: Exported, made: QuantResult) -> None:
    for runtime in RUNTIMES:
        found = compare(made.model, written.path, DATA, runtime)
        assert found.agreement >= 99
        assert found.sqnr_db > 25


def test_figures_are_those_of_the_outputs(written: Exported, made: QuantResult) -> None:
    with torch.no_grad():
        simulated = made.model(DATA[0]).numpy().astype(np.float64)
    deployed = open_file(written.path, written.target).run((DATA[0],))[0].astype(np.float64)
    found = compare(made.model, written.path, DATA[:1], written.target)
    assert found.max_diff == np.abs(simulated - deployed).max()
    noise = np.square(simulated - deployed).sum()
    if noise:
        assert found.sqnr_db == pytest.approx(10 * np.log10(np.square(simulated).sum() / noise))
    assert found.agreement == 100 * (simulated.argmax(1) == deployed.argmax(1)).mean()
    text = _shown(table([found]))
    assert f"{found.agreement:.2f} %" in text


def test_inputs_are_known_from_the_graph(made: QuantResult, model: nn.Module) -> None:
    (zeros,) = zeros_for(made.model)
    assert zeros.shape == (1, 3, 16, 16)
    with pytest.raises(ExportError, match="does not tell what inputs"):
        zeros_for(model)


def test_a_file_for_another_target_says_so(made: QuantResult, tmp_path: Path) -> None:
    other = next(iter({"onnxruntime", "openvino"} - {made.transform.data["target"]}))
    found = export(made, tmp_path / "other.onnx", other)
    assert any("may be slower than it could" in note for note in found.notes)


def test_errors_name_the_runtime_and_the_file(written: Exported, tmp_path: Path, made: QuantResult) -> None:
    with pytest.raises(UnknownNameError, match="unknown runtime 'onnxruntme'"):
        open_file(written.path, "onnxruntme")
    (tmp_path / "broken.onnx").write_bytes(b"\x08\x01broken")
    for runtime in RUNTIMES:
        with pytest.raises(MeasureError, match=f"{runtime} does not load the file"):
            open_file(tmp_path / "broken.onnx", runtime).run((DATA[0],))
        with pytest.raises(MeasureError, match="takes 1 inputs"):
            open_file(written.path, runtime).run((DATA[0], DATA[0]))
    with pytest.raises(DataError, match="nothing to compare on"):
        compare(made.model, written.path, [], written.target)


def _shown(renderable: object) -> str:
    from rich.console import Console

    console = Console(width=200, record=True)
    console.print(renderable)
    return console.export_text()
