"""Automated search over channels: how good what the algorithms find is, and whether its score tells the truth.

Three questions on a ``zoo/resnet20`` of half width, trained on ``digits``:

* ``algorithms``: the best score after so many candidates, for each algorithm and several seeds, with uniform pruning
  and random search beside.
* ``agreement``: candidates of one budget are scored in several ways and then fine-tuned; Spearman's rank correlation
  says how well a score foretells the loss after fine-tuning.
* ``tuned``: what uniform pruning and aging evolution come to after the same fine-tuning.

Writes ``pruning_search.json`` under ``benchmarks/results``. It takes some minutes.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import slim_prune
from slim_core import Workload
from slim_core.files import write_json
from slim_core.measure import this_device
from slim_core.plugins import load_plugins
from slim_core.registry import Registry
from slim_core.training import FitConfig, evaluate, fit

RESULTS = Path(__file__).parent / "results"
MODEL, KWARGS, DATA, BUDGETS, ROUND_TO = "zoo/resnet20", {"width": 0.5}, "digits", (0.5, 0.3), 2
TRIALS = (20, 40, 60)
ALGORITHMS = ("aging", "annealing", "cmaes", "random")
SAMPLES = {"holdout": 400, "samples": 128}
SHORT, TUNING = "recalibrated after one short epoch", 3
#: how candidates may be scored
SCORES: dict[str, dict[str, Any]] = {
    "as cut": {"recalibrate": False},
    "recalibrated": {},
    SHORT: {"fit": {"epochs": 1, "lr": 0.02, "device": "cpu"}, "fit_samples": 512},
}


def base(registry: Registry) -> Workload:
    pictures = registry.get("datasets", DATA)(batch_size=64)
    channels, side, _ = pictures.input_shape
    torch.manual_seed(0)
    model = registry.get("models", MODEL)(
        **KWARGS, num_classes=pictures.num_classes, in_channels=channels, input_size=side
    )
    task = registry.get("tasks", pictures.task)(**pictures.task_kwargs)
    workload = Workload(model, pictures.example_inputs, task, pictures.train, pictures.val)
    return fit(workload, FitConfig(epochs=10, lr=0.1, device="cpu", seed=0, eval_every=10)).workload


def search(net: Workload, budget: float, registry: Registry, **options: Any) -> slim_prune.SearchResult:
    return slim_prune.search(
        net.model, net.example_inputs, {"macs": budget}, task=net.task, train=net.train, round_to=ROUND_TO,
        registry=registry, **{**SAMPLES, **options},
    )  # fmt: skip


def algorithms(net: Workload, registry: Registry, seeds: int, workers: int) -> Iterator[dict[str, Any]]:
    for budget in BUDGETS:
        for name in ALGORITHMS:
            found = [
                search(
                    net, budget, registry, algorithm=name, seed=seed, trials=max(TRIALS), baseline=0, workers=workers
                )
                for seed in range(seeds)
            ]
            curves = [dict(result.best_so_far(name)) for result in found]
            yield {
                "budget": budget,
                "algorithm": name,
                "uniform": found[0].figure(found[0].trials[0]),
                "best": {str(count): [curve[count] for curve in curves] for count in TRIALS},
                "seconds": statistics.median(sum(t.seconds for t in r.trials) / r.scored for r in found),
            }


def ranks(values: list[float]) -> np.ndarray:
    """Ranks from 0; equal values share the mean of theirs."""
    array = np.asarray(values)
    return np.array([(array < value).sum() + ((array == value).sum() - 1) / 2 for value in array], dtype=float)


def agreement(net: Workload, registry: Registry, count: int, workers: int) -> dict[str, Any]:
    """Score the same random candidates in every way, and fine-tune each of them."""
    budget = BUDGETS[-1]
    scored = {
        name: search(
            net, budget, registry, algorithm="random", trials=count, metric="loss", workers=workers, **options
        ).trials
        for name, options in SCORES.items()
    }
    config = FitConfig(epochs=3, lr=0.05, device="cpu", seed=0, eval_every=3)
    after = []
    for trial in scored["as cut"]:

        def exactly(problem: Any, context: Any, counts: Any = trial.counts) -> Any:
            return counts

        plan = slim_prune.plan(
            net.model, net.example_inputs, {"macs": budget}, round_to=ROUND_TO, allocation=exactly, registry=registry
        )
        tuned = fit(replace(net, model=plan.apply(net.model)), config).workload
        after.append(evaluate(tuned.model, net.task, net.val)["loss"])
    truth = ranks(after)
    found = {}
    for name, trials in scored.items():
        assert [t.counts for t in trials] == [t.counts for t in scored["as cut"]]
        found[name] = float(np.corrcoef(ranks([t.figures["loss"] for t in trials]), truth)[0, 1])
    return {"budget": budget, "candidates": count, "epochs": config.epochs, "spearman": found}


def tuned(net: Workload, registry: Registry, seeds: int, workers: int) -> Iterator[dict[str, Any]]:
    """Fine-tune uniform's choice and the best candidates, and evaluate them on the validation data."""
    for budget in BUDGETS:
        plans: dict[str, list[Any]] = {"uniform": [], "aging": [], "aging, one short epoch each": []}
        for seed in range(seeds):
            plans["uniform"].append(
                slim_prune.plan(net.model, net.example_inputs, {"macs": budget}, round_to=ROUND_TO, registry=registry)
            )
            for name, options in (("aging", {}), ("aging, one short epoch each", SCORES[SHORT])):
                found = search(net, budget, registry, seed=seed, trials=30, baseline=0, workers=workers, **options)
                plans[name].append(found.plan)
        for name, made in plans.items():
            after = []
            for seed, plan in enumerate(made):
                config = FitConfig(epochs=TUNING, lr=0.05, device="cpu", seed=seed, eval_every=TUNING)
                model = fit(replace(net, model=plan.apply(net.model)), config).workload.model
                after.append(evaluate(model, net.task, net.val))
            yield {"budget": budget, "method": name, "trials": 30, "epochs": TUNING, "after": after}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--candidates", type=int, default=20)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument(
        "--parts", nargs="+", default=["agreement", "algorithms", "tuned"], help="what is measured anew"
    )
    chosen = parser.parse_args()
    registry = load_plugins().registry
    net = base(registry)
    judged = evaluate(net.model, net.task, net.val)
    print(judged, flush=True)
    path = chosen.output / "pruning_search.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    found |= {
        "model": MODEL,
        "kwargs": KWARGS,
        "data": DATA,
        "round_to": ROUND_TO,
        **SAMPLES,
        "seeds": chosen.seeds,
        "whole": judged,
        "device": this_device().to_json(),
    }
    for part in chosen.parts:
        if part == "agreement":
            found[part] = agreement(net, registry, chosen.candidates, chosen.workers)
            print(found[part], flush=True)
        else:
            measure = algorithms if part == "algorithms" else tuned
            found[part] = []
            for row in measure(net, registry, chosen.seeds, chosen.workers):
                print(row, flush=True)
                found[part].append(row)
                write_json(path, found)
        write_json(path, found)


if __name__ == "__main__":
    main()
