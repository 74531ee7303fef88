"""The main job over all packages: prune, fine-tune, quantize, export, measure and report, from the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

RECIPE = """
version: 1
seed: 3
workload:
  model: zoo/mobilenet_v1
  kwargs: {width: 0.25}
  data: digits
  data_kwargs: {batch_size: 64, size: 32}
train: {epochs: 4, lr: 0.1}
steps:
  - kind: prune.uniform
    budget: {macs: 0.5}
    fit: {epochs: 2, lr: 0.03}
  - kind: quant.ptq
    samples: 128
export: {format: onnx}
measure: {backends: [onnxruntime], batch: 2, threads: 1, rounds: 3}
"""


def slim(*arguments: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "slim_core", *arguments],
        capture_output=True, text=True, timeout=timeout, env=environment,
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("main-job")
    (folder / "recipe.yaml").write_text(RECIPE)
    result = slim("run", str(folder / "recipe.yaml"), "-o", str(folder / "out"))
    assert result.returncode == 0, result.stderr
    return folder / "out"


@pytest.fixture(scope="module")
def report(finished: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((finished / "report.json").read_text())
    return data


def initializer_bytes(path: Path) -> dict[str, int]:
    import onnx

    sizes: dict[str, int] = {}
    for tensor in onnx.load(path).graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        sizes[array.dtype.name] = sizes.get(array.dtype.name, 0) + array.nbytes
    return sizes


@pytest.mark.slow
def test_half_of_the_macs_stay_and_the_files_shrink(finished: Path, report: dict[str, Any]) -> None:
    from slim_core.graph import record
    from slim_core.graph.cost import cost
    from slim_core.plugins import load_plugins

    registry = load_plugins().registry
    digits = registry.get("datasets", "digits")(batch_size=64, size=32)
    original = registry.get("models", "zoo/mobilenet_v1")(width=0.25, num_classes=10, in_channels=1, input_size=32)
    macs = cost(record(original, digits.example_inputs)).macs
    assert report["original"]["macs"] == macs
    assert 0.45 * macs < report["compressed"]["macs"] <= 0.5 * macs
    assert (finished / "model.onnx").stat().st_size < 0.2 * (finished / "original.onnx").stat().st_size


@pytest.mark.slow
def test_weights_are_stored_as_int8(finished: Path) -> None:
    sizes = initializer_bytes(finished / "model.onnx")
    assert sizes["int8"] > 0.75 * sum(sizes.values())
    assert "int8" not in initializer_bytes(finished / "original.onnx")


@pytest.fixture(scope="module")
def simulated(finished: Path) -> tuple[np.ndarray, np.ndarray]:
    """The validation pictures, and what the model that is rebuilt from the checkpoint makes of them."""
    import torch

    from slim_core.checkpoint import load
    from slim_core.plugins import load_plugins

    registry = load_plugins().registry
    digits = registry.get("datasets", "digits")(batch_size=64, size=32)
    model = load(finished / "model.safetensors", registry=registry).model
    images = torch.cat([images for images, _ in digits.val])
    with torch.no_grad():
        return images.numpy(), model(images).numpy()


def deployed(path: Path, images: np.ndarray, *, fused: bool) -> np.ndarray:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if not fused:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    outputs: np.ndarray = session.run(None, {session.get_inputs()[0].name: images})[0]
    return outputs


def sqnr_db(expected: np.ndarray, actual: np.ndarray) -> float:
    return float(10 * np.log10(np.square(expected).sum() / np.square(expected - actual).sum()))


@pytest.mark.slow
def test_the_checkpoint_rebuilds_what_the_exported_file_says(
    finished: Path, simulated: tuple[np.ndarray, np.ndarray]
) -> None:
    images, expected = simulated
    actual = deployed(finished / "model.onnx", images, fused=False)
    assert len(images) == 359
    assert np.mean(expected.argmax(1) == actual.argmax(1)) >= 0.995
    assert sqnr_db(expected, actual) > 40


@pytest.mark.slow
def test_integer_kernels_compute_it_up_to_their_rounding(
    finished: Path, simulated: tuple[np.ndarray, np.ndarray]
) -> None:
    # The fused kernels round once where the file's operators round step by step; a net that was trained for seconds
    # has many near ties, which such differences of a last bit decide.
    images, expected = simulated
    actual = deployed(finished / "model.onnx", images, fused=True)
    assert np.mean(expected.argmax(1) == actual.argmax(1)) >= 0.98
    assert sqnr_db(expected, actual) > 30


@pytest.mark.slow
def test_a_finished_run_answers_at_once_and_changes_nothing(finished: Path) -> None:
    before = {path: path.read_bytes() for path in finished.glob("model.*")}
    result = slim("--format", "json", "run", str(finished.parent / "recipe.yaml"), "-o", str(finished))
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)
    assert {path: path.read_bytes() for path in finished.glob("model.*")} == before


@pytest.mark.slow
@pytest.mark.parametrize("command", [("inspect",), ("verify",)])
def test_the_checkpoint_commands_read_the_result(finished: Path, command: Sequence[str]) -> None:
    result = slim("--format", "json", *command, str(finished / "model.safetensors"))
    assert result.returncode == 0, result.stderr
    assert "prune.channels" in result.stdout or command == ("verify",)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("prune.uniform", "prune.unifrom"), ("prune.unifrom", "prune.uniform")),
        (("budget:", "buget:"), ("buget", "budget")),
        (("zoo/mobilenet_v1", "zoo/mobilnet_v1"), ("zoo/mobilnet_v1", "zoo/mobilenet_v1")),
        (("macs: 0.5", "macs: 0.00001"), ("macs",)),
    ],
    ids=["kind", "key", "model", "budget"],
)
def test_a_mistake_in_the_recipe_is_one_clear_error(
    tmp_path: Path, change: tuple[str, str], words: tuple[str, ...]
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE.replace(*change).replace("epochs: 4", "epochs: 1"))
    result = slim("run", str(file), "-o", str(tmp_path / "out"))
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert all(word in result.stderr for word in words), result.stderr
