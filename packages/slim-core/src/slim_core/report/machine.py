"""What a report says about the machine and the packages that its figures come from."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import metadata

from slim_core.report.data import Device

#: packages that decide numbers, beside Slim's own
LIBRARIES = ("torch", "numpy", "safetensors", "onnx", "onnxscript", "onnxruntime", "openvino")


def this_device() -> Device:
    """Return the device of this process."""
    import torch

    from slim_core.measure import device

    machine = device.this_device()
    return Device(
        cpu=machine.cpu,
        cores=machine.usable,
        threads=torch.get_num_threads(),
        accelerator=machine.accelerator,
        system=f"{machine.system} {machine.architecture}",
        python=machine.python,
        details=machine.to_json(),
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
