"""What the machine is and which state it is in: read from the operating system, stored beside every figure."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

#: instruction sets that decide which kernels a runtime takes, as /proc/cpuinfo names them
FLAGS = (
    "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16",
    "amx_tile", "amx_int8", "amx_bf16", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme",
)  # fmt: skip

_CPUINFO = Path("/proc/cpuinfo")
_FREQUENCY = Path("/sys/devices/system/cpu/cpu0/cpufreq")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_STAT = Path("/proc/stat")


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """The machine of a measurement. What could not be read is ``None``.

    Args:
        cpu: processor name.
        architecture: ``"x86_64"``, ``"aarch64"``, …
        flags: those of :data:`FLAGS` that the processor has.
        cores: logical cores of the machine.
        usable: cores that this process may run on.
        quota: cores' worth of time that the container may use, or ``None`` without a limit.
        governor: frequency governor (``"performance"``, ``"schedutil"``).
        mhz: clock of the first core when it was read.
        virtual: whether the processor says that a hypervisor runs it.
        load: processes that wanted to run in the last minute: above 0 others shared the machine.
        memory_bytes: main memory.
        accelerator: name of the CUDA device, if one is there.
        system: operating system and its version.
        python: Python version.
    """

    cpu: str
    architecture: str
    flags: tuple[str, ...]
    cores: int
    usable: int
    quota: float | None
    governor: str | None
    mhz: float | None
    virtual: bool | None
    load: float | None
    memory_bytes: int | None
    accelerator: str | None
    system: str
    python: str

    def __str__(self) -> str:
        fast = [
            flag for flag in self.flags if flag in ("avx2", "avx512f", "avx512_vnni", "amx_int8", "asimddp", "i8mm")
        ]
        parts = [
            self.cpu,
            f"{self.usable} of {self.cores} cores",
            " ".join(fast),
            f"governor {self.governor or 'unknown'}",
        ]
        return ", ".join(part for part in parts if part)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "flags": list(self.flags)}


def this_device() -> DeviceInfo:
    """Read what this process runs on."""
    fields = _cpuinfo()
    found = set((fields.get("flags") or fields.get("Features") or "").split())
    return DeviceInfo(
        cpu=fields.get("model name") or fields.get("Hardware") or platform.processor() or "unknown",
        architecture=platform.machine(),
        flags=tuple(flag for flag in FLAGS if flag in found),
        cores=os.cpu_count() or 1,
        usable=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        quota=_quota(),
        governor=_line(_FREQUENCY / "scaling_governor"),
        mhz=_mhz(fields),
        virtual="hypervisor" in found if found else None,
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        memory_bytes=_memory(),
        accelerator=_accelerator(),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
    )


@dataclass(frozen=True, slots=True)
class Others:
    """What else ran during a measurement, in cores: 0.5 is half of one core's time.

    Args:
        busy: used by other processes of this machine.
        stolen: taken by the hypervisor for its other guests.
    """

    busy: float
    stolen: float


class Watch:
    """Watches, from its making on, how much of the machine others use. Knows nothing where there is no /proc/stat."""

    def __init__(self) -> None:
        self._start = (time.perf_counter(), time.process_time(), _usage())

    def read(self) -> Others | None:
        """Return what others used since the start, or ``None`` when it cannot be told."""
        began, own, before = self._start
        elapsed, after = time.perf_counter() - began, _usage()
        if before is None or after is None or elapsed < 0.1:  # the counters move in steps of 10 ms
            return None
        busy = after[0] - before[0] - (time.process_time() - own)
        return Others(max(busy, 0.0) / elapsed, max(after[1] - before[1], 0.0) / elapsed)


def _usage() -> tuple[float, float] | None:
    """Return the seconds that all cores were busy and were stolen since the machine started."""
    fields = (_line(_STAT) or "").split()
    if len(fields) < 9 or fields[0] != "cpu" or not all(field.isdigit() for field in fields[1:9]):
        return None
    user, nice, system, _, _, irq, softirq, stolen = (int(field) for field in fields[1:9])
    ticks = os.sysconf("SC_CLK_TCK")
    return (user + nice + system + irq + softirq) / ticks, stolen / ticks


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the installed ones of ``packages`` with their versions."""
    found: dict[str, str] = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _cpuinfo() -> dict[str, str]:
    """Return the fields of the first processor."""
    fields: dict[str, str] = {}
    for line in (_text(_CPUINFO) or "").splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip(), value.strip())
    return fields


def _mhz(fields: dict[str, str]) -> float | None:
    khz = _line(_FREQUENCY / "scaling_cur_freq")
    if khz and khz.isdigit():
        return int(khz) / 1000
    try:
        return float(fields["cpu MHz"])
    except (KeyError, ValueError):
        return None


def _quota() -> float | None:
    parts = (_line(_QUOTA) or "").split()
    if len(parts) == 2 and parts[0].isdigit() and parts[1].isdigit():
        return int(parts[0]) / int(parts[1])
    return None


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def _accelerator() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _line(path: Path) -> str | None:
    text = _text(path)
    return text.strip().splitlines()[0] if text and text.strip() else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
