"""A user's own model and data, through the whole job: what `examples/my_project` promises."""

import hashlib
import json
from pathlib import Path

import pytest

from slim_core.cli.main import run as slim
from slim_core.report import read_report

EXAMPLE = Path(__file__).parent.parent / "examples/my_project"


def run(out: Path, *more: str) -> None:
    command = ["run", str(EXAMPLE / "recipe.yaml"), "--load", str(EXAMPLE / "my_project.py"), "-o", str(out), *more]
    assert slim(["--format", "quiet", *command]) == 0


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    for module in ("slim_prune", "slim_quant", "slim_latency", "onnx", "onnxruntime"):
        pytest.importorskip(module)
    folder = tmp_path_factory.mktemp("out")
    run(folder, "--set", "measure.rounds=5", "--set", "train.epochs=3", "--set", "steps[0].fit.epochs=1")
    return folder


@pytest.mark.slow
def test_the_example_is_halved_quantized_exported_and_measured(out: Path) -> None:
    report = read_report(out / "report.json")
    assert [step.kind for step in report.steps] == ["original", "prune.uniform", "quant.ptq"]
    assert report.steps[1].after.macs <= 0.5 * report.original.macs
    assert report.original.metrics["top1"] - report.compressed.metrics["top1"] <= 0.02
    assert report.compressed.export_bytes <= 0.25 * report.original.export_bytes
    assert report.original.export_bytes == (out / "original.onnx").stat().st_size
    assert report.compressed.export_bytes == (out / "model.onnx").stat().st_size
    assert [(row.backend, row.batch) for row in report.latency] == [("onnxruntime", 1), ("onnxruntime", 32)]
    assert sum(row.kept for row in report.steps[1].channels) < sum(row.total for row in report.steps[1].channels)


@pytest.mark.slow
def test_the_exported_file_answers_like_the_report_says(out: Path) -> None:
    import numpy as np
    import onnxruntime

    from slim_core.discovery import import_file

    stripes = import_file(EXAMPLE / "my_project.py").stripes
    session = onnxruntime.InferenceSession(out / "model.onnx")
    name = session.get_inputs()[0].name
    right = [
        session.run(None, {name: inputs.numpy()})[0].argmax(1) == labels.numpy() for inputs, labels in stripes().val
    ]
    report = json.loads((out / "report.json").read_text())
    assert np.concatenate(right).mean() == pytest.approx(report["compressed"]["metrics"]["top1"], abs=0.01)


@pytest.mark.slow
def test_pruning_and_quantization_give_the_same_bytes_again(out: Path, tmp_path: Path) -> None:
    more = ("--load", str(EXAMPLE / "my_project.py"), "--set", "measure=null", "--set", "export=null")
    assert slim(["--format", "quiet", "run", str(out / "recipe.resolved.yaml"), "-o", str(tmp_path), *more]) == 0
    steps = "steps/02-quant.ptq/model.safetensors"
    assert digest(out / steps) == digest(tmp_path / steps)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
