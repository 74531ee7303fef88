"""When to prune: all at once or on the way, single weights and whole channels, at the same number of training epochs.

A ResNet-20 of half width on Fashion-MNIST at 16x16 (a part of the training pictures, all of the validation pictures) is
trained once per seed. From there every row spends the same epochs with the same settings:

* single weights: magnitude pruning at once and then training with the masks held, against gradual magnitude pruning
  (the cubic schedule of Zhu and Gupta, 2017, up to three quarters of the run); one global ranking, or each layer alike;
* channels (l1, uniform, MACs): one shot, iterative (geometric), soft filter pruning (ASFP, and one epoch after
  the cut), gradual.

Rows are written as they come, and a stopped run goes on where it stopped. ::

    python benchmarks/pruning_schedules.py [--seeds 3] [--epochs 4]
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch

import slim_prune
from slim_core import Workload, checkpoint
from slim_core.files import write_json
from slim_core.measure import this_device
from slim_core.plugins import load_plugins
from slim_core.registry import Registry
from slim_core.training import FitConfig, evaluate, fit
from slim_core.workload import BuilderRef
from slim_prune import sparsity

RESULT = Path(__file__).parent / "results" / "pruning_schedules.json"
FOLDER = Path(__file__).parent.parent / "out" / "pruning-schedules"
MODEL, WIDTH, SIDE, PICTURES = "zoo/resnet20", 0.5, 16, 6000
BASE_EPOCHS = 10
SPARSITIES, BUDGETS = (0.8, 0.9), (0.5, 0.3)
STEPS = 4

Row = tuple[str, str, float, Callable[[Workload, FitConfig], Workload]]


def at_once(share: float, scope: str) -> Callable[[Workload, FitConfig], Workload]:
    def run(base: Workload, config: FitConfig) -> Workload:
        scheme = sparsity.Unstructured(scope=scope)  # type: ignore[arg-type]
        made = sparsity.plan(base.model, sparsity=share, scheme=scheme)
        sparse = base.with_model(made.apply(base.model))
        return fit(sparse, config, callbacks=[sparsity.KeepMasks(made.masks)]).workload

    return run


def gmp(share: float, scope: str) -> Callable[[Workload, FitConfig], Workload]:
    def run(base: Workload, config: FitConfig) -> Workload:
        scheme = sparsity.Unstructured(scope=scope)  # type: ignore[arg-type]
        gradual = sparsity.GradualSparsity(share, scheme=scheme, begin=0.0, end=0.75)
        return fit(base, config, callbacks=[gradual]).workload

    return run


def one_shot(base: Workload, config: FitConfig, budget: float) -> Workload:
    made = slim_prune.plan(base.model, base.example_inputs, {"macs": budget}, round_to=2)
    return fit(base.with_model(made.apply(base.model), made.transform()), config).workload


def iterative(base: Workload, config: FitConfig, budget: float) -> Workload:
    """One epoch after each cut but the last, and the rest after that: the same epochs in sum."""
    between = config.model_copy(update={"epochs": 1, "schedule": "constant", "warmup_epochs": 0.0})
    steps = min(STEPS, config.epochs)
    after = config.model_copy(update={"epochs": config.epochs - steps + 1})
    result = slim_prune.prune_iteratively(
        base, {"macs": budget}, steps=steps, fit_between=between, fit_after=after, round_to=2
    )
    return result.workload


def soft(base: Workload, config: FitConfig, budget: float) -> Workload:
    """The last epoch follows the cut: without it, norms still have the statistics of channels that grew back."""
    callback = slim_prune.SoftPruning(base.example_inputs, {"macs": budget}, round_to=2)
    before = config.model_copy(update={"epochs": config.epochs - 1, "eval_every": config.epochs})
    cut = fit(base, before, callbacks=[callback]).workload
    return fit(cut, config.model_copy(update={"epochs": 1})).workload


def gradual(base: Workload, config: FitConfig, budget: float) -> Workload:
    callback = slim_prune.GradualPruning(base.example_inputs, {"macs": budget}, steps=STEPS, end=0.5, round_to=2)
    return fit(base, config, callbacks=[callback]).workload


def rows() -> list[Row]:
    found: list[Row] = []
    for share in SPARSITIES:
        for scope in ("global", "layer"):
            found.append(("weights", f"at once, {scope}", share, at_once(share, scope)))
            found.append(("weights", f"gradual magnitude, {scope}", share, gmp(share, scope)))
    ways = {"one shot": one_shot, "iterative": iterative, "soft, one epoch after the cut": soft, "gradual": gradual}
    for budget in BUDGETS:
        for name, way in ways.items():
            found.append(("channels", name, budget, lambda base, config, w=way, b=budget: w(base, config, b)))
    return found


def trained(seed: int, registry: Registry) -> Workload:
    """Return the trained model of a seed, trained now or earlier."""
    pictures = registry.get("datasets", "fashion-mnist")(batch_size=64, size=SIDE, seed=seed)
    source = copy.copy(pictures.train)
    source.inputs, source.targets = source.inputs[:PICTURES], source.targets[:PICTURES]
    torch.manual_seed(seed)
    channels, side, _ = pictures.input_shape
    kwargs = {"width": WIDTH, "num_classes": pictures.num_classes, "in_channels": channels, "input_size": side}
    task = registry.get("tasks", pictures.task)(**pictures.task_kwargs)
    builder = BuilderRef(MODEL, kwargs)
    model = registry.get("models", MODEL)(**kwargs)
    start = Workload(model, pictures.example_inputs, task, source, pictures.val, builder)
    path = FOLDER / f"base-{seed}.safetensors"
    if not path.exists():
        config = FitConfig(epochs=BASE_EPOCHS, lr=0.1, warmup_epochs=0.5, eval_every=BASE_EPOCHS, seed=seed)
        checkpoint.save(fit(start, config, folder=FOLDER / f"base-{seed}").workload, path)
    return replace(start, model=checkpoint.load(path, registry=registry).model)


def top1(workload: Workload) -> float:
    assert workload.task is not None
    assert workload.val is not None
    return evaluate(workload.model, workload.task, workload.val)["top1"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4, help="epochs after the base, for all rows alike")
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    FOLDER.mkdir(parents=True, exist_ok=True)
    registry = load_plugins().registry
    state = FOLDER / "rows.json"
    done: dict[str, float] = json.loads(state.read_text()) if state.is_file() else {}
    for seed in range(arguments.seeds):
        base = trained(seed, registry)
        todo = [("dense", "not pruned", 1.0, None), ("dense", "trained on", 1.0, lambda b, c: fit(b, c).workload)]
        for kind, name, share, way in [*todo, *rows()]:
            key = f"{kind} | {name} | {share:g} | {arguments.epochs} {arguments.lr:g} | {seed}"
            if key in done:
                continue
            config = FitConfig(epochs=arguments.epochs, lr=arguments.lr, eval_every=arguments.epochs, seed=seed)
            done[key] = top1(base if way is None else way(base, config))
            write_json(state, done)
            print(key, done[key], flush=True)
            write(arguments, done)
    return 0


def write(arguments: argparse.Namespace, done: dict[str, float]) -> None:
    """Write mean and spread over the seeds that are there."""
    found: dict[tuple[str, str, str], list[float]] = {}
    for key, value in done.items():
        kind, name, share, settings, _ = key.split(" | ")
        if settings == f"{arguments.epochs} {arguments.lr:g}":
            found.setdefault((kind, name, share), []).append(value)
    content = {
        "model": MODEL, "width": WIDTH, "side": SIDE, "pictures": PICTURES, "base_epochs": BASE_EPOCHS,
        "epochs": arguments.epochs, "lr": arguments.lr, "steps": STEPS,
        "rows": [
            {"kind": kind, "way": name, "share": float(share), "seeds": len(values),
             "top1_mean": statistics.mean(values), "top1_min": min(values), "top1_max": max(values)}
            for (kind, name, share), values in found.items()
        ],
        "device": this_device().to_json(),
        "versions": {name: version(name) for name in ("torch", "slim-core", "slim-prune", "slim-zoo")},
    }  # fmt: skip
    write_json(arguments.output, content)


if __name__ == "__main__":
    sys.exit(main())
