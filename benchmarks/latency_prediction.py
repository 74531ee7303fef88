"""How well latency is predicted: random networks of three spaces, some to calibrate on and the rest held out.

* ``prepare``: exports the networks of ``slim_latency.calibration`` (MobileNetV2-, ResNet- and VGG-like), the zoo's
  models and int8 versions of some networks, and writes a bundle. Takes about 4 s per network.
* ``measure``: runs the agent on the bundle, in shuffled rounds, with ``--runtime onnxruntime`` or ``openvino``. It
  resumes: stop it and start it as you like.
* ``judge``: fits on the calibration networks, predicts the others and the zoo's models, and writes
  ``benchmarks/results/latency_prediction.json``.
* ``table``: writes the table of all of it, fitted, to be shipped for this kind of machine.

The noise protocol is judged too: what remains of the accuracy when one pass in sequence is all that there is.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from slim_core.export import to_onnx
from slim_core.files import write_json
from slim_core.graph import record
from slim_core.graph.cost import count_macs
from slim_latency import agent, calibration
from slim_latency.bundle import write_bundle
from slim_latency.predict import Predictor, fit
from slim_latency.predict.fit import corrected
from slim_latency.results import read_results, table_of
from slim_latency.table import DeviceTable, with_model, write_table

RESULTS = Path(__file__).parent / "results"
ZOO = ("mobilenet_v1", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "resnet18", "resnet34", "resnet50",
       "vgg11_bn", "vgg16_bn")  # fmt: skip
ZOO_SIZES = (96, 160)
INT8 = 20


def prepare(folder: Path, count: int, rounds: int, int8: int) -> None:
    """Export everything, and write the bundle. Files that are there are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    macs_file = folder / "macs.json"
    macs: dict[str, int] = json.loads(macs_file.read_text()) if macs_file.is_file() else {}
    files: dict[str, Path] = {}
    for name, model, example in _models(count):
        files[name] = folder / f"{name}.onnx"
        if not files[name].is_file() or name not in macs:
            to_onnx(model, example, files[name], check=False)
            macs[name] = int(count_macs(record(model, example)))
            write_json(macs_file, macs)
            print(name, f"{macs[name] / 1e6:.0f} M MACs", flush=True)
    for name in calibration.names(int8):
        files[f"{name}-int8"] = folder / f"{name}-int8.onnx"
        macs[f"{name}-int8"] = macs[name]
        if not files[f"{name}-int8"].is_file():
            _quantized(files[name], files[f"{name}-int8"])
            print(name, "int8", flush=True)
    write_json(macs_file, macs)
    write_bundle(folder, files, macs=macs, settings={"rounds": rounds})
    print(f"{len(files)} models in {folder}")


def _models(count: int) -> Iterable[tuple[str, torch.nn.Module, Any]]:
    import slim_zoo.models as zoo

    for name in calibration.names(count):
        yield name, calibration.network(name), calibration.picture()
    for name, size in itertools.product(ZOO, ZOO_SIZES):
        torch.manual_seed(0)
        yield f"zoo_{name}_{size}", getattr(zoo, name)().eval(), calibration.picture(size)


def _quantized(source: Path, target: Path) -> None:
    """Write the int8 version of a file: static quantization with the runtime's own tool."""
    import tempfile

    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self, name: str) -> None:
            generator = np.random.default_rng(0)
            self.rows = iter([{name: generator.random((1, 3, 96, 96), np.float32)} for _ in range(2)])

        def get_next(self) -> Any:
            return next(self.rows, None)

    name = agent.open_session(str(source), 1, "basic").get_inputs()[0].name
    with tempfile.TemporaryDirectory() as folder:
        ready = Path(folder) / "ready.onnx"
        quant_pre_process(str(source), str(ready), skip_symbolic_shape=True)
        quantize_static(str(ready), str(target), Reader(name), quant_format=QuantFormat.QDQ, per_channel=True,
                        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8)  # fmt: skip


def judge(folder: Path, calibrate: int, results: str) -> dict[str, Any]:
    """Fit on some networks, predict the others, and say how far off that is."""
    rows = read_results(folder / results)
    macs = {entry["name"]: entry["macs"] for entry in json.loads((folder / "manifest.json").read_text())["models"]}
    table = table_of("judged", rows, macs)
    plain = [name for name in table.networks if not name.startswith("zoo_") and not name.endswith("-int8")]
    order = sorted(plain, key=lambda name: (name.rpartition("-")[2], name))
    known, held = order[:calibrate], order[calibrate:]
    zoo = [name for name in table.networks if name.startswith("zoo_")]
    int8 = [name for name in table.networks if name.endswith("-int8")]
    result: dict[str, Any] = {
        "device": rows[0]["device"],
        "runtime": rows[0]["runtime"],
        "rounds": max(row.rounds for row in table.networks.values()),
        "notes": table.header["notes"],
        "noise": {"median": table.noise, "p90": _p90([row.noise for row in table.networks.values() if row.noise])},
        "calibration": len(known),
        "held_out": score(table, known, held),
        "by_space": {
            space: score(table, known, names)
            for space in calibration.SPACES
            if (names := [name for name in held if name.startswith(space)])
        },
        "zoo": score(table, known, zoo) if zoo else None,
        "ten_networks": score(table, known[:10], held),
        "sum_of_kernels": sums(table, [*plain, *zoo]),
        "protocol": one_pass(rows, macs, known, held),
    }  # fmt: skip
    if len(int8) >= 12:
        half = len(int8) // 2
        result["int8"] = score(table, int8[:half], int8[half:])
    for part in ("held_out", "zoo", "ten_networks", "int8"):
        if result.get(part):
            print(part, {key: value for key, value in result[part].items() if key != "networks"})
    print("sum of kernels", {key: value for key, value in result["sum_of_kernels"].items() if key != "networks"})
    print("protocol", result["protocol"])
    return result


def subset(table: DeviceTable, names: Sequence[str]) -> DeviceTable:
    """Return the table as if only these networks had been measured."""
    networks = {name: table.networks[name] for name in names}
    seen = {key for row in networks.values() for key in row.kernels}
    kernels = {key: row for key, row in table.kernels.items() if key in seen}
    return dataclasses.replace(table, kernels=kernels, networks=networks, model=None)


def score(table: DeviceTable, known: Sequence[str], held: Sequence[str]) -> dict[str, Any]:
    """Return errors of predictions for ``held`` from what ``known`` taught."""
    part = subset(table, known)
    predictor = Predictor.of(with_model(part, fit(part)))
    truth = np.array([table.networks[name].median_ms for name in held])
    found = [predictor.estimate(table.networks[name].kernels, table.networks[name].macs) for name in held]
    guess = np.array([item.value_ms for item in found])
    base = np.array([item.flops_ms or 0.0 for item in found])
    inside = [item.low_ms is not None and item.low_ms <= value <= (item.high_ms or 0)
              for item, value in zip(found, truth, strict=True)]  # fmt: skip
    shares = {source: float(np.mean([next((share.share for share in item.shares if share.source == source), 0.0)
                                     for item in found])) for source in ("table", "regressor", "roofline")}  # fmt: skip
    return {
        **errors(guess, truth),
        "flops_linear": errors(base, truth),
        "coverage_of_90": sum(inside) / len(inside),
        "mean_width": float(np.mean([(item.high_ms or 0) / (item.low_ms or 1) for item in found])),
        "shares": shares,
        "networks": {name: [float(value), float(item.value_ms), item.low_ms, item.high_ms, item.flops_ms]
                     for name, value, item in zip(held, truth, found, strict=True)},
    }  # fmt: skip


def errors(guess: Any, truth: Any) -> dict[str, float]:
    off = np.abs(guess / truth - 1)
    return {
        "mape": float(off.mean()), "max": float(off.max()), "within_5": float((off <= 0.05).mean()),
        "within_10": float((off <= 0.10).mean()), "tau": kendall(guess, truth),
    }  # fmt: skip


def kendall(first: Any, second: Any) -> float:
    """Return the share of pairs in the same order, less the share in the other."""
    pairs = list(itertools.combinations(range(len(first)), 2))
    return (
        float(np.mean([np.sign((first[a] - first[b]) * (second[a] - second[b])) for a, b in pairs])) if pairs else 1.0
    )


def sums(table: DeviceTable, names: Sequence[str]) -> dict[str, Any]:
    """Return how far the sum of in-situ kernels is from the whole, network by network."""
    overhead = table.header["profiler_overhead_us"]
    found = {}
    for name in names:
        row = table.networks[name]
        micros = sum(corrected(table.kernels[key].median_us, overhead) for key in row.kernels)
        found[name] = micros / 1e3 / row.median_ms - 1
    off = np.abs(list(found.values()))
    return {"median": float(np.median(off)), "max": float(off.max()), "within_5": float((off <= 0.05).mean()),
            "networks": found}  # fmt: skip


def one_pass(
    rows: Sequence[Mapping[str, Any]], macs: Mapping[str, int], known: Sequence[str], held: Sequence[str]
) -> dict[str, Any]:
    """Return what a single round gives, against all rounds: error of predictions, and of the measurement itself."""
    whole = table_of("all", rows, macs)
    found = []
    for number in sorted({row["round"] for row in rows if row["kind"] == "sample"}):
        once = table_of("once", [rows[0], *(row for row in rows[1:] if row["round"] == number)], macs)
        part = subset(once, known)
        predictor = Predictor.of(with_model(part, fit(part)))
        truth = np.array([once.networks[name].median_ms for name in held])
        guess = np.array([predictor.total_ms(once.networks[name].kernels) for name in held])
        settled = np.array([whole.networks[name].median_ms for name in held])
        found.append(
            {
                **errors(guess, truth),
                "mape_against_all_rounds": errors(guess, settled)["mape"],
                "measurement_off": float(np.median(np.abs(truth / settled - 1))),
            }
        )
        if len(found) == 3:
            break
    return {"one_pass": found, "rounds": max(row.rounds for row in whole.networks.values())}


def _p90(values: Sequence[float]) -> float | None:
    return float(np.quantile(values, 0.9)) if values else None


def ship(folder: Path, name: str, target: Path, results: str) -> None:
    """Write the fitted table of everything that was measured."""
    rows = read_results(folder / results)
    macs = {entry["name"]: entry["macs"] for entry in json.loads((folder / "manifest.json").read_text())["models"]}
    count = len({row["model"] for row in rows if row["kind"] == "sample"})
    note = f"{count} networks: random ones of three spaces at 96x96, models of slim-zoo at 96x96 and 160x160, batch 1"
    table = table_of(name, rows, macs, note)
    write_table(with_model(table, fit(table)), target)
    print(f"{target}: {len(table.kernels)} kernels, {len(table.networks)} networks, noise floor {table.noise}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["prepare", "measure", "judge", "table"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--networks", type=int, default=132)
    parser.add_argument("--int8", type=int, default=INT8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calibrate", type=int, default=30)
    parser.add_argument("--name", default="epyc-zen4-ort-1t")
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--runtime", choices=sorted(agent.RUNTIMES), default="onnxruntime")
    given = parser.parse_args()
    suffix = "" if given.runtime == "onnxruntime" else f"_{given.runtime}"
    results = f"results{suffix}.jsonl"
    if given.step == "prepare":
        prepare(given.folder, given.networks, given.rounds, given.int8)
    elif given.step == "measure":
        agent.run_bundle(str(given.folder), lambda text: print(text, flush=True), {"runtime": given.runtime}, results)
    elif given.step == "judge":
        found = judge(given.folder, given.calibrate, results)
        write_json(given.output or RESULTS / f"latency_prediction{suffix}.json", found)
    else:
        ship(given.folder, given.name, given.output or Path(f"{given.name}.table.json"), results)


if __name__ == "__main__":
    main()
