"""``slim quant diff`` and ``slim quant sensitivity``: what they print is what arithmetic gives."""

from __future__ import annotations

import json
import math
from xml.etree import ElementTree

import pytest
import torch
from quant_cli import DATA, slim

import slim_quant
from slim_core.checkpoint import load
from slim_core.plugins import load_plugins
from slim_quant.technique import calibration_inputs

FEW = ("--samples", "16")


def decibels(reference: torch.Tensor, other: torch.Tensor) -> float:
    return 10 * math.log10(float(reference.double().square().sum() / (reference - other).double().square().sum()))


def test_diff_says_how_far_the_outputs_are_apart(quantized, tmp_path) -> None:
    files = tmp_path / "diff.json", tmp_path / "diff.svg"
    status, out, err = slim(
        "quant", "diff", quantized.checkpoint, "--checkpoint", quantized.trained.checkpoint, *DATA, *FEW,
        "-o", files[0], "--plot", files[1], "--histograms", 2, format="json",
    )  # fmt: skip
    assert status == 0, err
    found = json.loads(out)
    assert json.loads(files[0].read_text()) == found
    inputs = next(iter(quantized.trained.workload.val))[0][:16]
    model = load(quantized.checkpoint, registry=load_plugins().registry).model.eval()
    with torch.no_grad():
        expected, got = quantized.trained.workload.model(inputs), model(inputs)
    (output,) = found["outputs"]
    assert output["sqnr_db"] == pytest.approx(decibels(expected, got), abs=0.05)
    assert output["agreement"] == pytest.approx(100 * float((expected.argmax(1) == got.argmax(1)).float().mean()))
    assert {layer["name"] for layer in found["layers"] if layer["weight_bits"]} == {
        row["name"] for row in quantized.data["layers"]
    }
    drawing = ElementTree.fromstring(files[1].read_text())
    texts = {item.text for item in drawing.iter() if item.text}
    assert {layer["name"] for layer in found["layers"] if layer["weight_bits"]} <= texts


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("{float}", "--checkpoint", "{float}", *DATA), "holds a float model"),
        (("{int8}", "--checkpoint", "{int8}", *DATA), "the first model is quantized too"),
        (("{int8}", "--checkpoint", "{float}"), "looks at data"),
        (("{int8}", *DATA), "say which model"),
        (("missing.safetensors", "--checkpoint", "{float}", *DATA), "missing.safetensors"),
    ],
)
def test_diff_refuses_what_it_cannot_compare(quantized, tmp_path, monkeypatch, arguments, message) -> None:
    monkeypatch.chdir(tmp_path)
    files = {"{int8}": quantized.checkpoint, "{float}": quantized.trained.checkpoint}
    status, out, err = slim("quant", "diff", *(files.get(item, item) for item in arguments))
    assert status == 2, err
    assert message in err
    assert out == ""


def test_sensitivity_measures_and_goes_on_from_its_points(trained, tmp_path) -> None:
    output, plot = tmp_path / "found.json", tmp_path / "found.svg"
    command = (
        "quant", "sensitivity", "--checkpoint", trained.checkpoint, *DATA, "--samples", 32, "--sqnr-only", "--include",
        "s*.0*", "-o", output,
    )  # fmt: skip
    status, out, err = slim(*command, "--plot", plot)
    assert status == 0, err
    assert "stem.0" in out
    found = json.loads(output.read_text())
    result = slim_quant.quantize(
        trained.workload.model, calibration_inputs(trained.workload, 0), samples=32,
        example_inputs=trained.workload.example_inputs,
    )  # fmt: skip
    (inputs,) = slim_quant.CalibrationData(calibration_inputs(trained.workload, 0), 32)
    with torch.no_grad():
        expected, got = trained.workload.model(*inputs), result.model(*inputs)
    assert found["whole"]["w8a8"]["sqnr_db"] == pytest.approx(decibels(expected, got), abs=0.1)
    assert all(point["sqnr_db"] > found["whole"]["w8a8"]["sqnr_db"] for point in found["points"])
    assert {point["unit"] for point in found["points"]} <= {item.text for item in ElementTree.parse(plot).iter()}
    points = tmp_path / "found.json.points" / "points.json"
    before = points.stat().st_mtime_ns
    output.unlink()
    assert slim(*command)[0] == 0
    assert json.loads(output.read_text())["points"] == found["points"]
    assert points.stat().st_mtime_ns == before  # nothing was measured again


def test_sensitivity_refuses_points_of_something_else(trained, tmp_path) -> None:
    command = ("quant", "sensitivity", "--checkpoint", trained.checkpoint, *DATA, "--sqnr-only", "--include", "stem.0",
               "--folder", tmp_path)  # fmt: skip
    assert slim(*command, "--samples", 16)[0] == 0
    status, _, err = slim(*command, "--samples", 32)
    assert status == 2
    assert "something else" in err
    assert slim(*command, "--samples", 32, "--fresh")[0] == 0


def test_a_unit_that_is_not_there_is_refused(trained) -> None:
    status, _, err = slim("quant", "sensitivity", "--checkpoint", trained.checkpoint, *DATA, "--include", "stem.O")
    assert status == 2
    assert "stem.0" in err
