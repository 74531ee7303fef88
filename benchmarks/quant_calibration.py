"""What post-training quantization costs: seconds and memory, ours against NNCF and onnxruntime, each in a process.

Every side quantizes the same model on the same pictures; rounds take turns. The time is that of the quantizing call
alone (see ``quantizing/jobs.py``), the memory is the largest resident size of the process up to its end. NNCF is timed
on each of its backends, and with single pictures, as its documentation has it, and with batches of 32. ResNet-50 and
MobileNetV2 have random weights: what is counted does not depend on them.

Ours begins with a PyTorch model, which it captures within that time; the peers begin with an ONNX file, which somebody
has to export first. So the whole way is told too, from the PyTorch model to the int8 file: the peers' with the export
of the float file, ours with that of the int8 file.

    python benchmarks/quant_calibration.py [--cases resnet50 …] [--rounds 3] [--quick]
"""

from __future__ import annotations

import statistics
import sys
import time
from typing import Any

import bases
import torch
from quantizing.common import (
    CALIBRATION,
    FOLDER,
    RESULTS,
    JobError,
    Rows,
    calibration,
    float_file,
    job,
    parser,
    saved,
    say,
)
from quantizing.common import start as begin

from slim_core.plugins import load_plugins

#: name -> side of ``quantizing/jobs.py``, its batch size and options
SIDES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "slim, mse": ("slim", 32, {"observer": "mse"}),
    "slim, min_max": ("slim", 32, {"observer": "min_max"}),
    "slim, mse + bias correction": ("slim", 32, {"observer": "mse", "corrections": ["bias_correction"]}),
    "slim, openvino, mse": ("slim", 32, {"observer": "mse", "target": "openvino"}),
    "nncf, onnx": ("nncf-onnx", 1, {}),
    "nncf, onnx, batches": ("nncf-onnx", 32, {}),
    "nncf, openvino": ("nncf-openvino", 1, {}),
    "nncf, openvino, batches": ("nncf-openvino", 32, {}),
    "nncf, torch": ("nncf-torch", 1, {}),
    "nncf, torch, batches": ("nncf-torch", 32, {}),
    "onnxruntime, minmax": ("onnxruntime", 1, {"method": "MinMax"}),
    "onnxruntime, entropy": ("onnxruntime", 1, {"method": "Entropy"}),
}
#: name -> zoo model, its arguments and how many pictures of which shape; a base of ``bases.py`` has its own
LARGE: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "resnet50": ("resnet50", {"num_classes": 1000}, (256, 3, 224, 224)),
    "mobilenet_v2_224": ("mobilenet_v2", {"num_classes": 1000}, (256, 3, 224, 224)),
}
QUICK = (16, 3, 64, 64)


def case(name: str, quick: bool) -> tuple[dict[str, Any], torch.Tensor, float]:
    """Return the model of a case, as jobs want it, its pictures, and how long the export of its float file took."""
    if name in LARGE:
        zoo, kwargs, shape = LARGE[name]
        pictures = torch.randn(QUICK if quick else shape, generator=torch.Generator().manual_seed(0))
        from slim_zoo import create_model

        torch.manual_seed(0)
        model, spec = create_model(zoo, **kwargs).eval(), {"zoo": zoo, "kwargs": kwargs}
    else:
        registry = load_plugins().registry
        data = bases.data(registry)
        pictures = calibration(data, 32 if quick else CALIBRATION, 0)
        model = bases.trained(name, registry, data).model.eval()
        spec = {"checkpoint": str(bases.FOLDER / f"{name}.safetensors")}
    path = FOLDER / "calibration" / f"{name}-float.onnx"
    path.unlink(missing_ok=True)
    float_file(torch.nn.Conv2d(3, 8, 3).eval(), (torch.zeros(1, 3, 8, 8),), FOLDER / "calibration" / "warm.onnx")
    began = time.perf_counter()
    float_file(model, (pictures[:1],), path)
    return {**spec, "float": str(path)}, pictures, time.perf_counter() - began


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the median of the rounds for each case and side."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["case"], row["side"]), []).append(row)
    found = []
    for (name, side), group in groups.items():
        good = [row for row in group if "error" not in row]
        line: dict[str, Any] = {"case": name, "side": side, "rounds": len(good)}
        if good:
            line |= {
                key: statistics.median(row[key] for row in good)
                for key in ("seconds", "cpu_seconds", "whole_seconds", "peak_mb")
            }
        else:
            line["error"] = group[0]["error"]
        found.append(line)
    return found


def main() -> int:
    words = parser(__doc__, RESULTS / "quant_calibration.json")
    words.add_argument("--cases", nargs="+", choices=[*LARGE, *bases.BASES],
                       default=["resnet50", "mobilenet_v2_224", "mobilenet_v1", "resnet20"])  # fmt: skip
    words.add_argument("--sides", nargs="+", choices=list(SIDES), default=list(SIDES))
    words.add_argument("--rounds", type=int, default=3)
    words.set_defaults(threads=2)
    arguments = words.parse_args()
    begin(arguments)
    rounds = 1 if arguments.quick else arguments.rounds
    (FOLDER / "calibration" / "warm.onnx").unlink(missing_ok=True)
    rows = Rows(arguments, {"calibration": CALIBRATION, "quick": arguments.quick}, ("case", "side", "round"))
    for name in arguments.cases:
        spec, pictures, exported = case(name, arguments.quick)
        data = str(saved(pictures, name))
        for number in range(rounds):
            order = arguments.sides if number % 2 == 0 else arguments.sides[::-1]
            for side in order:
                if rows.has(name, side, number):
                    continue
                kind, batch, options = SIDES[side]
                suffix = ".xml" if kind == "nncf-openvino" else ".onnx"
                output = FOLDER / "calibration" / f"{name}-{side.replace(', ', '-').replace(' ', '')}{suffix}"
                output.parent.mkdir(parents=True, exist_ok=True)
                task = {"do": "quantize", "side": kind, "model": spec, "data": data, "batch": batch,
                        "options": options, "output": str(output)}  # fmt: skip
                python = sys.executable if kind == "slim" else arguments.peers
                row: dict[str, Any] = {"case": name, "side": side, "round": number, "pictures": len(pictures)}
                try:
                    row |= job(python, task, threads=arguments.threads)
                    begins = 0.0 if kind in ("slim", "nncf-torch") else exported
                    row["whole_seconds"] = begins + row["seconds"] + row["write_seconds"]
                    took = f"{row['seconds']:8.2f} s {row['cpu_seconds']:8.2f} CPU s {row['peak_mb']:8.0f} MB"
                    say(f"{name:18} {side:30} {took}")
                except JobError as error:
                    row["error"] = str(error)
                    say(f"{name:18} {side:30} {error}")
                rows.more["summary"] = summary([*rows.rows, row])
                rows.add(row)
    return 0


if __name__ == "__main__":
    sys.exit(main())
