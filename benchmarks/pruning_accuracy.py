"""Accuracy after pruning and the same fine-tuning: slim-prune's allocations and criteria, and Torch-Pruning's l1.

Every method prunes the same trained model to the same share of its MACs (counted by ``slim_core.graph.cost``), with
kept channels a multiple of 8 (of 4 where layers are narrow), and is fine-tuned by the same ``FitConfig`` with the same
seeds. Torch-Pruning has channel ratios only; its ratio is bisected until the MACs fit. Rows are written as they come,
and a stopped run goes on where it stopped; several processes may fill one result. Starts from the models of
``bases.py``.

    python benchmarks/pruning_accuracy.py [--models mobilenet_v1 resnet20] [--seeds 0 1 2] [--epochs 2]
"""

from __future__ import annotations

import argparse
import copy
import fcntl
import json
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import bases
import torch
from torch import nn

import slim_prune
from slim_core import Workload
from slim_core.data import Dataset
from slim_core.files import write_json
from slim_core.graph import record
from slim_core.graph.cost import cost
from slim_core.measure import this_device
from slim_core.plugins import load_plugins
from slim_core.registry import Registry
from slim_core.training import FitConfig, fit

RESULT = Path(__file__).parent / "results" / "pruning_accuracy.json"
BUDGETS = (0.5, 0.3)
#: kept channels are a multiple of this; the layers of resnet20 have 16, 32 and 64
ROUND_TO = {"resnet20": 4, "resnet56": 4}
#: training pictures, without augmentation, that sensitivity is measured on
JUDGED = 2000

#: the least important units per saved operation go first, wherever they are
GLOBAL = {"name": "global", "normalize": "none", "per": "macs"}
#: candidates are trained on 3,072 pictures before 2,000 others judge them
EVOLUTION = {
    "name": "evolution", "trials": 40, "baseline": 0, "samples": 512, "holdout": 2000, "fit_samples": 3072,
    "fit": {"epochs": 1, "lr": 0.02}, "initial": [GLOBAL, "global"],
}  # fmt: skip

#: name -> criterion and allocation
OURS: dict[str, tuple[Any, Any]] = {
    "uniform, l1": ("l1", "uniform"),
    "uniform, fpgm": ("fpgm", "uniform"),
    "sensitivity, taylor": ("taylor", "sensitivity"),
    "evolution, taylor": ("taylor", EVOLUTION),
    "global, taylor": ("taylor", GLOBAL),
}
PEER = "torch-pruning, l1"
METHODS = (*OURS, PEER)


def macs(model: nn.Module, inputs: Any) -> float:
    return float(cost(record(model, inputs)).macs)


def ours(
    name: str,
    base: Workload,
    pictures: Dataset,
    budget: float,
    round_to: int,
    seed: int,
    folder: Path,
    registry: Registry,
) -> nn.Module:
    """Plan and cut. Allocations that look at data see training pictures only."""
    importance, allocation = OURS[name]
    plan = slim_prune.plan(
        base.model,
        base.example_inputs,
        {"macs": budget},
        importance=importance,
        allocation=allocation,
        round_to=round_to,
        task=base.task,
        train=base.train,
        val=pictures.calibration(JUDGED),
        folder=folder,
        seed=seed,
        registry=registry,
    )
    return plan.apply(base.model)


def torch_pruning(base: Workload, budget: float, round_to: int) -> nn.Module:
    """Prune with one channel ratio, the largest model whose MACs are within the budget."""
    import torch_pruning as tp

    def pruned(ratio: float) -> nn.Module:
        model = copy.deepcopy(base.model)
        last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
        criterion = tp.importance.MagnitudeImportance(p=1)
        tp.pruner.MagnitudePruner(
            model, base.example_inputs, importance=criterion, pruning_ratio=ratio, ignored_layers=[last],
            round_to=round_to,
        ).step()  # fmt: skip
        return model

    limit = budget * macs(base.model, base.example_inputs)
    low, high = 0.0, 0.95
    best = pruned(high)
    for _ in range(12):
        middle = (low + high) / 2
        model = pruned(middle)
        if macs(model, base.example_inputs) <= limit:
            best, high = model, middle
        else:
            low = middle
    return best


def run(
    name: str,
    model_name: str,
    base: Workload,
    pictures: Dataset,
    budget: float,
    seed: int,
    arguments: argparse.Namespace,
    registry: Registry,
) -> dict[str, Any]:
    round_to = ROUND_TO.get(model_name, 8)
    folder = arguments.folder / model_name / name.replace(", ", "-") / f"{budget:g}" / str(seed)
    start = time.perf_counter()
    if name == PEER:
        pruned = torch_pruning(base, budget, round_to)
    else:
        pruned = ours(name, base, pictures, budget, round_to, seed, folder / "allocation", registry)
    planned = time.perf_counter() - start
    before = macs(base.model, base.example_inputs)
    cut = bases.judged(replace(base, model=pruned))
    config = FitConfig(
        epochs=arguments.epochs, lr=0.04, weight_decay=5e-4, warmup_epochs=0.1, eval_every=arguments.epochs, seed=seed,
        amp=bases.BASES[model_name].config.amp,
    )  # fmt: skip
    result = fit(replace(base, model=pruned), config, folder=folder / "fit", inplace=True)
    tuned = bases.judged(result.workload)
    return {
        "model": model_name,
        "method": name,
        "budget_macs": budget,
        "seed": seed,
        "macs": macs(pruned, base.example_inputs) / before,
        "parameters": sum(p.numel() for p in pruned.parameters()) / sum(p.numel() for p in base.model.parameters()),
        "top1_cut": cut["top1"],
        "top1": tuned["top1"],
        "plan_seconds": planned,
    }


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return mean and spread over seeds for each model, budget and method."""
    found: dict[tuple[str, float, str], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["model"], row["budget_macs"], row["method"]), []).append(row)
    order = {name: number for number, name in enumerate(METHODS)}
    return [
        {
            "model": model,
            "budget_macs": budget,
            "method": method,
            "seeds": len(group),
            "macs": statistics.mean(row["macs"] for row in group),
            "top1_mean": statistics.mean(row["top1"] for row in group),
            "top1_min": min(row["top1"] for row in group),
            "top1_max": max(row["top1"] for row in group),
            "top1_cut_mean": statistics.mean(row["top1_cut"] for row in group),
        }
        for (model, budget, method), group in sorted(found.items(), key=lambda i: (i[0][0], -i[0][1], order[i[0][2]]))
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["mobilenet_v1", "resnet20"], choices=list(bases.BASES))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--budgets", nargs="+", type=float, default=list(BUDGETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=2, help="epochs of fine-tuning, for all methods alike")
    parser.add_argument("--folder", type=Path, default=bases.FOLDER.parent / "pruning-accuracy")
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    registry = load_plugins().registry
    pictures = bases.data(registry)
    for model_name in arguments.models:
        base = bases.trained(model_name, registry, pictures)
        original = bases.judged(base)["top1"]
        for seed in arguments.seeds:
            pictures = bases.data(registry, seed=seed)  # the order and the augmentation are the data's
            base = replace(base, train=pictures.train)
            for budget in arguments.budgets:
                for name in arguments.methods:
                    key = (model_name, name, budget, seed)
                    if key in {_key(row) for row in _earlier(arguments)["rows"]}:
                        continue
                    row = run(name, model_name, base, pictures, budget, seed, arguments, registry)
                    print(f"{model_name} {name} {budget:g} seed {seed}: {row['macs']:.3f} of the MACs, "
                          f"{row['top1_cut']:.4f} -> {row['top1']:.4f}", flush=True)  # fmt: skip
                    _write(arguments, row, original)
    return 0


def _key(row: dict[str, Any]) -> tuple[str, str, float, int]:
    return row["model"], row["method"], row["budget_macs"], row["seed"]


def _earlier(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what is written already by runs with as many epochs."""
    if arguments.output.exists():
        found: dict[str, Any] = json.loads(arguments.output.read_text())
        if found["epochs"] == arguments.epochs:
            return found
    return {"rows": [], "original_top1": {}}


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep other processes that write the same result out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write(arguments: argparse.Namespace, row: dict[str, Any], original: float) -> None:
    with _alone(arguments.folder / "lock"):
        earlier = _earlier(arguments)
        rows = [*(item for item in earlier["rows"] if _key(item) != _key(row)), row]
        write_json(
            arguments.output,
            {
                "data": "fashion-mnist, 60,000 pictures at 32x32",
                "epochs": arguments.epochs,
                "original_top1": {**earlier["original_top1"], row["model"]: original},
                "summary": summary(rows),
                "rows": rows,
                "device": this_device().to_json(),
                "threads": torch.get_num_threads(),
                "versions": {n: version(n) for n in ("torch", "torch-pruning", "slim-core", "slim-prune")},
            },
        )


if __name__ == "__main__":
    sys.exit(main())
