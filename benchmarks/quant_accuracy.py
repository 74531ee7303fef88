"""Accuracy of quantized files on Fashion-MNIST: ours, NNCF's and onnxruntime's, with the same calibration pictures.

Starts from the models of ``bases.py``. Every side calibrates on the same 300 training pictures, chosen by a seed;
several seeds show how much that choice matters. What is judged is the deployed file, on all 10,000 test pictures, on
onnxruntime and on openvino: ours placed for each, NNCF's from its ONNX backend on onnxruntime and from its OpenVINO
backend on openvino. Rows are written as they come, and a stopped run goes on where it stopped.

* ``ptq``: int8 after training, ours by a few sets of corrections, and the peers.
* ``w4``: weights of 4 bits, activations of 8, rounded to nearest and by reconstruction.
* ``grid``: observers x corrections on MobileNetV1, at 8 and at 4 bits of the weights.
* ``qat``: one epoch of quantization-aware training from the float weights.

    python benchmarks/quant_accuracy.py [--parts ptq w4 grid qat] [--models mobilenet_v1 …] [--seeds 3] [--quick]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import bases
import torch
from quantizing.common import (
    CALIBRATION,
    FOLDER,
    RESULTS,
    RUNTIMES,
    JobError,
    Rows,
    accuracy,
    batches,
    calibration,
    float_file,
    held_out,
    ours,
    outputs,
    parser,
    peer_file,
    saved,
    say,
    scheme,
    size_of,
)
from quantizing.common import start as begin
from torch import Tensor, nn

from slim_core import Workload
from slim_core.data import Dataset
from slim_core.errors import SlimError
from slim_core.export import to_onnx
from slim_core.plugins import load_plugins
from slim_core.training import FitConfig, fit

#: options of ``slim_quant.quantize``, or of another process
INT8: dict[str, dict[str, Any]] = {
    "slim": {},
    "slim, bias correction": {"corrections": ["bias_correction"]},
    "slim, equalization + bias correction": {"corrections": ["equalization", "bias_correction"]},
}
PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    "nncf": ("nncf", {}),
    "nncf, mixed preset": ("nncf", {"preset": "mixed"}),
    "nncf, accurate bias correction": ("nncf", {"fast_bias_correction": False}),
    "onnxruntime, minmax": ("onnxruntime", {"method": "MinMax"}),
    "onnxruntime, percentile": ("onnxruntime", {"method": "Percentile"}),
    "onnxruntime, entropy": ("onnxruntime", {"method": "Entropy"}),
}
FOUR_BITS: dict[str, dict[str, Any]] = {
    "w4a8, nearest": {},
    "w4a8, nearest, mse": {"weight_observer": "mse"},
    "w4a8, equalization + bias correction": {
        "weight_observer": "mse", "corrections": ["equalization", "bias_correction"],
    },
    "w4a8, adaround": {"weight_observer": "mse", "corrections": ["adaround"]},
    "w4a8, brecq": {"weight_observer": "mse", "corrections": ["brecq"]},
}  # fmt: skip
#: PaddleSlim publishes these for MobileNetV1 at 8 bits; its "avg", "hist" and "KL" are called average_abs_max,
#: percentile and entropy here
OBSERVERS = ("abs_max", "average_abs_max", "mse", "emd", "percentile", "entropy")
CORRECTIONS: dict[str, list[str]] = {
    "none": [],
    "bias correction": ["bias_correction"],
    "AdaRound": ["adaround"],
    "both": ["adaround", "bias_correction"],
}
GRID_MODEL = "mobilenet_v1"
QAT: dict[str, dict[str, Any]] = {
    "qat, moving average": {"quantizer": "moving_average"},
    "qat, lsq": {"quantizer": "lsq"},
    "qat, pact": {"quantizer": "pact"},
}
QAT_EPOCHS = 1
#: an int8 network is trained on with a hundredth of the rate that the float one began with
QAT_RATE = 0.005


@dataclass(frozen=True)
class Base:
    """A trained model, and what every method needs of it."""

    name: str
    workload: Workload
    pictures: Dataset
    tests: Tensor
    labels: Any
    float_path: Path

    @property
    def model(self) -> nn.Module:
        return self.workload.model


def load(name: str, registry: Any, quick: bool) -> Base:
    pictures = bases.data(registry)
    workload = bases.trained(name, registry, pictures)
    workload.model.eval()
    tests, labels = held_out(pictures, 500 if quick else None)
    path = float_file(workload.model, (tests[:1],), FOLDER / "float" / f"{name}.onnx")
    return Base(name, workload, pictures, tests, labels, path)


def judged(base: Base, path: Path, runtime: str, threads: int) -> float:
    return accuracy(outputs(path, base.tests, runtime, threads), base.labels)


def row_of(base: Base, part: str, method: str, bits: int, seed: int, **more: Any) -> dict[str, Any]:
    return {"model": base.name, "part": part, "method": method, "weight_bits": bits, "seed": seed, **more}


def slug(name: str) -> str:
    return name.replace(", ", "-").replace(" ", "")


def write_ours(found: Any, base: Base, path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    return to_onnx(found.model, (base.tests[:1],), path, check=False).bytes


def post_training(
    base: Base, part: str, method: str, bits: int, options: dict[str, Any], seed: int, arguments: argparse.Namespace,
    targets: tuple[str, ...] = RUNTIMES,
) -> dict[str, Any]:  # fmt: skip
    """Quantize for each target, and judge its file on its runtime; with one target, that file on both."""
    data = batches(calibration(base.pictures, arguments.samples, seed), 32)
    row = row_of(base, part, method, bits, seed, side="slim", top1={}, seconds={})
    path = Path()
    for target in targets:
        began = time.perf_counter()
        found = ours(
            base.model, data, target=target, weight_bits=bits, samples=arguments.samples, seed=seed, **options
        )  # fmt: skip
        row["seconds"][target] = time.perf_counter() - began
        path = FOLDER / "accuracy" / base.name / f"{slug(part)}-{slug(method)}-{bits}-{target}.onnx"
        row["bytes"] = write_ours(found, base, path)
        row["top1"][target] = judged(base, path, target, arguments.threads)
    for runtime in RUNTIMES:
        if runtime not in targets:
            row["top1"][runtime] = judged(base, path, runtime, arguments.threads)
    return row


def peer(
    base: Base, method: str, kind: str, options: dict[str, Any], seed: int, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Let a peer quantize, in its own process; NNCF once for each runtime."""
    data = saved(calibration(base.pictures, arguments.samples, seed), f"fashion-mnist-{seed}")
    sides = {"onnxruntime": "onnxruntime", "openvino": "onnxruntime"}
    if kind == "nncf":
        sides = {"onnxruntime": "nncf-onnx", "openvino": "nncf-openvino"}
    row = row_of(base, "ptq", method, 8, seed, side=kind, top1={}, seconds={}, versions={})
    for runtime, side in sides.items():
        suffix = ".xml" if side == "nncf-openvino" else ".onnx"
        output = FOLDER / "accuracy" / base.name / f"{slug(method)}-{side}{suffix}"
        if side not in row["seconds"]:
            task = {"do": "quantize", "side": side, "model": {"float": str(base.float_path)}, "data": str(data),
                    "output": str(output), "options": options}  # fmt: skip
            output.parent.mkdir(parents=True, exist_ok=True)
            done = peer_file(arguments.peers, task, threads=arguments.threads)
            row["note"] = done["note"] or row.get("note")
            row["seconds"][side] = done["seconds"]
            row["versions"] |= done["versions"]
        row["top1"][runtime] = judged(base, output, runtime, arguments.threads)
        if runtime == "onnxruntime":
            row["bytes"] = size_of(output)
    return row


def aware(base: Base, method: str, options: dict[str, Any], seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train on with fake quantizers, convert, and judge the file on both runtimes."""
    from slim_quant.qat import QATSchedule, convert, prepare_qat

    began = time.perf_counter()
    torch.manual_seed(seed)
    data = batches(calibration(base.pictures, arguments.samples, seed), 32)
    row = row_of(base, "qat", method, 8, seed, side="slim", top1={}, seconds={})
    prepared = prepare_qat(base.model, (data[0][:2],), weight=scheme(8), calibration=data, **options)
    config = FitConfig(epochs=QAT_EPOCHS, lr=QAT_RATE, weight_decay=1e-5, eval_every=QAT_EPOCHS, seed=seed)
    train = base.pictures.calibration(512) if arguments.quick else base.workload.train
    workload = replace(base.workload, model=prepared, train=train, builder=None)
    folder = FOLDER / ("quick" if arguments.quick else "qat") / base.name / f"{slug(method)}-{seed}"
    trained = fit(
        workload, config, callbacks=[QATSchedule()], folder=None if arguments.quick else folder / "fit", inplace=True
    )
    found = convert(trained.workload.model, data)
    row["seconds"]["all"] = time.perf_counter() - began
    path = folder / "model.onnx"
    row["bytes"] = write_ours(found, base, path)
    for runtime in RUNTIMES:
        row["top1"][runtime] = judged(base, path, runtime, arguments.threads)
    return row


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return mean and range over seeds, and the change against the float file on the same runtime."""
    floats = {row["model"]: row["top1"] for row in rows if row["part"] == "float"}
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        if "error" not in row:
            groups.setdefault((row["model"], row["part"], row["method"], row["weight_bits"]), []).append(row)
    found = []
    for (model, part, method, bits), group in groups.items():
        line: dict[str, Any] = {"model": model, "part": part, "method": method, "weight_bits": bits,
                                "seeds": len(group), "bytes": group[0].get("bytes")}  # fmt: skip
        for runtime in RUNTIMES:
            values = [row["top1"][runtime] for row in group]
            line[runtime] = {"mean": statistics.mean(values), "min": min(values), "max": max(values),
                             "change": statistics.mean(values) - floats[model][runtime]}  # fmt: skip
        found.append(line)
    return found


def tasks(arguments: argparse.Namespace, name: str) -> list[tuple[str, str, int, int]]:
    """Return part, method, bits and seed of everything to do for a model, the cheap first."""
    found: list[tuple[str, str, int, int]] = [("float", "float", 32, 0)]
    seeds = range(arguments.seeds)
    if "ptq" in arguments.parts:
        found += [("ptq", method, 8, seed) for seed in seeds for method in (*INT8, *PEERS)]
    if "w4" in arguments.parts:
        found += [("w4", method, 4, 0) for method in FOUR_BITS]
    if "grid" in arguments.parts and name == GRID_MODEL:
        found += [
            ("grid", f"{observer}, {correction}", bits, 0)
            for bits in (8, 4) for correction in CORRECTIONS for observer in OBSERVERS
        ]  # fmt: skip
    if "qat" in arguments.parts:
        found += [("qat", method, 8, 0) for method in arguments.qat]
    return found


def run(base: Base, part: str, method: str, bits: int, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    if part == "float":
        tops = {runtime: judged(base, base.float_path, runtime, arguments.threads) for runtime in RUNTIMES}
        return row_of(base, part, method, bits, seed, side="float", top1=tops, bytes=size_of(base.float_path))
    if part == "ptq" and method in PEERS:
        return peer(base, method, *PEERS[method], seed, arguments)
    if part == "ptq":
        return post_training(base, part, method, bits, INT8[method], seed, arguments)
    if part == "w4":
        options = quicker(FOUR_BITS[method]) if arguments.quick else FOUR_BITS[method]
        return post_training(base, part, method, bits, options, seed, arguments, ("onnxruntime",))
    if part == "grid":
        observer, correction = method.split(", ")
        options = {"observer": observer, "corrections": CORRECTIONS[correction]}
        options = quicker(options) if arguments.quick else options
        return post_training(base, part, method, bits, options, seed, arguments, ("onnxruntime",))
    return aware(base, method, QAT[method], seed, arguments)


def quicker(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options with few steps of reconstruction."""
    fast = [
        {"name": name, "iterations": 20} if name in ("adaround", "brecq") else name
        for name in options.get("corrections", [])
    ]
    return {**options, "corrections": fast}


def main() -> int:
    words = parser(__doc__, RESULTS / "quant_accuracy.json")
    words.add_argument("--models", nargs="+", default=list(bases.BASES), choices=list(bases.BASES))
    words.add_argument("--parts", nargs="+", default=["ptq", "w4", "grid", "qat"], choices=["ptq", "w4", "grid", "qat"])
    words.add_argument("--qat", nargs="+", default=["qat, moving average", "qat, lsq"], choices=list(QAT))
    words.add_argument("--seeds", type=int, default=3, help="choices of the calibration pictures, for int8")
    arguments = words.parse_args()
    begin(arguments)
    arguments.samples = 64 if arguments.quick else CALIBRATION
    arguments.seeds = 1 if arguments.quick else arguments.seeds
    registry = load_plugins().registry
    settings = {
        "data": "fashion-mnist, 60,000 pictures at 32x32", "calibration": arguments.samples, "quick": arguments.quick,
        "qat": {"epochs": QAT_EPOCHS, "lr": QAT_RATE},
    }  # fmt: skip
    rows = Rows(arguments, settings, ("model", "part", "method", "weight_bits", "seed"))
    for name in arguments.models:
        if not (bases.FOLDER / f"{name}.safetensors").is_file():
            say(f"{name} is not trained: run `python benchmarks/bases.py {name}`")
            continue
        base = load(name, registry, arguments.quick)
        for part, method, bits, seed in tasks(arguments, name):
            if rows.has(name, part, method, bits, seed):
                continue
            try:
                row = run(base, part, method, bits, seed, arguments)
                say(f"{name:14} {part:6} {method:38} {bits:2} bits seed {seed}: "
                    + ", ".join(f"{key} {value:.2%}" for key, value in row["top1"].items()))  # fmt: skip
            except (JobError, SlimError) as error:
                row = row_of(base, part, method, bits, seed, error=str(error))
                say(f"{name:14} {part:6} {method:38} {bits:2} bits seed {seed}: {error}")
            rows.more["summary"] = summary([*rows.rows, row])
            rows.add(row)
    return 0


if __name__ == "__main__":
    sys.exit(main())
