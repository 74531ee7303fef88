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


@pytest.mark.slow
def test_the_checkpoint_rebuilds_what_the_exported_file_computes(finished: Path) -> None:
    import onnxruntime
    import torch

    from slim_core.checkpoint import load
    from slim_core.plugins import load_plugins

    registry = load_plugins().registry
    digits = registry.get("datasets", "digits")(batch_size=64, size=32)
    model = load(finished / "model.safetensors", registry=registry).model
    session = onnxruntime.InferenceSession(str(finished / "model.onnx"), providers=["CPUExecutionProvider"])
    (name,) = (argument.name for argument in session.get_inputs())
    same = total = 0
    for images, _ in digits.val:
        with torch.no_grad():
            simulated = model(images).argmax(1).numpy()
        real = session.run(None, {name: images.numpy()})[0].argmax(1)
        same, total = same + int(np.sum(simulated == real)), total + len(real)
    assert total == 359
    assert same / total >= 0.99


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
