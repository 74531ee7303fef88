"""How fast sensitivity curves are, against the plain way: for every point rebuild the pruned model, evaluate all of it.

Both ways measure the same points of the same trained model on the same validation samples, in alternation, in this
process: plain, exact (``slim_prune.sensitivity``), and with early stopping. The plain way prunes a copy with
``slim_core.graph.shrink`` and measures the same single metric batch by batch. Curves must be equal within 0.2 points.

    python benchmarks/sensitivity_speed.py [--cases digits-mobilenet_v1 fashion-resnet20] [--rounds 3] [--points 8]
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

import slim_prune
from slim_core import BuilderRef, Workload, checkpoint
from slim_core.data import Dataset, TensorSource
from slim_core.files import write_json
from slim_core.graph import analyse, shrink
from slim_core.measure import this_device
from slim_core.modes import evaluating
from slim_core.plugins import load_plugins
from slim_core.registry import Registry
from slim_core.training import FitConfig, fit
from slim_core.workload import call
from slim_prune.sensitivity.curves import Curves

RESULT = Path(__file__).parent / "results" / "sensitivity_speed.json"
FOLDER = Path(__file__).parent.parent / "out" / "sensitivity"
METRIC = "top1"
TOLERANCE = 0.002


@dataclass(frozen=True, slots=True)
class Case:
    """A model and the data that it is trained and measured on."""

    model: str
    kwargs: dict[str, Any]
    data: str
    data_kwargs: dict[str, Any]
    config: FitConfig
    samples: int | None = None


def _sgd(epochs: int, lr: float) -> FitConfig:
    return FitConfig(epochs=epochs, lr=lr, weight_decay=5e-4, warmup_epochs=0.5, eval_every=epochs)


CASES = {
    "digits-mobilenet_v1": Case(
        "zoo/mobilenet_v1", {"width": 0.25}, "digits", {"batch_size": 64, "size": 32}, _sgd(6, 0.05)
    ),
    "digits-resnet20": Case("zoo/resnet20", {}, "digits", {"batch_size": 64, "size": 16}, _sgd(6, 0.05)),
    "fashion-mobilenet_v1": Case(
        "zoo/mobilenet_v1", {"width": 0.5}, "fashion-mnist", {"batch_size": 128, "limit": 3000}, _sgd(3, 0.05), 2000
    ),
    "fashion-resnet20": Case(
        "zoo/resnet20", {}, "fashion-mnist", {"batch_size": 128, "limit": 2500, "size": 28}, _sgd(2, 0.1), 2000
    ),
}


def trained(name: str, registry: Registry, samples: int | None = None) -> Workload:
    """Return a case's model, trained now or earlier, with its validation samples prepared once for all ways."""
    case = CASES[name]
    pictures: Dataset = registry.get("datasets", case.data)(**case.data_kwargs)
    torch.manual_seed(0)
    channels, side, _ = pictures.input_shape
    kwargs = {**case.kwargs, "num_classes": pictures.num_classes, "in_channels": channels, "input_size": side}
    model = registry.get("models", case.model)(**kwargs)
    task = registry.get("tasks", pictures.task)(**pictures.task_kwargs)
    start = Workload(model, pictures.example_inputs, task, pictures.train, pictures.val, BuilderRef(case.model, kwargs))
    path = FOLDER / f"{name}.safetensors"
    if not path.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        checkpoint.save(fit(start, case.config).workload, path)
    batches = list(pictures.val)
    inputs, targets = torch.cat([batch[0] for batch in batches]), torch.cat([batch[1] for batch in batches])
    limit = samples or case.samples or len(inputs)
    source = TensorSource(inputs[:limit], targets[:limit], case.data_kwargs["batch_size"])
    return Workload(checkpoint.load(path, registry=registry).model.eval(), pictures.example_inputs, task, None, source)


class Plain:
    """The plain way, with everything that can be shared between points shared: analysis, ranking, data."""

    def __init__(self, workload: Workload, curves: Curves, orders: dict[str, Any]) -> None:
        self.workload, self.curves, self.orders = workload, curves, orders
        self.coupling = analyse(workload.model, workload.example_inputs)

    def __call__(self) -> dict[tuple[str, int], float]:
        return {
            (curve.name, point.kept): self.value(curve.name, point.kept)
            for curve in self.curves.curves
            for point in curve.points
        }

    def value(self, name: str, kept: int) -> float:
        pruned = shrink(copy.deepcopy(self.workload.model), self.coupling, {name: np.sort(self.orders[name][:kept])})
        metric = self.workload.task.metrics()[METRIC]
        with evaluating(pruned), torch.inference_mode():
            for batch in self.workload.val:
                metric.update(call(pruned, self.workload.task.inputs(batch)), batch)
        return float(metric.compute())


def orders_of(workload: Workload) -> dict[str, Any]:
    """Return the units of each group by l1, the most important first."""
    from slim_prune.edits import state_of
    from slim_prune.importance import magnitude

    coupling = analyse(workload.model, workload.example_inputs)
    tensors = {name: tensor.detach() for name, tensor in state_of(workload.model).items()}
    return {group.name: np.argsort(-magnitude.l1(group, tensors).numpy(), kind="stable") for group in coupling.groups}


def compare(name: str, registry: Registry, rounds: int, points: int, samples: int | None = None) -> dict[str, Any]:
    """Time the three ways in alternation, and compare what they measure."""
    workload = trained(name, registry, samples)

    def ours(early_stop: float | None) -> Curves:
        return slim_prune.sensitivity(
            workload.model, workload.example_inputs, workload.task, workload.val, metric=METRIC, points=points,
            round_to=4, early_stop=early_stop,
        )  # fmt: skip

    exact = ours(None)
    plain = Plain(workload, exact, orders_of(workload))
    ways = {"plain": plain, "exact": lambda: ours(None), "early_stop": lambda: ours(TOLERANCE)}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    processor: dict[str, list[float]] = {way: [] for way in ways}
    values: dict[str, dict[tuple[str, int], float]] = {}
    stopped = exact
    for number in range(rounds):
        for way in list(ways)[number % 3 :] + list(ways)[: number % 3]:
            began, worked = time.perf_counter(), time.process_time()
            result = ways[way]()
            seconds[way].append(time.perf_counter() - began)
            processor[way].append(time.process_time() - worked)
            values[way] = (
                {key: point.value for key, point in result.points.items()} if isinstance(result, Curves) else result
            )
            stopped = result if way == "early_stop" and isinstance(result, Curves) else stopped
    ratios = {way: _ratios(seconds, way) for way in ("exact", "early_stop")}
    largest = {way: max(abs(values[way][key] - value) for key, value in values["plain"].items()) for way in ratios}
    return {
        "case": name,
        "groups": len(exact.curves),
        "points": len(exact.points),
        "samples": exact.base.samples,
        "base": exact.base.value,
        "methods": sorted({point.method for point in exact.points.values()}),
        "seconds": {way: statistics.median(times) for way, times in seconds.items()},
        "all_seconds": seconds,
        "speedup": {way: statistics.median(times) for way, times in ratios.items()},
        "processor_seconds": processor,
        "speedup_by_processor_time": {way: statistics.median(_ratios(processor, way)) for way in ratios},
        "largest_difference": largest,
        "samples_used": sum(point.samples for point in stopped.points.values())
        / (len(exact.points) * exact.base.samples),
        "within_tolerance": all(value <= TOLERANCE + 1e-9 for value in largest.values()),
    }


def _write(arguments: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    write_json(
        arguments.output,
        {
            "rows": rows,
            "rounds": arguments.rounds,
            "threads": arguments.threads,
            "tolerance": TOLERANCE,
            "device": this_device().to_json(),
            "versions": {name: version(name) for name in ("slim-core", "slim-prune", "slim-zoo", "torch", "numpy")},
        },
    )


def _ratios(times: dict[str, list[float]], way: str) -> list[float]:
    return [plain / ours for plain, ours in zip(times["plain"], times[way], strict=True)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--points", type=int, default=8)
    parser.add_argument("--samples", type=int, help="measure on the first so many validation samples")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    registry = load_plugins().registry
    rows = []
    for name in arguments.cases:
        row = compare(name, registry, arguments.rounds, arguments.points, arguments.samples)
        rows.append(row)
        _write(arguments, rows)
        print(
            name,
            row["points"],
            "points",
            row["speedup"],
            row["speedup_by_processor_time"],
            row["largest_difference"],
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
