from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from slim_core.errors import ModelError, SlimError
from slim_core.training import Callback, FitConfig, fit
from slim_core.training.state import FILE_NAME, KEY

SCRIPT = """
import os, signal, sys
import torch
from pathlib import Path
from safetensors.torch import save_file
from slim_core.data import TensorSource
from slim_core.tasks import ClassificationTask
from slim_core.training import Callback, FitConfig, fit
from slim_core.workload import Workload
from torch import nn

folder, out, kill_at = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(1)
torch.manual_seed(0)
inputs, targets = torch.randn(96, 1, 8, 8), torch.randint(0, 4, (96,))
model = nn.Sequential(
    nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.3),
    nn.AdaptiveAvgPool2d(2), nn.Flatten(1), nn.Linear(32, 4))
shift = lambda x, random: x + torch.rand(x.shape, generator=random)
source = TensorSource(inputs, targets, 16, shuffle=True, seed=2, augment=shift)

class Killer(Callback):
    def __init__(self):
        self.sum = torch.zeros(())
    def on_step_end(self, state):
        self.sum += state.loss.detach()
        if state.step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
    def state(self):
        return {"sum": self.sum}
    def load_state(self, tensors):
        self.sum = tensors["sum"]

killer = Killer()
config = FitConfig(epochs=5, optimizer=sys.argv[4], ema=0.95, mixup=0.2, lr=0.01, clip_norm=1.0, warmup_epochs=1.5)
workload = Workload(model, (inputs[:1],), ClassificationTask(), source, source.plain())
result = fit(workload, config, callbacks=[killer], folder=folder)
state = {**result.workload.model.state_dict(), "sum": killer.sum,
         "losses": torch.tensor([row["loss"] for row in result.history], dtype=torch.float64),
         "resumed": torch.tensor(result.resumed_at)}
save_file(state, out)
"""


def train(tmp_path: Path, name: str, optimizer: str, kill_at: int = -1) -> int:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    arguments = [str(tmp_path / name), str(tmp_path / f"{name}.safetensors"), str(kill_at), optimizer]
    return subprocess.run([sys.executable, str(script), *arguments], check=False, timeout=120).returncode


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_run_that_was_killed_twice_ends_bit_for_bit_like_one_that_was_not(tmp_path: Path, optimizer: str):
    assert train(tmp_path, "whole", optimizer) == 0
    for kill_at in (9, 24):  # inside the second epoch, and at the first step of the last
        assert train(tmp_path, "killed", optimizer, kill_at) == -signal.SIGKILL
    assert train(tmp_path, "killed", optimizer) == 0
    whole, resumed = (load_file(tmp_path / f"{name}.safetensors") for name in ("whole", "killed"))
    assert (whole.pop("resumed").item(), resumed.pop("resumed").item()) == (0, 4)
    assert whole.keys() == resumed.keys()
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []


class Interrupt(Callback):
    """Ends the process's work in the middle of an epoch, as Ctrl-C does."""

    def __init__(self, step: int = -1) -> None:
        self.at = step

    def on_step_start(self, state) -> None:
        if state.step == self.at:
            raise KeyboardInterrupt


def test_a_finished_run_returns_at_once_with_the_same_model(workload, tmp_path: Path):
    one = fit(workload, FitConfig(epochs=2, ema=0.9), folder=tmp_path)
    two = fit(workload, FitConfig(epochs=2, ema=0.9), folder=tmp_path)
    assert (one.resumed_at, two.resumed_at) == (0, 2)
    assert two.history == one.history
    for a, b in zip(one.workload.model.parameters(), two.workload.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_loader_with_a_generator_of_its_own_resumes_bit_for_bit(workload, tmp_path: Path):
    def loaded():
        data = torch.utils.data.TensorDataset(workload.train.inputs, workload.train.targets)
        random = torch.Generator().manual_seed(11)
        return replace(workload, train=torch.utils.data.DataLoader(data, 16, shuffle=True, generator=random))

    whole = fit(loaded(), FitConfig(epochs=3), callbacks=[Interrupt()]).workload.model
    with pytest.raises(KeyboardInterrupt):
        fit(loaded(), FitConfig(epochs=3), callbacks=[Interrupt(8)], folder=tmp_path)
    resumed = fit(loaded(), FitConfig(epochs=3), callbacks=[Interrupt()], folder=tmp_path)
    assert resumed.resumed_at == 1
    for a, b in zip(whole.parameters(), resumed.workload.model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("where", ["loader", "sampler"])
def test_what_follows_a_resumed_run_with_the_same_loader_is_bit_for_bit_the_same(workload, tmp_path: Path, where: str):
    """Train, then fine-tune: in one process, and with a process that only resumes the finished training."""

    def fresh():
        own = torch.Generator().manual_seed(11)
        data = torch.utils.data.TensorDataset(workload.train.inputs, workload.train.targets)
        if where == "loader":
            loader = torch.utils.data.DataLoader(data, 16, shuffle=True, generator=own)
        else:
            loader = torch.utils.data.DataLoader(data, 16, sampler=torch.utils.data.RandomSampler(data, generator=own))
        return replace(workload, train=loader)

    train, tune = FitConfig(epochs=2), FitConfig(epochs=2, lr=0.001)
    process = fresh()
    trained = fit(process, train, folder=tmp_path)
    once = fit(trained.workload, tune)
    process = fresh()
    resumed = fit(process, train, folder=tmp_path)
    assert resumed.resumed_at == 2
    twice = fit(resumed.workload, tune)
    for name, tensor in once.workload.model.state_dict().items():
        assert torch.equal(tensor, twice.workload.model.state_dict()[name]), name


def test_fit_leaves_the_generator_of_a_loader_as_it_was(workload):
    own = torch.Generator().manual_seed(11)
    data = torch.utils.data.TensorDataset(workload.train.inputs, workload.train.targets)
    loader = torch.utils.data.DataLoader(data, 16, shuffle=True, generator=own)
    before = own.get_state()
    fit(replace(workload, train=loader, val=loader), FitConfig(epochs=1))
    assert torch.equal(own.get_state(), before)
    assert own.initial_seed() == 11


class Counting(nn.Module):
    """Steers its output by buffers that are not in the state dict; one of them is made by the first forward."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 4)
        self.register_buffer("steps", torch.zeros(()), persistent=False)
        self.register_buffer("sums", torch.zeros(0), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.steps += 1
            self.sums = torch.cat([self.sums, x.detach().mean().reshape(1)])
            if not hasattr(self, "first"):
                self.register_buffer("first", x.detach().mean(), persistent=False)
        return self.head(x.flatten(1)) * (1 + self.steps / 10) + self.sums.sum() + self.first


def test_buffers_outside_the_state_dict_survive(workload, tmp_path: Path):
    torch.manual_seed(0)
    workload = replace(workload, model=Counting())

    whole = fit(workload, FitConfig(epochs=4), callbacks=[Interrupt()]).workload.model
    with pytest.raises(KeyboardInterrupt):
        fit(workload, FitConfig(epochs=4), callbacks=[Interrupt(14)], folder=tmp_path)
    result = fit(workload, FitConfig(epochs=4), callbacks=[Interrupt()], folder=tmp_path)
    assert result.resumed_at == 2
    resumed = result.workload.model
    assert float(whole.steps) == 24
    for name in ("steps", "sums", "first"):
        assert torch.equal(getattr(whole, name), getattr(resumed, name)), name
    assert torch.equal(whole.head.weight, resumed.head.weight)


def test_tied_weights_survive(tmp_path: Path):
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
            self.two.weight = self.one.weight

        def forward(self, x):
            return self.two(self.one(x))

    from slim_core.tasks import ClassificationTask
    from slim_core.workload import Workload

    batches = [(torch.ones(4, 4), torch.tensor([0, 1, 2, 3]))] * 3
    workload = Workload(Tied(), (torch.ones(1, 4),), ClassificationTask(), batches)
    whole = fit(workload, FitConfig(epochs=3), callbacks=[Interrupt()]).workload.model
    with pytest.raises(KeyboardInterrupt):
        fit(workload, FitConfig(epochs=3), callbacks=[Interrupt(7)], folder=tmp_path)
    model = fit(workload, FitConfig(epochs=3), callbacks=[Interrupt()], folder=tmp_path).workload.model
    assert model.one.weight is model.two.weight
    assert torch.equal(model.one.weight, whole.one.weight)
    assert torch.equal(model.two.bias, whole.two.bias)


def test_the_file_holds_tensors_and_one_json_text_and_no_staging_file_stays(workload, tmp_path: Path):
    fit(workload, FitConfig(epochs=2), folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]
    with safe_open(tmp_path / FILE_NAME, "pt") as file:
        metadata = file.metadata()
    assert list(metadata) == [KEY]
    header = json.loads(metadata[KEY])
    assert (header["version"], header["epoch"], header["step"], len(header["history"])) == (1, 2, 12, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w, c: (w, c.model_copy(update={"lr": 0.5})), "lr is 0.05 there and 0.5 here"),
        (lambda w, c: (w, c.model_copy(update={"seed": 5})), "seed is None there and 5 here"),
        (lambda w, c: (replace(w, train=list(w.train)[:3]), c), "steps_per_epoch is 6 there and 3 here"),
        (lambda w, c: (replace(w, model=nn.Sequential(nn.Flatten(), nn.Linear(64, 4))), c), "other starting weights"),
    ],
)
def test_the_state_of_another_run_is_refused_and_the_difference_named(workload, tmp_path: Path, change, message: str):
    fit(workload, FitConfig(epochs=1), folder=tmp_path)
    other, config = change(workload, FitConfig(epochs=1))
    with pytest.raises(SlimError, match=message) as caught:
        fit(other, config, folder=tmp_path)
    assert str(tmp_path / FILE_NAME) in str(caught.value)


def test_a_damaged_state_is_refused(workload, tmp_path: Path):
    fit(workload, FitConfig(epochs=1), folder=tmp_path)
    path = tmp_path / FILE_NAME
    whole = path.read_bytes()
    for length in (0, 4, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(SlimError, match="cannot be read"):
            fit(workload, FitConfig(epochs=1), folder=tmp_path)


def test_a_foreign_safetensors_file_is_refused(workload, tmp_path: Path):
    from safetensors.torch import save_file

    save_file({"x": torch.ones(1)}, tmp_path / FILE_NAME)
    with pytest.raises(SlimError, match="cannot be read"):
        fit(workload, FitConfig(epochs=1), folder=tmp_path)


def test_extra_state_that_needs_pickle_is_named(workload, tmp_path: Path):
    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"a": 1}

        def set_extra_state(self, state):
            pass

    model = nn.Sequential(nn.Flatten(), Extra(64, 4))
    with pytest.raises(ModelError, match="holds a dict") as caught:
        fit(replace(workload, model=model), FitConfig(epochs=1), folder=tmp_path)
    assert caught.value.where == "1._extra_state"
    assert fit(replace(workload, model=model), FitConfig(epochs=1)).history


def test_the_state_is_readable_as_any_file_of_the_user(workload, tmp_path: Path):
    old = os.umask(0o022)
    try:
        fit(workload, FitConfig(epochs=1), folder=tmp_path)
    finally:
        os.umask(old)
    assert (tmp_path / FILE_NAME).stat().st_mode & 0o777 == 0o644
