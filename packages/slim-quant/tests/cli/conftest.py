"""A model that was trained on digits for a moment, and what ``slim quant ptq`` made of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from quant_cli import DATA, DATA_KWARGS, KWARGS, slim
from safetensors.torch import save_model

from slim_core.checkpoint import save
from slim_core.plugins import load_plugins
from slim_core.training import FitConfig, evaluate, fit
from slim_core.workload import BuilderRef, Workload


class Trained(NamedTuple):
    """The float model: its workload, two files, and its accuracy on the validation part."""

    workload: Workload
    weights: Path
    checkpoint: Path
    top1: float


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    registry = load_plugins().registry
    data = registry.get("datasets", "digits")(**json.loads(DATA_KWARGS))
    task = registry.get("tasks", "classification")(num_classes=10)
    kwargs = {**json.loads(KWARGS), "num_classes": 10, "in_channels": 1, "input_size": 16}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = registry.get("models", "zoo/resnet20")(**kwargs)
    ref = BuilderRef("zoo/resnet20", kwargs)
    before = Workload(model, data.example_inputs, task, data.train, data.val, ref)
    more = registry.get("datasets", "digits")(size=16, batch_size=32)
    after = replace(fit(replace(before, train=more.train), FitConfig(epochs=3, lr=0.1)).workload, train=data.train)
    after.model.eval()
    folder = tmp_path_factory.mktemp("trained")
    save(after, folder / "base.safetensors")
    save_model(after.model, str(folder / "weights.safetensors"))
    top1 = evaluate(after.model, task, data.val)["top1"]
    return Trained(after, folder / "weights.safetensors", folder / "base.safetensors", top1)


class Quantized(NamedTuple):
    """What the command left behind, and what it printed as JSON."""

    checkpoint: Path
    onnx: Path
    data: dict[str, Any]
    trained: Trained


@pytest.fixture(scope="session")
def quantized(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Quantized:
    folder = tmp_path_factory.mktemp("quantized")
    files = (folder / "int8.safetensors", folder / "int8.onnx")
    status, out, err = slim(
        "quant", "ptq", "--checkpoint", trained.checkpoint, *DATA, "--samples", 64, "-o", files[0], "--onnx", files[1],
        format="json",
    )  # fmt: skip
    assert status == 0, err
    return Quantized(*files, json.loads(out), trained)
