"""What is read of the machine, from files as other machines have them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from slim_core.measure import device, this_device

X86 = """processor\t: 0
model name\t: Imaginary Xeon
cpu MHz\t\t: 2596.148
flags\t\t: fpu sse avx2 fma avx512f avx512_vnni hypervisor

processor\t: 1
model name\t: Imaginary Xeon
"""
ARM = """processor\t: 0
Features\t: fp asimd asimddp i8mm
Hardware\t: Imaginary Phone
"""


def reading(monkeypatch: pytest.MonkeyPatch, folder: Path, cpuinfo: str, **others: str) -> device.DeviceInfo:
    (folder / "cpuinfo").write_text(cpuinfo)
    monkeypatch.setattr(device, "_CPUINFO", folder / "cpuinfo")
    monkeypatch.setattr(device, "_FREQUENCY", folder)
    monkeypatch.setattr(device, "_QUOTA", folder / "quota")
    for name, text in others.items():
        (folder / name).write_text(text)
    return this_device()


def test_an_x86_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = reading(monkeypatch, tmp_path, X86)
    assert found.cpu == "Imaginary Xeon"
    assert found.flags == ("avx2", "fma", "avx512f", "avx512_vnni")
    assert found.mhz == 2596.148
    assert found.virtual is True
    assert (found.governor, found.quota) == (None, None)


def test_an_arm_phone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = reading(monkeypatch, tmp_path, ARM, scaling_governor="schedutil\n", scaling_cur_freq="1804800\n")
    assert found.cpu == "Imaginary Phone"
    assert found.flags == ("asimd", "asimddp", "i8mm")
    assert (found.governor, found.mhz, found.virtual) == ("schedutil", 1804.8, False)


@pytest.mark.parametrize(("text", "cores"), [("150000 100000\n", 1.5), ("max 100000\n", None), ("", None)])
def test_the_limit_of_a_container(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, cores: float | None
) -> None:
    assert reading(monkeypatch, tmp_path, X86, quota=text).quota == cores


def test_a_machine_that_tells_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = reading(monkeypatch, tmp_path, "")
    assert found.flags == ()
    assert found.virtual is None
    assert found.cpu


def test_this_machine() -> None:
    found = this_device()
    assert found.cores == os.cpu_count()
    assert 1 <= found.usable <= found.cores
    assert (found.accelerator is not None) == torch.cuda.is_available()
    assert json.loads(json.dumps(found.to_json()))["architecture"] == found.architecture


def stat(folder: Path, user: int, stolen: int) -> None:
    (folder / "stat").write_text(f"cpu  {user} 10 20 5000 7 1 2 {stolen} 0 0\ncpu0 1 2 3 4 5 6 7 8 0 0\n")


def test_what_others_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(device, "_STAT", tmp_path / "stat")
    clock, own = iter([100.0, 104.0]), iter([1.0, 3.5])
    monkeypatch.setattr(device.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(device.time, "process_time", lambda: next(own))
    ticks = os.sysconf("SC_CLK_TCK")
    stat(tmp_path, user=10 * ticks, stolen=0)
    watch = device.Watch()
    stat(tmp_path, user=16 * ticks, stolen=ticks)
    found = watch.read()
    assert found is not None
    assert found.busy == pytest.approx((6 - 2.5) / 4)  # all cores worked for 6 s in 4 s, 2.5 s of it for this process
    assert found.stolen == pytest.approx(1 / 4)


def test_nothing_is_said_of_others_where_it_cannot_be_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(device, "_STAT", tmp_path / "absent")
    assert device.Watch().read() is None
    (tmp_path / "odd").write_text("cpu a b\n")
    monkeypatch.setattr(device, "_STAT", tmp_path / "odd")
    assert device.Watch().read() is None


def test_versions_of_what_is_installed() -> None:
    assert device.versions(["torch", "no-such-package"]) == {"torch": torch.__version__}
