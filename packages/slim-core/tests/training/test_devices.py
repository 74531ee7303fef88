from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from slim_core.errors import MissingExtraError
from slim_core.training.devices import OneDevice, choose_devices, split

SCRIPT = """
import json, os, signal, sys
import torch
from pathlib import Path
from safetensors.torch import save_file
from slim_core.data import TensorSource
from slim_core.tasks import ClassificationTask
from slim_core.training import FitConfig, evaluate, fit
from slim_core.workload import Workload
from torch import nn

signal.alarm(200)  # it ends even if nobody is left to end it
torch.set_num_threads(1)
torch.manual_seed(0)
inputs, targets = torch.randn(101, 1, 8, 8), torch.randint(0, 4, (101,))  # the last batch has one sample
model = nn.Sequential(
    nn.Conv2d(1, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(),
    nn.AdaptiveAvgPool2d(2), nn.Flatten(1), nn.Linear(32, 4))
train = TensorSource(inputs, targets, 20, shuffle=True, seed=2)
val = TensorSource(inputs[:37], targets[:37], 9)
config = FitConfig(epochs=3, lr=0.05, ema=0.9, clip_norm=1.0, mixup=0.1, device="cpu")
folder = Path(sys.argv[1])
result = fit(Workload(model, (inputs[:1],), ClassificationTask(), train, val), config, folder=folder)
rank = os.environ.get("RANK", "0")
figures = {f"{row['epoch']}/{key}": torch.tensor(float(value), dtype=torch.float64)
           for row in result.history for key, value in row.items() if key != "images_per_s"}
save_file({**result.workload.model.state_dict(), **figures}, f"{folder}.{rank}.safetensors")
"""


def launch(script: Path, folder: Path, world: int) -> list[dict[str, torch.Tensor]]:
    """Run the script, several times over with ``torchrun``, whose store takes a free port by itself."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ACCELERATE")}
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
    command = [sys.executable, *(torchrun if world > 1 else []), str(script), str(folder)]
    process = subprocess.Popen(command, env=environment | {"OMP_NUM_THREADS": "1"})
    try:
        assert process.wait(timeout=180) == 0
    finally:
        process.terminate()  # torchrun ends its processes then
        try:
            process.wait(timeout=30)
        finally:
            process.kill()
    return [load_file(f"{folder}.{rank}.safetensors") for rank in range(world)]


@pytest.mark.slow
def test_two_processes_compute_what_one_does(tmp_path: Path):
    pytest.importorskip("accelerate")
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    (alone,) = launch(script, tmp_path / "one", 1)
    first, second = launch(script, tmp_path / "two", 2)
    assert alone.keys() == first.keys() == second.keys()
    for name, value in alone.items():
        assert torch.equal(first[name], second[name]), f"the processes agree on {name}"
        torch.testing.assert_close(
            first[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_shares_are_as_equal_as_possible():
    assert split(7, 3) == (3, 2, 2)
    assert split(1, 2) == (1, 0)
    assert sum(split(101, 8)) == 101


def test_one_process_stays_where_it_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert choose_devices("cpu", torch.device("cpu")).device == torch.device("cpu")
    assert isinstance(choose_devices(None, torch.device("meta")), OneDevice)


def test_without_the_extra_its_name_is_given(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(MissingExtraError, match="accelerate") as caught:
        choose_devices("cpu", torch.device("cpu"))
    assert "slim-core[multi]" in str(caught.value)
