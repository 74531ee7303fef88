"""Writing: atomic under SIGKILL, normal permissions, and clear refusals of what cannot be stored."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import checkpoint_kit as kit
import numpy as np
import pytest
import torch
from torch import nn

from slim_core.checkpoint import inspect, save
from slim_core.errors import CheckpointError
from slim_core.workload import BuilderRef, Transform, Workload

KILLER = """
    import os, random, signal, sys, time
    from pathlib import Path
    import torch
    from torch import nn
    from slim_core.checkpoint import save, verify
    from slim_core.workload import Workload

    path = Path(sys.argv[1])
    model = nn.Linear(1024, 2048, bias=False)  # 8 MB
    workload = Workload(model, (torch.ones(1, 1024),))
    save(workload, path, parity=False)
    chance = random.Random(0)
    seen, strays = set(), 0
    for value in range(40):
        child = os.fork()
        if not child:
            signal.alarm(20)  # it ends even if nobody is left to kill it
            with torch.no_grad():
                model.weight.fill_(float(value))
            while True:
                save(workload, path, parity=False)
        time.sleep(chance.uniform(0.0, 0.08))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        seen.add(verify(path).header.tensors["weight"].sha256)
        strays += len(os.listdir(path.parent)) - 1
    save(workload, path, parity=False)
    print(len(seen), strays, *os.listdir(path.parent))
"""


def test_a_kill_at_any_point_leaves_the_old_file_or_the_new_one(tmp_path) -> None:
    """Processes that write 8 MB over and over are killed at 40 random points; the file is whole each time."""
    path = tmp_path / "folder" / "model.safetensors"
    path.parent.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", dedent(KILLER), str(path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    seen, strays, *left = done.stdout.split()
    assert int(seen) > 2, "no process finished a file: it is killed too early to show anything"
    assert int(strays) > 0, "no process was killed while it wrote"
    assert left == ["model.safetensors"]


def test_an_error_while_writing_leaves_the_old_file(tmp_path, monkeypatch) -> None:
    path = tmp_path / "a.safetensors"
    save(kit.workload(), path)
    before = path.read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="cannot be written: No space left on device"):
        save(kit.workload(kit.net(seed=4)), path)
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["a.safetensors"]


def test_the_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch) -> None:
    events = []
    fsync, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: events.append("fsync") or fsync(handle))
    monkeypatch.setattr(os, "replace", lambda a, b: events.append("replace") or rename(a, b))
    save(kit.workload(), tmp_path / "a.safetensors")
    assert events == ["fsync", "replace", "fsync"]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_file_has_the_permissions_of_any_new_file(tmp_path, mask, mode) -> None:
    old = os.umask(mask)
    try:
        save(kit.workload(), tmp_path / "a.safetensors")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a.safetensors").stat().st_mode) == mode


def test_a_symbolic_link_stays_and_its_target_is_replaced(tmp_path) -> None:
    (tmp_path / "store").mkdir()
    target, link = tmp_path / "store" / "real.safetensors", tmp_path / "link.safetensors"
    link.symlink_to(target)
    for seed in (0, 1):  # a link to nowhere, then to a file
        save(kit.workload(kit.net(seed=seed)), link)
        assert link.is_symlink()
        assert not target.is_symlink()
        assert inspect(link).tensors == inspect(target).tensors


@pytest.mark.parametrize("make", ["file in the way", "a folder", "a loop", "a name too long", "a null byte"])
def test_a_path_that_cannot_be_written(tmp_path, make) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    path = {
        "file in the way": tmp_path / "file" / "a.safetensors",
        "a folder": tmp_path / "folder",
        "a loop": tmp_path / "loop" / "a",
        "a name too long": tmp_path / ("x" * 300),
        "a null byte": "a\0b",
    }[make]
    with pytest.raises(CheckpointError) as caught:
        save(kit.workload(), path)
    assert caught.value.where is not None
    assert sorted(item.name for item in tmp_path.iterdir()) == ["file", "folder", "loop"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_write_permission(tmp_path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(CheckpointError, match="Permission denied"):
            save(kit.workload(), tmp_path / "a.safetensors")
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
def test_a_file_system_that_takes_no_files() -> None:
    with pytest.raises(CheckpointError, match="cannot be written"):
        save(kit.workload(), "/proc/a.safetensors")


def test_missing_folders_are_not_made(tmp_path) -> None:
    with pytest.raises(CheckpointError, match="there is no folder"):
        save(kit.workload(), tmp_path / "a" / "b.safetensors")
    assert list(tmp_path.iterdir()) == []


def model_with(name: str, tensor: torch.Tensor) -> nn.Module:
    model = nn.Module()
    model.register_buffer(name, tensor)
    return model


class Stateful(nn.Module):
    def get_extra_state(self):
        return {"a": 1}


def test_what_cannot_be_stored_is_named(tmp_path) -> None:
    inputs = (torch.ones(1, 2),)
    linear = nn.Linear(2, 2)
    two_roles = nn.Linear(2, 2)
    two_roles.register_buffer("also", two_roles.weight)
    cases = {
        r"tensors\.a b: this name": Workload(model_with("a b", torch.ones(1)), inputs),
        r"tensors\.gr\\xf6\\xdfe: this name": Workload(model_with("größe", torch.ones(1)), inputs),
        r"tensors\.slim:x: this name": Workload(model_with("slim:x", torch.ones(1)), inputs),
        "dtype complex64": Workload(model_with("x", torch.ones(1, dtype=torch.complex64)), inputs),
        "only dense tensors": Workload(model_with("x", torch.eye(2).to_sparse()), inputs),
        "meta device": Workload(nn.Linear(2, 2, device="meta"), inputs),
        "not initialized": Workload(nn.LazyLinear(2), inputs),
        r"modules\.0: Stateful keeps extra state": Workload(nn.Sequential(Stateful()), inputs),
        r"one tensor is buffer and parameter: also, weight": Workload(two_roles, inputs),
        r"builder\.kwargs\.size\.x: a value of type set": Workload(
            linear, inputs, builder=BuilderRef("x", {"size": {"x": {1, 2}}})
        ),
        r"builder\.kwargs\.f: nan cannot": Workload(linear, inputs, builder=BuilderRef("x", {"f": float("nan")})),
        r"builder\.kwargs: keys are text": Workload(linear, inputs, builder=BuilderRef("x", {1: 2})),
        r"builder\.name": Workload(linear, inputs, builder=BuilderRef("a b", {})),
        r"transforms\[0\]\.data\.d\[1\]": Workload(linear, inputs, transforms=(Transform("k", 1, {"d": [1, b""]}),)),
        r"transforms\[0\]\.tensors": Workload(
            linear, inputs, transforms=(Transform("k", 1, {}, {"a b": torch.ones(1)}),)
        ),
        r"example_inputs\.0: an input of type set": Workload(linear, ({1},)),
        "example_inputs: a tuple or a mapping": Workload(linear, 5),
        r"example_inputs\.0: dtype complex64": Workload(nn.Identity(), (torch.ones(1, dtype=torch.complex64),)),
        "parity: the model fails on its example inputs: RuntimeError": Workload(linear, (torch.ones(1, 3),)),
        "parity: the model's output holds no tensor": Workload(Silent(), inputs),
    }
    for words, workload in cases.items():
        with pytest.raises(CheckpointError, match=words):
            save(workload, tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


class Silent(nn.Module):
    def forward(self, x):
        return None


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"recipe": {"a": float("inf")}}, r"recipe\.a: inf cannot be written"),
        ({"recipe": {"a": "\x1b[31m"}}, "control characters"),
        ({"recipe": {"a": 2**70}}, "out of range"),
        ({"metrics": {"a": "good"}}, r"metrics\.a: a number was expected"),
        ({"metrics": {"a b": 1.0}}, "metrics"),
        ({"producers": {"slim": "not a version!?"}}, "producers"),
    ],
)
def test_values_that_are_not_json_are_named(tmp_path, more, words) -> None:
    with pytest.raises(CheckpointError, match=words):
        save(kit.workload(), tmp_path / "a.safetensors", **more)
    assert list(tmp_path.iterdir()) == []


def test_numbers_of_numpy_and_torch_are_numbers(tmp_path) -> None:
    metrics = {"a": np.float32(0.5), "b": torch.tensor(2.0), "c": float("inf"), "d": 3, "e": None}
    header = save(kit.workload(), tmp_path / "a.safetensors", metrics=metrics, recipe={"x": np.int64(3), "y": (1, 2)})
    assert dict(header.metrics) == {"a": 0.5, "b": 2.0, "c": None, "d": 3, "e": None}
    assert inspect(tmp_path / "a.safetensors").recipe == {"x": 3, "y": [1, 2]}
    assert isinstance(header.metrics["d"], int)


def test_producers_name_the_packages_of_builder_and_transforms(tmp_path) -> None:
    header = save(kit.workload(), tmp_path / "a.safetensors")
    assert set(header.producers) == {"slim-core", "torch"}


def test_memory_is_that_of_one_tensor_at_a_time(tmp_path) -> None:
    """Saving 256 MB of weights in 16 tensors must not take another 256 MB."""
    script = """
        import resource, sys, torch
        from torch import nn
        from slim_core.checkpoint import save
        from slim_core.workload import Workload

        model = nn.ParameterList([torch.ones(4 * 2**20) for _ in range(16)])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        save(Workload(model, ()), sys.argv[1], parity=False)
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
    """
    done = subprocess.run(
        [sys.executable, "-c", dedent(script), str(tmp_path / "a.safetensors")],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert int(done.stdout) < 64
