"""A budget in milliseconds on onnxruntime: is it met when measured, and is it worth more than one in MACs?

All on one machine, one thread, pictures one by one, the trained MobileNetV1 of ``bases.py`` at its own input size:

1. ``table``: what a user would do: random prunings of the model are measured kernel by kernel, and a device table is
   made of them. Others, held out, say how good its predictions are, and what the table that the package ships (made at
   other sizes) says of them.
2. ``plan``: for each share of the original's time, one plan for a budget in milliseconds, and plans for budgets in MACs
   whose predicted time is the same, by the same allocation (the latency knapsack) and by ``uniform``.
3. ``measure``: original and pruned models take turns in shuffled rounds; whether times are equal is said by these.
4. ``train``: these are fine-tuned alike, with several seeds.

Everything is kept in ``out/pruning-latency``, and a stopped run goes on where it stopped::

    python benchmarks/pruning_latency.py [--shares 0.7 0.5] [--seeds 3] [--epochs 2] [--pictures 12000]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import bases
import numpy as np
import torch
from torch import nn

import slim_prune
from slim_core import Workload
from slim_core.data import Dataset, TensorSource
from slim_core.export import to_onnx
from slim_core.files import write_json
from slim_core.graph import analyse, record
from slim_core.graph.cost import cost
from slim_core.measure import this_device
from slim_core.plugins import load_plugins
from slim_core.training import FitConfig, fit
from slim_core.workload import tensors_of
from slim_latency import agent
from slim_latency.bundle import write_bundle
from slim_latency.cost import LatencyCost
from slim_latency.devices import find_devices
from slim_latency.predict import fit as fit_table
from slim_latency.results import read_results, table_of
from slim_latency.table import DeviceTable, read_table, with_model, write_table
from slim_prune.prune_plan import PrunePlan

RESULT = Path(__file__).parent / "results" / "pruning_latency.json"
DEVICE = "pruning-latency"
MODEL = "mobilenet_v1"
ROUND_TO = 8
KNOWN, HELD = 24, 8
#: allocations of the plans for MACs
FAMILIES = ("latency", "uniform")
#: how far the measured times of two models may be apart to count as equal
EQUAL = 0.03
BOUND = 0.05


def macs(model: nn.Module, inputs: Any) -> int:
    return int(cost(record(model, inputs)).macs)


# --- measuring ---------------------------------------------------------------------------------------------------


def measured(folder: Path, models: Mapping[str, nn.Module], inputs: Any, rounds: int) -> DeviceTable:
    """Return what models took, in rounds in which they take turns; what was measured already is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, Path] = {}
    for name, model in models.items():
        files[name] = folder / f"{name}.onnx"
        if not files[name].is_file():
            to_onnx(model, inputs, files[name], check=False)
    counted = {name: macs(model, inputs) for name, model in models.items()}
    write_bundle(folder, files, macs=counted, settings={"rounds": rounds})
    agent.run_bundle(str(folder), lambda line: print(f"  {line}", flush=True))
    return table_of(DEVICE, read_results(folder / "results.jsonl"), counted)


def random_prunings(base: Workload, count: int) -> dict[str, nn.Module]:
    """Return prunings of the base with a random share in every group."""
    coupling = analyse(base.model, base.example_inputs)
    found: dict[str, nn.Module] = {}
    for number in range(count):
        rng = np.random.default_rng(number)
        ratios = {group.name: float(rng.uniform(0.15, 1.0)) for group in coupling.groups}
        plan = slim_prune.plan(
            base.model, base.example_inputs, ratios=ratios, round_to=ROUND_TO, coupling=coupling, importance="l1"
        )
        found[f"random-{number:02d}"] = plan.apply(base.model)
    return found


def device_table(base: Workload, folder: Path, rounds: int) -> dict[str, Any]:
    """Make the device table, unless it is there; return how good predictions are."""
    target = folder / "devices" / f"{DEVICE}.table.json"
    about = folder / "prediction.json"
    if not about.is_file():
        models = {"original": base.model, **random_prunings(base, KNOWN + HELD)}
        table = measured(folder / "calibration", models, base.example_inputs, rounds)
        names = list(models)[1:]
        known = ["original", *names[:KNOWN]]
        part = subset(table, known)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_table(with_model(part, fit_table(part)), target)
        held = {name: models[name] for name in ("original", *names[KNOWN:])}
        truth = {name: table.networks[name].median_ms for name in held}
        tables = {"own": target, **{name: file.path for name, file in shipped().items()}}
        off = {name: errors(LatencyCost(read_table(path)), held, truth, base) for name, path in tables.items()}
        write_json(about, {"networks": len(known), "held_out": len(held), "noise": table.noise, "errors": off})
    return json.loads(about.read_text())  # type: ignore[no-any-return]


def shipped() -> dict[str, Any]:
    """Return the tables that come with the package and that cost models can be made of."""
    return {
        name: file
        for name, file in find_devices().items()
        if name != DEVICE and read_table(file.path).header.get("runtime", {}).get("name") == "onnxruntime"
    }


def errors(
    model: LatencyCost, networks: Mapping[str, nn.Module], truth: Mapping[str, float], base: Workload
) -> dict[str, float]:
    guess = np.array([model.total(record(item, base.example_inputs)) for item in networks.values()])
    real = np.array(list(truth.values()))
    off = guess / real - 1
    relative = (guess / guess[0]) / (real / real[0]) - 1
    return {
        "mean": float(np.abs(off).mean()), "max": float(np.abs(off).max()), "of_the_original": float(off[0]),
        "relative_to_the_original_mean": float(np.abs(relative[1:]).mean()),
        "relative_to_the_original_max": float(np.abs(relative[1:]).max()),
    }  # fmt: skip


def subset(table: DeviceTable, names: Iterable[str]) -> DeviceTable:
    networks = {name: table.networks[name] for name in names}
    seen = {key for row in networks.values() for key in row.kernels}
    kernels = {key: row for key, row in table.kernels.items() if key in seen}
    return dataclasses.replace(table, kernels=kernels, networks=networks, model=None)


# --- planning ----------------------------------------------------------------------------------------------------


def planned(base: Workload, shares: Iterable[float], folder: Path) -> dict[str, PrunePlan]:
    """Return the plans by name, made now or earlier."""
    registry = load_plugins().registry
    latency = f"latency:{DEVICE}"
    model = LatencyCost(read_table(folder / "devices" / f"{DEVICE}.table.json"))
    coupling = analyse(base.model, base.example_inputs)
    found: dict[str, PrunePlan] = {}

    def made(name: str, budget: Mapping[str, float], allocation: str) -> PrunePlan:
        path = folder / "plans" / f"{name}.json"
        if path.is_file():
            return PrunePlan.load(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        plan = slim_prune.plan(
            base.model, base.example_inputs, budget, importance="l1", allocation=allocation, round_to=ROUND_TO,
            coupling=coupling, registry=registry,
        )  # fmt: skip
        plan.save(path)
        return plan

    def time_of(plan: PrunePlan) -> float:
        return float(model.total(record(plan.apply(base.model), base.example_inputs)))

    for share in shares:
        goal = found[f"ms-{share:g}"] = made(f"ms-{share:g}", {latency: share}, "latency")
        for family in FAMILIES:
            name = f"macs-{family}-{share:g}"
            place = folder / "plans" / f"{name}.budget"
            if not place.is_file():
                budget = bisected(base, family, coupling, registry, time_of, time_of(goal))
                place.write_text(f"{budget!r}\n")
            found[name] = made(name, {"macs": float(place.read_text())}, family)
    return found


def bisected(
    base: Workload, allocation: str, coupling: Any, registry: Any, time_of: Callable[[PrunePlan], float], goal: float
) -> float:
    """Return the share of MACs at which an allocation's plan should take as long as ``goal``."""
    low, high = 0.05, 1.0
    for _ in range(10):
        middle = (low + high) / 2
        plan = slim_prune.plan(
            base.model, base.example_inputs, {"macs": middle}, importance="l1", allocation=allocation,
            round_to=ROUND_TO, coupling=coupling, registry=registry,
        )  # fmt: skip
        low, high = (middle, high) if time_of(plan) <= goal else (low, middle)
    return (low + high) / 2


# --- training ----------------------------------------------------------------------------------------------------


def shortened(pictures: Dataset, count: int) -> TensorSource:
    """Return the first so many training pictures, with their augmentation."""
    train = pictures.train
    assert isinstance(train, TensorSource)
    return TensorSource(
        train.inputs[:count], train.targets[:count], train.batch_size, shuffle=True, seed=train.seed,
        prepare=train.prepare, augment=train.augment, drop_last=True,
    )  # fmt: skip


def tuned(base: Workload, plan: PrunePlan, seed: int, epochs: int, folder: Path) -> dict[str, float]:
    pruned = replace(base, model=plan.apply(base.model))
    cut = bases.judged(pruned)
    config = FitConfig(epochs=epochs, lr=0.04, weight_decay=5e-4, warmup_epochs=0.1, eval_every=epochs, seed=seed)
    result = fit(pruned, config, folder=folder, inplace=True)
    return {"top1_cut": cut["top1"], "top1": bases.judged(result.workload)["top1"]}


# --- all of it ---------------------------------------------------------------------------------------------------


def chosen(table: DeviceTable, plans: Mapping[str, PrunePlan], share: float, base_ms: float) -> list[dict[str, Any]]:
    """Return what was measured of the plan for milliseconds, and of those for MACs beside it."""
    goal = table.networks[f"ms-{share:g}"].median_ms
    names = [f"ms-{share:g}", *(f"macs-{family}-{share:g}" for family in FAMILIES)]
    rows = []
    for name in names:
        row, plan = table.networks[name], plans[name]
        rows.append({
            "share": share,
            "name": name,
            "budget": "milliseconds" if name.startswith("ms-") else "MACs",
            "allocation": plan.allocation,
            "macs": plan.after["macs"] / plan.before["macs"],
            "params": plan.after["params"] / plan.before["params"],
            "ms": row.median_ms,
            "quartiles_ms": [row.q1_ms, row.q3_ms],
            "share_of_the_original": row.median_ms / base_ms,
            "against_the_budget": row.median_ms / base_ms / share - 1,
            "against_the_plan_for_milliseconds": row.median_ms / goal - 1,
        })  # fmt: skip
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shares", nargs="+", type=float, default=[0.7, 0.5])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--pictures", type=int, default=12000, help="training pictures of the fine-tuning")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--until", choices=["table", "plan", "measure", "train"], default="train")
    parser.add_argument("--folder", type=Path, default=bases.FOLDER.parent / "pruning-latency")
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    torch.set_num_threads(1)
    (folder / "devices").mkdir(parents=True, exist_ok=True)
    os.environ["SLIM_DEVICES"] = str(folder / "devices")
    registry = load_plugins().registry
    pictures = bases.data(registry)
    base = bases.trained(MODEL, registry, pictures)
    base = replace(base, model=base.model.eval(), train=shortened(pictures, arguments.pictures))
    base = replace(base, example_inputs=tuple(tensor[:1] for tensor in base.example_inputs))

    prediction = device_table(base, folder, 9)
    print(json.dumps(prediction))
    if arguments.until == "table":
        return 0
    plans = planned(base, arguments.shares, folder)
    if arguments.until == "plan":
        return 0
    models = {"original": base.model, **{name: plan.apply(base.model) for name, plan in plans.items()}}
    table = measured(folder / "measured", models, base.example_inputs, arguments.rounds)
    base_ms = table.networks["original"].median_ms
    rows = [row for share in arguments.shares for row in chosen(table, plans, share, base_ms)]
    for row in rows:
        print(row["name"], f"{row['ms']:.4f} ms, {row['against_the_budget']:+.1%} of the budget", flush=True)
    write(arguments, rows, table, prediction, base)
    if arguments.until == "measure":
        return 0

    state = folder / "trained.json"
    done: dict[str, Any] = json.loads(state.read_text()) if state.is_file() else {}
    for seed in range(arguments.seeds):
        for row in rows:
            key = f"{row['name']} {arguments.epochs} {arguments.pictures} {seed}"
            if key not in done:
                done[key] = tuned(base, plans[row["name"]], seed, arguments.epochs, folder / key.replace(" ", "-"))
                write_json(state, done)
                print(key, done[key], flush=True)
        for row in rows:
            found = [done[f"{row['name']} {arguments.epochs} {arguments.pictures} {n}"] for n in range(seed + 1)]
            top1 = [item["top1"] for item in found]
            row |= {
                "seeds": len(found),
                "top1_mean": statistics.mean(top1),
                "top1_min": min(top1),
                "top1_max": max(top1),
                "top1_cut": found[0]["top1_cut"],
            }
        write(arguments, rows, table, prediction, base)
    return 0


def write(
    arguments: argparse.Namespace,
    rows: list[dict[str, Any]],
    table: DeviceTable,
    prediction: Mapping[str, Any],
    base: Workload,
) -> None:
    original = table.networks["original"]
    content = {
        "model": MODEL,
        "input": next(list(tensor.shape) for tensor in tensors_of(base.example_inputs)),
        "original": {"ms": original.median_ms, "noise": original.noise, "top1": bases.judged(base)["top1"]},
        "noise": table.noise,
        "rounds": original.rounds,
        "prediction": prediction,
        "rows": rows,
        "met": all(row["against_the_budget"] <= BOUND for row in rows if row["budget"] == "milliseconds"),
        "bound": BOUND,
        "equal": EQUAL,
        "epochs": arguments.epochs,
        "pictures": arguments.pictures,
        "round_to": ROUND_TO,
        "device": this_device().to_json(),
        "versions": {name: version(name) for name in ("torch", "onnxruntime", "slim-prune", "slim-latency")},
    }
    write_json(arguments.output, content)


if __name__ == "__main__":
    sys.exit(main())
