"""``slim quant ptq``: what it writes and prints, and what it says about bad input."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from quant_cli import DATA, KWARGS, MODEL, slim

from slim_core.checkpoint import load
from slim_core.errors import SlimError
from slim_core.modes import evaluating
from slim_core.plugins import load_plugins
from slim_core.training import evaluate
from slim_quant.cli.options import SchemeRequest
from slim_quant.insert import is_quantized
from slim_quant.overrides import Override
from slim_quant.schemes import Scheme

FAST = ("--samples", "32", "--compare", "0")

PROJECT = """
import torch
from slim_core import hookimpl
from slim_core.data import Dataset, StreamSource, TensorSource


def nothing():
    source = StreamSource(lambda epoch: iter(()))
    return Dataset(source, source, (torch.zeros(1, 1, 16, 16),), num_classes=10, input_shape=(1, 16, 16))


def broken():
    values = torch.full((8, 1, 16, 16), float("nan"))
    source = TensorSource(values, torch.arange(8), 4)
    return Dataset(source, source, (torch.zeros(1, 1, 16, 16),), num_classes=10, input_shape=(1, 16, 16))


def failing():
    raise ValueError("no such column")


@hookimpl
def slim_register_datasets(register):
    register("nothing", nothing)
    register("broken", broken)
    register("failing", failing)
"""


def test_the_checkpoint_is_a_quantized_model_with_the_accuracy_that_was_printed(quantized) -> None:
    checkpoint, _, data, trained = quantized
    loaded = load(checkpoint, registry=load_plugins().registry)
    assert is_quantized(loaded.model)
    found = evaluate(loaded.model, trained.workload.task, trained.workload.val)
    assert data["metrics"]["top1"]["after"] == pytest.approx(found["top1"], abs=1e-9)
    assert data["metrics"]["top1"]["before"] == pytest.approx(trained.top1, abs=1e-9)
    assert trained.top1 > 0.5
    assert found["top1"] > trained.top1 - 0.03


def test_every_convolution_and_linear_layer_is_listed_as_integers(quantized) -> None:
    _, _, data, trained = quantized
    layers = [
        name
        for name, module in trained.workload.model.named_modules()
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear)
    ]
    assert sorted(row["name"] for row in data["layers"]) == sorted(layers)
    assert {row["bits"] for row in data["layers"]} == {8}
    assert all(row["sqnr_db"] > 15 for row in data["layers"])


def test_sizes_are_those_of_the_files(quantized) -> None:
    checkpoint, onnx, data, trained = quantized
    assert data["checkpoint"] == {"path": str(checkpoint), "bytes": checkpoint.stat().st_size}
    assert data["onnx"]["bytes"] == onnx.stat().st_size
    model = trained.workload.model
    assert data["float_bytes"] == sum(t.nbytes for t in model.state_dict().values())


def test_the_onnx_file_gives_what_the_checkpoint_simulates(quantized) -> None:
    """onnxruntime on one side, PyTorch on the other, on all validation samples."""
    ort = pytest.importorskip("onnxruntime")
    checkpoint, onnx, data, trained = quantized
    model = load(checkpoint, registry=load_plugins().registry).model
    session = ort.InferenceSession(str(onnx), providers=["CPUExecutionProvider"])
    same, seen = 0, 0
    for inputs, _ in trained.workload.val:
        with evaluating(model), torch.no_grad():
            simulated = model(inputs).argmax(1).numpy()
        deployed = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})[0].argmax(1)
        same, seen = same + int(np.sum(simulated == deployed)), seen + len(inputs)
    compared = data["onnx"]["deployment"]
    assert compared["samples"] == 256
    assert compared["agreement"] >= 99.5
    assert same >= 0.995 * seen
    assert data["onnx"]["operators"]["QLinearConv"] == 21
    assert "Conv" not in data["onnx"]["operators"]


def test_people_get_tables_and_scripts_one_line(trained, tmp_path) -> None:
    arguments = ("quant", "ptq", "--checkpoint", trained.checkpoint, *DATA, *FAST)
    status, out, err = slim(*arguments, "-o", tmp_path / "a.safetensors", "--skip", "classifier")
    assert status == 0, err
    for text in ("stages.0.0.conv1.0", "top1", "classifier stays in float", "checkpoint", f"{trained.top1:.4f}"):
        assert text in out
    status, out, err = slim(*arguments, "-o", tmp_path / "b.safetensors", format="quiet")
    assert status == 0, err
    assert out.startswith(f"top1 {trained.top1:.4f} -> ")
    assert out.count("\n") == 1
    assert err == ""


def test_the_same_command_writes_the_same_bytes(trained, tmp_path) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        status, _, err = slim("quant", "ptq", *MODEL, "--weights", trained.weights, *DATA, *FAST, "-o", tmp_path / name)
        assert status == 0, err
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_bits_and_overrides_reach_the_layers(trained, tmp_path) -> None:
    status, out, err = slim(
        "quant", "ptq", "--checkpoint", trained.checkpoint, *DATA, *FAST, "--weight-bits", 4,
        "--weight-observer", "mse",
        "--override", "classifier:weight_bits=8", "--override", "stem.*:weight_bits=6", "--target", "openvino",
        "-o", tmp_path / "w4.safetensors", format="json",
    )  # fmt: skip
    assert status == 0, err
    bits = {row["name"]: row["bits"] for row in json.loads(out)["layers"]}
    assert bits["classifier"] == 8
    assert bits["stem.0"] == 6
    assert bits["stages.1.1.conv1.0"] == 4
    assert (
        load(tmp_path / "w4.safetensors", registry=load_plugins().registry).transforms[-1].data["target"] == "openvino"
    )


def asked(**values) -> SchemeRequest:
    given = {
        "target": "onnxruntime", "weight_bits": 8, "activation_bits": 8, "granularity": "per_channel",
        "group_size": None, "weight_affine": False, "activation_symmetric": False, "observer": "mse",
        "weight_observer": "abs_max", "skip": (), "override": (), "samples": 256,
    }  # fmt: skip
    return SchemeRequest(**{**given, **values})


def test_options_become_schemes() -> None:
    found = asked(weight_bits=4, group_size=32, activation_symmetric=True, observer="percentile:share=0.99").arguments()
    assert found["weight"] == Scheme(4, True, "per_group", 32)
    assert found["activation"] == Scheme(8, True, "per_tensor")
    assert found["observer"] == {"name": "percentile", "share": 0.99}
    assert asked(weight_affine=True, granularity="per_tensor").weight == Scheme(8, False, "per_tensor")


def test_overrides_begin_with_the_settings_of_all_layers() -> None:
    found = asked(
        weight_bits=4,
        group_size=32,
        override=(
            "fc.*:weight_bits=8",
            "op:conv:granularity=per_channel,weight_observer=mse",
            "head:group_size=16,activation_bits=6",
            "stem:skip=true",
        ),
    ).overrides()
    assert found == (
        Override(match="fc.*", weight=Scheme(8, True, "per_group", 32)),
        Override(op="conv", weight=Scheme(4, True, "per_channel"), weight_observer="mse"),
        Override(match="head", weight=Scheme(4, True, "per_group", 16), activation=Scheme(6, False, "per_tensor")),
        Override(match="stem", skip=True),
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("fc", "sets nothing"),
        ("fc:weight_bit=4", "did you mean 'weight_bits'"),
        ("fc:weight_bits=40", "2 to 8"),
        ("fc:weight_bits", "NAME:OPTION=VALUE"),
        ("op:convolution:weight_bits=4", "unknown operator"),
    ],
)
def test_overrides_that_cannot_be_read_are_refused(override, message) -> None:
    with pytest.raises(SlimError) as error:
        asked(override=(override,)).overrides()
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        ((*MODEL,), ("looks at data", "--data NAME")),
        ((*DATA,), ("say which model",)),
        (("--model", "zoo/resnet21", *DATA), ("unknown model", "resnet20")),
        (("--model", "zoo/resnet20", "--kwargs", '{"widht": 0.5}', *DATA), ("no argument 'widht'", "width")),
        (("--model", "zoo/resnet20", "--kwargs", "width=0.5", *DATA), ("--kwargs is not JSON",)),
        ((*MODEL, "--weights", "missing.safetensors", *DATA), ("there is no such file", "missing.safetensors")),
        (("--checkpoint", "missing.safetensors", *DATA), ("missing.safetensors",)),
        ((*MODEL, "--data", "digit"), ("digits",)),
        ((*MODEL, "--data", "digits", "--data-kwargs", '{"sise": 16}'), ("no argument 'sise'",)),
        ((*MODEL, *DATA, "--skip", "stem.O"), ("matches no layer", "stem.0")),
        ((*MODEL, *DATA, "--override", "layer9.*:weight_bits=4"), ("matches no layer",)),
        ((*MODEL, *DATA, "--target", "onnxruntim"), ("unknown quantization target", "onnxruntime")),
        ((*MODEL, *DATA, "--observer", "msee"), ("mse",)),
        ((*MODEL, *DATA, "--correction", "adarund"), ("adarund",)),
        ((*MODEL, *DATA, "--weight-bits", "9"), ("2<=x<=8",)),
        ((*MODEL, *DATA, "-o", "model.pt"), ("a .safetensors file", "model.safetensors")),
        ((*MODEL, *DATA, "-o", "no/such/folder.safetensors"), ("no folder",)),
    ],
)  # fmt: skip
def test_bad_input_is_one_error_and_status_2(arguments, messages, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = slim("quant", "ptq", *arguments)
    assert status == 2, err
    assert out == ""
    for message in messages:
        assert message in err.replace("\n", " ")
    assert err.count("error:") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_quantized_model_is_not_quantized_again(quantized) -> None:
    status, _, err = slim("quant", "ptq", "--checkpoint", quantized.checkpoint, *DATA, *FAST)
    assert status == 2
    assert "quantized already" in err


def test_files_that_are_there_stay_unless_overwriting_is_asked_for(trained, tmp_path) -> None:
    there = tmp_path / "there.safetensors"
    there.write_text("something")
    arguments = ("quant", "ptq", "--checkpoint", trained.checkpoint, *DATA, *FAST, "-o", there)
    status, _, err = slim(*arguments)
    assert status == 2
    assert "--overwrite" in err
    assert there.read_text() == "something"
    assert slim(*arguments, "--overwrite")[0] == 0
    assert is_quantized(load(there, registry=load_plugins().registry).model)


def test_a_folder_that_may_not_be_written_to_is_said_before_the_work(trained, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)  # root may write everywhere
    status, _, err = slim("quant", "ptq", "--checkpoint", trained.checkpoint, *DATA, "-o", tmp_path / "a.safetensors")
    assert status == 2
    assert "may not be written to" in err


@pytest.mark.parametrize(
    ("data", "message"),
    [("nothing", "gives no batch"), ("broken", "not finite"), ("failing", "no such column")],
)
def test_data_that_cannot_be_calibrated_on_is_refused(trained, tmp_path, data, message) -> None:
    project = tmp_path / "my_project.py"
    project.write_text(PROJECT)
    output = tmp_path / "a.safetensors"
    status, _, err = slim(
        "quant", "ptq", "--load", project, "--checkpoint", trained.checkpoint, "--data", data, "-o", output
    )
    assert status == 2, err
    assert message in err
    assert not output.exists()


def test_random_weights_are_remarked_upon() -> None:
    status, _, err = slim("quant", "ptq", "--model", "zoo/resnet20", "--kwargs", KWARGS, *DATA, *FAST)
    assert status == 0, err
    assert "the weights are random" in err
