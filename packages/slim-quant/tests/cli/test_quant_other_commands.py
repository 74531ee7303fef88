"""``slim quant qat``, ``weights``, ``dynamic``, and the goals of ``ptq``."""

from __future__ import annotations

import json

import pytest
import torch
from quant_cli import DATA, slim

from slim_core.checkpoint import load
from slim_core.plugins import load_plugins
from slim_core.training import evaluate
from slim_quant.insert import is_quantized


def top1_of(path, trained) -> float:
    model = load(path, registry=load_plugins().registry).model
    return evaluate(model, trained.workload.task, trained.workload.val)["top1"]


@pytest.mark.slow
def test_qat_trains_converts_and_resumes(trained, tmp_path) -> None:
    output = tmp_path / "int8.safetensors"
    command = (
        "quant", "qat", "--checkpoint", trained.checkpoint, *DATA, "--samples", 32, "--epochs", 1, "--lr", 0.001,
        "--set", "freeze_batch_norm=0.3", "-o", output,
    )  # fmt: skip
    status, out, err = slim(*command, format="json")
    assert status == 0, err
    data = json.loads(out)
    assert [row["epoch"] for row in data["history"]] == [1]
    assert data["metrics"]["top1"]["after"] == pytest.approx(top1_of(output, trained))
    assert data["metrics"]["top1"]["after"] > trained.top1 - 0.05
    assert is_quantized(load(output, registry=load_plugins().registry).model)
    first = output.read_bytes()
    assert any((tmp_path / "int8.safetensors.training").iterdir())
    status, _, err = slim(*command, "--overwrite")  # all epochs are done: the training is read, not repeated
    assert status == 0, err
    assert output.read_bytes() == first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--set", "strat=0.1"), "did you mean 'start'"),
        (("--set", "start=2"), "start"),
        (("--set", "start"), "NAME=VALUE"),
        (("--fit", '{"epoch": 3}'), "fit.epoch"),
        (("--fit", "3 epochs"), "--fit is not JSON"),
        (("--group-size", "16"), "not per group"),
        (("--observer", "msee"), "mse"),
        (("--target", "openvin"), "openvino"),
        (("--skip", "stem.O"), "matches no layer"),
    ],
)
def test_qat_refuses_bad_settings(trained, tmp_path, monkeypatch, arguments, message) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = slim("quant", "qat", "--checkpoint", trained.checkpoint, *DATA, *arguments)
    assert status == 2, err
    assert message in err
    assert out == ""


def test_weights_of_four_bits_have_sixteen_values(trained, tmp_path) -> None:
    output = tmp_path / "int4.safetensors"
    status, out, err = slim(
        "quant", "weights", "--checkpoint", trained.checkpoint, *DATA, "--bits", 4, "--group-size", 8, "-o", output,
        "--plot", tmp_path / "int4.svg", format="json",
    )  # fmt: skip
    assert status == 0, err
    data = json.loads(out)
    assert [row["name"] for row in data["layers"]] == ["classifier"]
    weight = load(output, registry=load_plugins().registry).model.classifier.weight
    before = trained.workload.model.classifier.weight.detach()
    groups = weight.detach().reshape(10, -1, 8)
    assert all(len(group.unique()) <= 16 for row in groups for group in row)
    reach = before.reshape(10, -1, 8).clamp(min=0).amax(-1) - before.reshape(10, -1, 8).clamp(max=0).amin(-1)
    error = (groups - before.reshape(10, -1, 8)).abs().amax(-1)
    assert bool((error <= reach / 15 * 0.51 + 1e-7).all())
    assert data["metrics"]["top1"]["after"] == pytest.approx(top1_of(output, trained))


def test_dynamic_needs_no_data(trained, tmp_path) -> None:
    output = tmp_path / "int8.safetensors"
    status, out, err = slim("quant", "dynamic", "--checkpoint", trained.checkpoint, "-o", output, format="json")
    assert status == 0, err
    data = json.loads(out)
    assert [row["name"] for row in data["layers"]] == ["classifier"]
    assert "metrics" not in data
    model = load(output, registry=load_plugins().registry).model
    inputs = next(iter(trained.workload.val))[0][:8]
    with torch.no_grad():
        assert torch.allclose(model.eval()(inputs), trained.workload.model(inputs), atol=0.5)


@pytest.mark.slow
def test_a_goal_chooses_bits_and_is_kept(trained, tmp_path) -> None:
    output = tmp_path / "mixed.safetensors"
    status, out, err = slim(
        "quant", "ptq", "--checkpoint", trained.checkpoint, *DATA, "--samples", 32, "--bits", "w4a8", "--bits", "w8a8",
        "--max-drop", 2, "--evaluated", 64, "-o", output, format="json",
    )  # fmt: skip
    assert status == 0, err
    data = json.loads(out)
    choice, layers = data["choice"], {row["name"]: row["bits"] for row in data["layers"]}
    assert choice["before"] == pytest.approx(trained.top1)
    assert choice["after"] == pytest.approx(top1_of(output, trained))
    assert choice["after"] >= choice["before"] - 0.02 - 1e-9
    assert {layers[unit] for unit, bits in choice["assignment"].items() if bits == "w4a8" and unit in layers} == {4}
    assert choice["cost_after"] < choice["cost_before"] / 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--bits", "w4a8"), "--bits needs a goal"),
        (("--max-drop", "1", "--override", "stem.0:weight_bits=8"), "leave --override out"),
        (("--max-drop", "1", "--bits", "4"), "is no choice of bits"),
        (("--budget", "bytes=0.001"), "cannot be met"),
        (("--budget", "bytes"), "NAME=VALUE"),
        (("--max-drop", "-1"), "-1"),
    ],
)
def test_goals_that_contradict_themselves_are_refused(trained, arguments, message) -> None:
    status, out, err = slim("quant", "ptq", "--checkpoint", trained.checkpoint, *DATA, "--samples", 16, *arguments)
    assert status == 2, err
    assert message in err
    assert out == ""
