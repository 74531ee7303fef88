"""Time of pruning: recording, coupling, plan and surgery in Slim against Torch-Pruning, for the same job.

The job: half of the channels of every prunable layer, by the l1 norm, of a model with random weights in eval mode; the
classifier's outputs stay. Each round times both, one after the other in changing order, on fresh copies of the model
(copying is not timed). Wall time and CPU time are recorded, the latter because it says more on a machine that does
other things too. Needs ``torch-pruning``; writes ``results/pruning_speed.json``.

    python benchmarks/pruning_speed.py [--rounds 5] [--models resnet50 ...]
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from models.densenet import densenet121
from models.efficientnet import efficientnet_b0
from models.inception import inception_v3
from torch import nn

import slim_prune
from slim_core.files import write_json
from slim_core.graph import analyse
from slim_core.testing.oracle import assert_equals_masked_original

RESULT = Path(__file__).parent / "results" / "pruning_speed.json"


def zoo(name: str, **kwargs: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from slim_zoo import models

        return getattr(models, name)(**kwargs)

    return build


#: name -> (builder, side of the input picture)
MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet50": (zoo("resnet50", num_classes=1000), 224),
    "vgg16_bn": (zoo("vgg16_bn", num_classes=1000), 224),
    "densenet121": (densenet121, 224),
    "inception_v3": (inception_v3, 299),
    "mobilenet_v2": (zoo("mobilenet_v2", num_classes=1000), 224),
    "efficientnet_b0": (efficientnet_b0, 224),
}


def slim(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> nn.Module:
    plan = slim_prune.plan(model, inputs, ratios={"*": 0.5}, importance="l1", round_to=1)
    return plan.apply(model, inplace=True)


def torch_pruning(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> nn.Module:
    import torch_pruning as tp

    classifier = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    pruner = tp.pruner.MagnitudePruner(
        model, inputs, importance=tp.importance.MagnitudeImportance(p=1), pruning_ratio=0.5, ignored_layers=[classifier]
    )
    pruner.step()
    return model


SIDES = {"slim": slim, "torch-pruning": torch_pruning}


def measure(name: str, rounds: int) -> dict[str, Any]:
    build, side = MODELS[name]
    torch.manual_seed(0)
    original = build().eval()
    inputs = (torch.randn(1, 3, side, side),)
    times: dict[str, list[float]] = {key: [] for key in SIDES}
    work: dict[str, list[float]] = {key: [] for key in SIDES}
    left: dict[str, int] = {}
    for round_ in range(rounds + 1):  # the first warms up and is not counted
        for key in sorted(SIDES, reverse=bool(round_ % 2)):
            model = copy.deepcopy(original)
            start, cpu = time.perf_counter(), time.process_time()
            pruned = SIDES[key](model, inputs)
            took, worked = time.perf_counter() - start, time.process_time() - cpu
            if round_:
                times[key].append(took)
                work[key].append(worked)
            left[key] = sum(parameter.numel() for parameter in pruned.parameters())
    plan = slim_prune.plan(original, inputs, ratios={"*": 0.5}, importance="l1", round_to=1)
    error = assert_equals_masked_original(original, plan.apply(original), analyse(original, inputs), plan.kept, inputs)
    medians = {key: statistics.median(values) for key, values in times.items()}
    cpu_medians = {key: statistics.median(values) for key, values in work.items()}
    row = {
        "model": name,
        "parameters": sum(parameter.numel() for parameter in original.parameters()),
        "parameters_left": left,
        "seconds": {key: {"median": medians[key], "min": min(v), "max": max(v)} for key, v in times.items()},
        "ratio": medians["slim"] / medians["torch-pruning"],
        "cpu_seconds": cpu_medians,
        "cpu_ratio": cpu_medians["slim"] / cpu_medians["torch-pruning"],
        "error_against_masked_original": error,
    }
    print(f"{name:16} {medians['slim']:.3f} s against {medians['torch-pruning']:.3f} s: {row['ratio']:.3f}, "
          f"of CPU time {row['cpu_ratio']:.3f}", flush=True)  # fmt: skip
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--threads", type=int, default=1, help="threads that PyTorch uses, for both")
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = [measure(name, arguments.rounds) for name in arguments.models]
    total = {key: sum(row["seconds"][key]["median"] for row in rows) for key in SIDES}
    work = {key: sum(row["cpu_seconds"][key] for row in rows) for key in SIDES}
    result = {
        "job": "l1, half of the channels of every prunable layer",
        "rounds": arguments.rounds,
        "rows": rows,
        "sum_seconds": total,
        "sum_ratio": total["slim"] / total["torch-pruning"],
        "sum_cpu_seconds": work,
        "sum_cpu_ratio": work["slim"] / work["torch-pruning"],
        "load_average": os.getloadavg()[0],
        "device": platform.processor() or platform.machine(),
        "cpu": _cpu(),
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("torch", "torch-pruning", "slim-core", "slim-prune")},
        "python": platform.python_version(),
    }
    write_json(arguments.output, result)
    print(json.dumps({key: result[key] for key in ("sum_seconds", "sum_ratio", "sum_cpu_ratio", "load_average")}))
    return 0


def _cpu() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


if __name__ == "__main__":
    sys.exit(main())
