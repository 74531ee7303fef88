"""A user's own model and data, through the whole job: what `examples/my_project` promises."""

import hashlib
import json
import sys
from pathlib import Path

import pytest

from slim_core.cli.main import run as slim
from slim_core.report import read_report

EXAMPLE = Path(__file__).parent.parent / "examples/my_project"


@pytest.fixture(autouse=True)
def _needs_all_packages():
    for module in ("slim_prune", "slim_quant", "slim_latency", "onnx", "onnxruntime"):
        pytest.importorskip(module)


def run(out: Path, *more: str) -> None:
    command = ["run", str(EXAMPLE / "recipe.yaml"), "--load", str(EXAMPLE / "my_project.py"), "-o", str(out), *more]
    assert slim(["--format", "quiet", *command]) == 0


@pytest.mark.slow
def test_the_example_is_halved_quantized_exported_and_faster(tmp_path: Path) -> None:
    run(tmp_path)
    report = read_report(tmp_path / "report.json")
    assert [step.kind for step in report.steps] == ["original", "prune.uniform", "quant.ptq"]
    assert report.steps[1].after.macs <= 0.5 * report.original.macs
    assert report.original.metrics["top1"] - report.compressed.metrics["top1"] <= 0.02
    assert report.compressed.export_bytes <= 0.25 * report.original.export_bytes
    assert report.original.export_bytes == (tmp_path / "original.onnx").stat().st_size
    assert report.compressed.export_bytes == (tmp_path / "model.onnx").stat().st_size
    assert [(row.backend, row.batch) for row in report.latency] == [("onnxruntime", 1), ("onnxruntime", 32)]
    assert sum(row.kept for row in report.steps[1].channels) < sum(row.total for row in report.steps[1].channels)


@pytest.mark.slow
def test_the_exported_file_answers_like_the_report_says(tmp_path: Path) -> None:
    import numpy as np
    import onnxruntime

    run(tmp_path, "--set", "measure=null")
    sys.path.insert(0, str(EXAMPLE))
    try:
        from my_project import stripes
    finally:
        sys.path.remove(str(EXAMPLE))
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    name = session.get_inputs()[0].name
    right = [
        session.run(None, {name: inputs.numpy()})[0].argmax(1) == labels.numpy() for inputs, labels in stripes().val
    ]
    report = json.loads((tmp_path / "report.json").read_text())
    assert np.concatenate(right).mean() == pytest.approx(report["compressed"]["metrics"]["top1"], abs=0.01)


@pytest.mark.slow
def test_pruning_and_quantization_give_the_same_bytes_twice(tmp_path: Path) -> None:
    for name in ("a", "b"):
        run(tmp_path / name, "--set", "measure=null", "--set", "train.epochs=1", "--set", "steps[0].fit.epochs=1")
    first, second = (
        hashlib.sha256((tmp_path / name / "model.safetensors").read_bytes()).hexdigest() for name in ("a", "b")
    )
    assert first == second
