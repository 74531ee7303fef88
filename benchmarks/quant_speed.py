"""Latency of int8 against float files at 224x224, batch 1: ours, onnxruntime's ``quantize_static`` and NNCF's.

Weights are random: what a layer costs does not depend on them. For each model all files are made first and kept under
``out/quant/speed``; then each runtime times its candidates interleaved, in one run, so that a busy machine slows all
alike. Ratios are to the same runtime's float32; openvino's own default precision, which may be bfloat16, stands
beside it. Ours is there as placed for the runtime, and as ``never_slower`` leaves it: layers that lose stay in float.
The float file is there a second time: its ratio is the noise.

    python benchmarks/quant_speed.py [--models resnet50 …] [--threads 2] [--rounds 30] [--quick]
    python benchmarks/quant_speed.py --prepare          # the files that need no quiet machine
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from quantizing.common import (
    FOLDER,
    RESULTS,
    RUNTIMES,
    JobError,
    Rows,
    batches,
    float_file,
    ours,
    parser,
    peer_file,
    saved,
    say,
    size_of,
)
from quantizing.common import start as begin
from torch import nn

from slim_core.errors import SlimError
from slim_core.export import to_onnx
from slim_core.files import write_json
from slim_core.measure import Artifact, measure
from slim_latency.onnx_runtime import OnnxRuntimeBackend
from slim_latency.openvino_runtime import OpenVinoBackend
from slim_zoo import create_model
from slim_zoo.names import MODELS

#: those that are most asked for come first
FIRST = ("resnet50", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "mobilenet_v1", "resnet18")
PICTURES = 8
FLOAT, AGAIN = "float32", "float32, again"
#: what runs on each runtime, in the order of the table; the first is what the others are compared with
CANDIDATES = {
    "onnxruntime": (FLOAT, "slim", "slim, never slower", "quantize_static", "nncf, onnx", AGAIN),
    "openvino": (FLOAT, "default precision", "slim", "slim, never slower", "nncf, openvino", "nncf, onnx",
                 "quantize_static", AGAIN),
}  # fmt: skip


def files(name: str, side: int, arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Make every file of a model that is not there yet; return runtime -> candidate -> path or reason."""
    torch.manual_seed(0)
    model = create_model(name, num_classes=1000, input_size=side).eval()
    folder = FOLDER / "speed" / f"{name}-{side}"
    pictures = torch.rand(PICTURES, 3, side, side, generator=torch.Generator().manual_seed(0)) * 4 - 2
    whole = float_file(model, (pictures[:1],), folder / "float.onnx")
    found: dict[str, dict[str, Any]] = {runtime: {FLOAT: whole, AGAIN: whole} for runtime in RUNTIMES}
    found["openvino"]["default precision"] = whole
    for runtime in RUNTIMES:
        found[runtime]["slim"] = _made(folder / f"slim-{runtime}.onnx", partial(_slim, model, pictures, runtime))
        if arguments.prepare:  # it measures, and wants a quiet machine
            continue
        found[runtime]["slim, never slower"] = _made(
            folder / f"never-slower-{runtime}-{arguments.threads}.onnx",
            partial(_never_slower, model, pictures, runtime, whole, arguments),
        )
    data = str(saved(pictures, f"noise-{side}"))
    for candidate, kind, suffix in (
        ("quantize_static", "onnxruntime", ".onnx"), ("nncf, onnx", "nncf-onnx", ".onnx"),
        ("nncf, openvino", "nncf-openvino", ".xml"),
    ):  # fmt: skip
        task = {"do": "quantize", "side": kind, "model": {"float": str(whole)}, "data": data}
        at = _made(folder / f"{kind}{suffix}", partial(_peer, task, arguments))
        if kind != "nncf-openvino":
            found["onnxruntime"][candidate] = at
        found["openvino"][candidate] = at
    return found


def _made(path: Path, make: Any) -> Path | str:
    """Return the file, made now or earlier, or why it cannot be made."""
    if not path.is_file():
        try:
            make(path)
        except (SlimError, JobError) as error:
            say(f"  {path.name}: {error}")
            return str(error)
    return path


def _slim(model: nn.Module, pictures: torch.Tensor, runtime: str, path: Path) -> None:
    found = ours(model, batches(pictures, 4), target=runtime, samples=PICTURES)
    to_onnx(found.model, (pictures[:1],), path, check=False)


def _never_slower(
    model: nn.Module, pictures: torch.Tensor, runtime: str, whole: Path, arguments: argparse.Namespace, path: Path
) -> None:
    """Write what never_slower chooses for one picture at a time; float again, where nothing wins."""
    from slim_quant import never_slower

    found = never_slower(
        model, (pictures[:1],), runtime, batches=batches(pictures, 4), samples=PICTURES, batch_sizes=(1,),
        threads=arguments.threads, rounds=11, budget_s=arguments.budget / 4,
    )  # fmt: skip
    if found.result is None:
        shutil.copyfile(whole, path)
    else:
        to_onnx(found.result.model, (pictures[:1],), path, check=False)
    write_json(path.with_suffix(".json"), found.to_json())


def _peer(task: dict[str, Any], arguments: argparse.Namespace, path: Path) -> None:
    done = peer_file(arguments.peers, {**task, "output": str(path)}, threads=arguments.threads)
    write_json(path.with_suffix(".json"), {"note": done["note"], "versions": done["versions"]})


def choice(path: Path | str) -> dict[str, Any] | None:
    """Return what never_slower decided, without what it timed."""
    if isinstance(path, str):
        return None
    found = json.loads(path.with_suffix(".json").read_text())
    return {key: found[key] for key in ("quantized", "left_in_float", "notes")}


def timed(name: str, runtime: str, made: dict[str, Any], side: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Time all candidates of a runtime, interleaved."""
    inputs = (torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(1)) * 4 - 2,)
    backends: dict[str, Any] = {"onnxruntime": OnnxRuntimeBackend(), "openvino": OpenVinoBackend("f32")}
    candidates, missing = {}, {}
    for candidate in CANDIDATES[runtime]:
        path = made[candidate]
        if isinstance(path, str):
            missing[candidate] = path
            continue
        backend = OpenVinoBackend("default") if candidate == "default precision" else backends[runtime]
        candidates[candidate] = (backend, Artifact(onnx=path, name=candidate, quantized=True))
    measurement = measure(
        candidates, inputs, rounds=arguments.rounds, threads=arguments.threads, budget_s=arguments.budget
    )
    peers = {
        name: json.loads(made[name].with_suffix(".json").read_text())
        for name in ("quantize_static", "nncf, onnx", "nncf, openvino")
        if name in candidates
    }
    return {
        "model": name,
        "side": side,
        "runtime": runtime,
        "rounds": measurement.protocol["rounds"],
        "others_busy_cores": measurement.protocol["others_busy_cores"],
        "confidence": measurement.confidence,
        "notes": list(measurement.notes),
        "missing": missing,
        "peer_notes": {name: item["note"] for name, item in peers.items() if item["note"]},
        "versions": {key: value for item in peers.values() for key, value in item["versions"].items()},
        "bytes": {candidate: size_of(path) for candidate, path in made.items() if not isinstance(path, str)},
        "precision": {timing.name: timing.info.get("settings", {}).get("precision") for timing in measurement.timings},
        "timings": {
            timing.name: {
                key: round(getattr(timing, key), 5)
                for key in ("median_ms", "q1_ms", "q3_ms", "min_ms", "ratio", "ratio_low", "ratio_high")
            }
            | {"verdict": timing.verdict}
            for timing in measurement.timings
        },
    }


def main() -> int:
    words = parser(__doc__, RESULTS / "quant_speed.json")
    order = [*FIRST, *(name for name in MODELS if name not in FIRST)]
    words.add_argument("--models", nargs="+", default=order, choices=order)
    words.add_argument("--runtimes", nargs="+", default=list(RUNTIMES), choices=list(RUNTIMES))
    words.add_argument("--rounds", type=int, default=30)
    words.add_argument("--budget", type=float, default=60.0, help="seconds of timing for one model on one runtime")
    words.add_argument("--prepare", action="store_true", help="make the files and time nothing")
    arguments = words.parse_args()
    begin(arguments)
    side = 224
    if arguments.quick:
        arguments.rounds, arguments.budget, side = 6, 10.0, 64
    rows = Rows(arguments, {"quick": arguments.quick, "batch": 1}, ("model", "runtime"))
    for name in arguments.models:
        if all(rows.has(name, runtime) for runtime in arguments.runtimes) and not arguments.prepare:
            continue
        made = files(name, side, arguments)
        say(f"{name}: files are there")
        for runtime in arguments.runtimes if not arguments.prepare else ():
            if rows.has(name, runtime):
                continue
            try:
                row = timed(name, runtime, made[runtime], side, arguments)
            except SlimError as error:
                say(f"{name} {runtime}: {error}")
                continue
            rows.add(row)
            for candidate, timing in row["timings"].items():
                say(f"{name:20} {runtime:12} {candidate:20} {timing['median_ms']:9.3f} ms  {1 / timing['ratio']:.2f}x")
    return 0


if __name__ == "__main__":
    sys.exit(main())
