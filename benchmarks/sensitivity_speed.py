"""How fast sensitivity curves are, against the plain way: for every point rebuild the pruned model, evaluate all of it.

All ways measure the same points of the same trained model on the same validation samples, on one thread: plain, exact
(``slim_prune.sensitivity``), and with early stopping at 0.2 points. The plain way prunes a copy with
``slim_core.graph.shrink`` and measures the same single metric, batch by batch of the same size, in inference mode;
pictures and kernels have their channels last in memory, and analysis, ranking and data are shared by all points. Half
of its groups are measured before the other ways and half behind them. Curves must be equal within 0.2 points.

Models are those of ``bases.py``, trained once. Cases run side by side, each in a process of its own; what was timed is
kept in ``out/sensitivity``, and a run that was stopped goes on there::

    python benchmarks/sensitivity_speed.py [--cases …] [--points 8] [--jobs 2] [--fresh]

One case by itself is printed and kept, and the result is not written.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import bases
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
from slim_prune.allocation.grid import grid
from slim_prune.sensitivity.analysis import measured_counts, model_identity
from slim_prune.sensitivity.curves import Curves

RESULT = Path(__file__).parent / "results" / "sensitivity_speed.json"
FOLDER = Path(__file__).parent.parent / "out" / "sensitivity"
METRIC = "top1"
TOLERANCE = 0.002
BATCH, ROUND_TO = 128, 4
WAYS = ("exact", "early_stop")


@dataclass(frozen=True, slots=True)
class Case:
    """A trained model, and how many validation samples it is measured on."""

    model: str
    samples: int
    digits: dict[str, Any] | None = None


CASES = {
    "digits-mobilenet_v1": Case("zoo/mobilenet_v1", 360, {"width": 0.25}),
    "fashion-mobilenet_v1": Case("mobilenet_v1", 3000),
    "fashion-resnet20": Case("resnet20", 3000),
}


def trained(name: str, registry: Registry) -> Workload:
    """Return a case's model, trained now or earlier, with its validation samples."""
    case = CASES[name]
    if case.digits is None:
        workload = bases.trained(case.model, registry, bases.data(registry, BATCH))
    else:
        workload = _trained_on_digits(name, case, registry)
    assert workload.val is not None
    batches = list(workload.val)
    inputs, targets = torch.cat([batch[0] for batch in batches]), torch.cat([batch[1] for batch in batches])
    source = TensorSource(inputs[: case.samples], targets[: case.samples], BATCH)
    return replace(workload, model=workload.model.eval(), train=None, val=source)


def _trained_on_digits(name: str, case: Case, registry: Registry) -> Workload:
    pictures: Dataset = registry.get("datasets", "digits")(batch_size=64, size=32)
    torch.manual_seed(0)
    channels, side, _ = pictures.input_shape
    kwargs = {**(case.digits or {}), "num_classes": pictures.num_classes, "in_channels": channels, "input_size": side}
    model = registry.get("models", case.model)(**kwargs)
    task = registry.get("tasks", pictures.task)(**pictures.task_kwargs)
    start = Workload(model, pictures.example_inputs, task, pictures.train, pictures.val, BuilderRef(case.model, kwargs))
    path = FOLDER / f"{name}.safetensors"
    if not path.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        config = FitConfig(epochs=6, lr=0.05, weight_decay=5e-4, warmup_epochs=0.5, eval_every=6)
        checkpoint.save(fit(start, config).workload, path)
    return replace(start, model=checkpoint.load(path, registry=registry).model)


class Plain:
    """The plain way, with everything that can be shared between points shared: analysis, ranking, data."""

    def __init__(self, workload: Workload) -> None:
        self.workload, self.orders = workload, orders_of(workload)
        self.coupling = analyse(workload.model, workload.example_inputs)
        assert workload.val is not None
        self.batches = [
            (inputs.contiguous(memory_format=torch.channels_last), targets) for inputs, targets in workload.val
        ]

    def __call__(self, name: str, counts: Sequence[int]) -> dict[str, float]:
        return {str(kept): self.value(name, kept) for kept in counts}

    def value(self, name: str, kept: int) -> float:
        pruned = shrink(copy.deepcopy(self.workload.model), self.coupling, {name: np.sort(self.orders[name][:kept])})
        pruned = pruned.to(memory_format=torch.channels_last)
        assert self.workload.task is not None
        metric = self.workload.task.metrics()[METRIC]
        with evaluating(pruned), torch.inference_mode():
            for batch in self.batches:
                metric.update(call(pruned, self.workload.task.inputs(batch)), batch)
        return float(metric.compute())


def orders_of(workload: Workload) -> dict[str, Any]:
    """Return the units of each group by l1, the most important first."""
    from slim_prune.edits import state_of
    from slim_prune.importance import magnitude

    coupling = analyse(workload.model, workload.example_inputs)
    tensors = {name: tensor.detach() for name, tensor in state_of(workload.model).items()}
    return {group.name: np.argsort(-magnitude.l1(group, tensors).numpy(), kind="stable") for group in coupling.groups}


class State:
    """What was timed so far, in a file."""

    def __init__(self, path: Path, identity: dict[str, Any], fresh: bool) -> None:
        self.path = path
        known = json.loads(path.read_text()) if path.exists() and not fresh else {}
        self.parts: dict[str, Any] = known["parts"] if known.get("identity") == identity else {}
        self.identity = identity

    def timed(self, name: str, work: Callable[[], Any]) -> Any:
        """Return what ``work`` returns, with its times, now or earlier."""
        if name not in self.parts:
            began, worked = time.perf_counter(), time.process_time()
            result = work()
            self.parts[name] = {
                "seconds": time.perf_counter() - began,
                "processor_seconds": time.process_time() - worked,
                "result": result,
            }
            write_json(self.path, {"identity": self.identity, "parts": self.parts})
        return self.parts[name]


def compare(name: str, registry: Registry, points: int, fresh: bool = False) -> dict[str, Any]:
    """Time the three ways, and compare what they measure."""
    workload = trained(name, registry)
    assert workload.task is not None
    assert workload.val is not None
    task, val = workload.task, workload.val
    plain = Plain(workload)
    counts = {
        group.name: numbers
        for group in plain.coupling.groups
        if (numbers := measured_counts(group, grid(group, round_to=ROUND_TO, min_channels=1), points))
    }
    identity = {
        "case": name,
        "samples": CASES[name].samples,
        "points": points,
        "model": model_identity(workload.model),
        "versions": {item: version(item) for item in ("slim-core", "slim-prune", "torch")},
    }
    state = State(FOLDER / f"speed-{name}.json", identity, fresh)

    def ours(early_stop: float | None) -> dict[str, Any]:
        curves: Curves = slim_prune.sensitivity(
            workload.model, workload.example_inputs, task, val, metric=METRIC, points=points, round_to=ROUND_TO,
            early_stop=early_stop,
        )  # fmt: skip
        return {
            "base": curves.base.value,
            "groups": {
                curve.name: {str(point.kept): [point.value, point.samples, point.method] for point in curve.points}
                for curve in curves.curves
            },
        }

    names = list(counts)
    for group in names[::2]:
        state.timed(f"plain {group}", lambda group=group: plain(group, counts[group]))
    for way, stop in zip(WAYS, (None, TOLERANCE), strict=True):
        state.timed(way, lambda stop=stop: ours(stop))
    for group in names[1::2]:
        state.timed(f"plain {group}", lambda group=group: plain(group, counts[group]))
    return _row(name, state, names)


def _row(name: str, state: State, names: list[str]) -> dict[str, Any]:
    parts = state.parts
    plain = {(group, kept): value for group in names for kept, value in parts[f"plain {group}"]["result"].items()}
    row: dict[str, Any] = {"case": name, "groups": len(names), "points": len(plain), "samples": CASES[name].samples}
    row["base"] = parts["exact"]["result"]["base"]
    for unit in ("seconds", "processor_seconds"):
        row[unit] = {"plain": sum(parts[f"plain {group}"][unit] for group in names)}
        row[unit] |= {way: parts[way][unit] for way in WAYS}
    row["speedup"] = {way: row["seconds"]["plain"] / row["seconds"][way] for way in WAYS}
    row["speedup_by_processor_time"] = {
        way: row["processor_seconds"]["plain"] / row["processor_seconds"][way] for way in WAYS
    }
    found = {way: parts[way]["result"]["groups"] for way in WAYS}
    row["largest_difference"] = {
        way: max(abs(found[way][group][kept][0] - value) for (group, kept), value in plain.items()) for way in WAYS
    }
    row["methods"] = sorted({found["exact"][group][kept][2] for group, kept in plain})
    row["samples_used"] = float(
        np.mean([found["early_stop"][group][kept][1] / CASES[name].samples for group, kept in plain])
    )
    row["within_tolerance"] = all(value <= TOLERANCE + 1e-9 for value in row["largest_difference"].values())
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES)[1:])
    parser.add_argument("--points", type=int, default=8)
    parser.add_argument("--jobs", type=int, default=2, help="cases that run side by side")
    parser.add_argument("--fresh", action="store_true", help="time everything again")
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if len(arguments.cases) > 1:
        _side_by_side(arguments)
    registry = load_plugins().registry
    fresh = arguments.fresh and len(arguments.cases) == 1
    rows = [compare(name, registry, arguments.points, fresh) for name in arguments.cases]
    for row in rows:
        print(row["case"], row["points"], row["speedup"], row["speedup_by_processor_time"], row["largest_difference"])
    if len(arguments.cases) > 1:
        packages = ("slim-core", "slim-prune", "slim-zoo", "torch", "numpy")
        content = {"rows": rows, "threads": 1, "jobs": arguments.jobs, "tolerance": TOLERANCE}
        content |= {"device": this_device().to_json(), "versions": {name: version(name) for name in packages}}
        write_json(arguments.output, content)
    return 0


def _side_by_side(arguments: argparse.Namespace) -> None:
    """Time each case in a process of its own."""
    waiting, running = list(arguments.cases), list[subprocess.Popen[bytes]]()
    while waiting or running:
        while waiting and len(running) < arguments.jobs:
            options = ["--cases", waiting.pop(), "--points", str(arguments.points)]
            options += ["--fresh"] if arguments.fresh else []
            running.append(subprocess.Popen([sys.executable, __file__, *options]))
        failed = [job.returncode for job in running if job.poll()]
        if failed:
            raise SystemExit(f"a case failed with exit status {failed[0]}")
        running = [job for job in running if job.returncode is None]
        time.sleep(0.5)


if __name__ == "__main__":
    sys.exit(main())
