"""``slim quant export``: the file of a quantized checkpoint."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from quant_cli import DATA, slim

from slim_core.checkpoint import load
from slim_core.modes import evaluating
from slim_core.plugins import load_plugins


@pytest.fixture
def checkpoint(quantized):
    return quantized.checkpoint


def test_the_file_computes_what_the_checkpoint_simulates(checkpoint, trained, tmp_path) -> None:
    ort = pytest.importorskip("onnxruntime")
    status, out, err = slim(
        "quant", "export", checkpoint, *DATA, "-o", tmp_path / "int8.onnx", "--compare", 100, format="json"
    )
    assert status == 0, err
    data = json.loads(out)
    deployed = data["onnx"]["deployment"]
    assert deployed["samples"] == 100
    model = load(checkpoint, registry=load_plugins().registry).model
    session = ort.InferenceSession(str(tmp_path / "int8.onnx"), providers=["CPUExecutionProvider"])
    simulated, real = [], []
    for inputs, _ in trained.workload.val:
        with evaluating(model), torch.no_grad():
            simulated.append(model(inputs).numpy())
        real.append(session.run(None, {session.get_inputs()[0].name: inputs.numpy()})[0])
    one, other = np.concatenate(simulated)[:100], np.concatenate(real)[:100]
    assert deployed["agreement"] == pytest.approx(100 * np.mean(one.argmax(1) == other.argmax(1)))
    assert deployed["max_diff"] == pytest.approx(np.abs(one - other).max(), rel=1e-4)
    assert data["target"] == data["placed_for"] == "onnxruntime"


def test_without_data_one_example_is_compared_and_another_target_remarked_upon(checkpoint, tmp_path) -> None:
    status, out, err = slim("quant", "export", checkpoint, "-o", tmp_path / "a.onnx", "--target", "openvino")
    assert status == 0, err
    assert "of 1 samples" in " ".join(out.split())
    assert str(tmp_path / "a.onnx") in out.replace("\n", "")
    assert "placed for onnxruntime" in err
    assert "slim quant ptq --target openvino" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("missing.safetensors", "-o", "a.onnx"), "missing.safetensors"),
        (("{float}", "-o", "a.onnx"), "holds a float model"),
        (("{int8}",), "Missing option"),
        (("{int8}", "-o", "no/such/a.onnx"), "no folder"),
        (("{int8}", "-o", "a.onnx", "--target", "tensorrt"), "unknown quantization target"),
        (("{int8}", "-o", "a.onnx", "--data", "digit"), "digits"),
    ],
)
def test_bad_input_is_one_error_and_status_2(checkpoint, trained, tmp_path, monkeypatch, arguments, message) -> None:
    monkeypatch.chdir(tmp_path)
    files = {"{int8}": checkpoint, "{float}": trained.checkpoint}
    status, out, err = slim("quant", "export", *(files.get(item, item) for item in arguments))
    assert status == 2, err
    assert message in err
    assert out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_stays(checkpoint, tmp_path) -> None:
    there = tmp_path / "a.onnx"
    there.write_text("something")
    status, _, err = slim("quant", "export", checkpoint, "-o", there)
    assert status == 2
    assert "--overwrite" in err
    assert there.read_text() == "something"
