"""What a report says about the machine and the packages that its figures come from."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from slim_core.report.data import Device

#: packages that decide numbers, beside Slim's own
LIBRARIES = ("torch", "numpy", "safetensors", "onnx", "onnxscript", "onnxruntime", "openvino")


def this_device() -> Device:
    """Return the device of this process."""
    import torch

    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return Device(
        cpu=_processor(),
        cores=_usable_cores(),
        threads=torch.get_num_threads(),
        accelerator=accelerator,
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
    )


def versions(packages: Iterable[str] = ()) -> dict[str, str]:
    """Return the versions of ``packages`` and :data:`LIBRARIES`, without those that are not installed."""
    found: dict[str, str] = {}
    for name in (*sorted(set(packages)), *LIBRARIES):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model", "Hardware") and value.strip():
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "unknown processor"
