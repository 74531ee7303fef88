"""What the way of measuring decides: one pass against interleaved rounds, spinning threads, and the graph level.

* ``protocols``: the same models are measured several times, each model alone (one pass) and all in interleaved rounds,
  with the same number of samples, first on the machine as it is and then while other processes compute in bursts of
  random length. A good protocol gives the same answer each time.
* ``spinning``: how much processor time the worker threads of an onnxruntime session take after a run, from whatever
  is timed next.
* ``graph_level``: latency by onnxruntime's graph level.

Writes ``noise_protocol.json`` and ``runtime_settings.json`` under ``benchmarks/results``. It takes about four minutes.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from slim_core.export import to_onnx
from slim_core.files import write_json
from slim_core.measure import Artifact, stats, this_device
from slim_core.measure.device import versions
from slim_core.measure.rounds import Candidate, take_samples
from slim_latency.onnx_runtime import OnnxRuntimeBackend
from slim_zoo.models import MobileNetV1, mobilenet_v2

RESULTS = Path(__file__).parent / "results"
#: close enough to each other that their order is a question: a step is about 12 % of the latency
WIDTHS = (0.5, 0.5625, 0.625, 0.6875, 0.75, 0.8125)
#: how long spinning threads are watched
IDLE_S = 0.1
#: bounds of a burst of disturbance and of the pause after it
BURST_S = (0.2, 4.0)
PICTURE = (torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0)),)

Times = dict[str, list[float]]


def exported(model: torch.nn.Module, folder: Path, name: str) -> Path:
    path = folder / f"{name}.onnx"
    to_onnx(model.eval(), PICTURE, path, check=False)
    return path


def burn(seed: int) -> None:
    """Compute and rest in turns, for random times, until the parent is gone."""
    draw, parent = random.Random(seed), os.getppid()
    while os.getppid() == parent:
        until = time.monotonic() + draw.uniform(*BURST_S)
        while time.monotonic() < until:
            sum(range(10_000))
        time.sleep(draw.uniform(*BURST_S))


@contextmanager
def disturbed(processes: int) -> Iterator[None]:
    """Keep ``processes`` others busy half of the time."""
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=burn, args=(seed,), daemon=True) for seed in range(processes)]
    for other in others:
        other.start()
    try:
        yield
    finally:
        for other in others:
            other.terminate()
            other.join()


def protocols(folder: Path, repeats: int, rounds: int) -> dict[str, Any]:
    """Measure all models ``repeats`` times in each way, the ways in alternation."""
    candidates: dict[str, Candidate] = {}
    for width in WIDTHS:
        torch.manual_seed(0)
        path = exported(MobileNetV1(width=width, input_size=96), folder, f"mobilenet_v1-{width}")
        session = OnnxRuntimeBackend().prepare(Artifact(onnx=path), threads=1)
        candidates[f"width {width}"] = Candidate(session.bind(PICTURE), session.active)
    settings: dict[str, Any] = {"rounds": rounds, "warmup": 5, "min_sample_s": 5e-3, "budget_s": 600.0}
    alone: list[Times] = []
    together: list[Times] = []
    for seed in range(repeats):
        alone.append({n: list(take_samples({n: c}, seed=seed, **settings).seconds[n]) for n, c in candidates.items()})
        taken = take_samples(candidates, seed=seed, **settings).seconds
        together.append({name: list(taken[name]) for name in candidates})
    return {
        "models": list(candidates),
        "repeats": repeats,
        "samples": rounds,
        "one_pass": judged(alone, paired=False),
        "interleaved": judged(together, paired=True),
    }


def judged(repeats: Sequence[Times], paired: bool) -> dict[str, Any]:
    """How much repeated measurements disagree: about the latency, about its ratio to the first model, about the order.

    Args:
        repeats: seconds of each sample by model, for each repeat.
        paired: take ratios within rounds, which only interleaved rounds allow.
    """
    first = next(iter(repeats[0]))
    latency = [{name: statistics.median(times) for name, times in repeat.items()} for repeat in repeats]
    ratio = [
        {
            name: statistics.median(np.array(times) / np.array(repeat[first]))
            if paired
            else statistics.median(times) / statistics.median(repeat[first])
            for name, times in repeat.items()
        }
        for repeat in repeats
    ]
    wrong, pairs = 0, 0
    for found in ratio:
        for smaller, larger in itertools.pairwise(found):  # widths ascend, so must latencies
            wrong += found[smaller] >= found[larger]
            pairs += 1
    return {
        "latency_disagreement": disagreement(latency),
        "ratio_disagreement": disagreement([{n: v for n, v in found.items() if n != first} for found in ratio]),
        "neighbours_in_wrong_order": wrong / pairs,
        "median_ms": {n: statistics.median(found[n] for found in latency) * 1e3 for n in latency[0]},
        "noise_floor": statistics.median(stats.noise_floor(t) or 0.0 for repeat in repeats for t in repeat.values()),
    }


def disagreement(repeats: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Relative difference of every two repeats, over all models."""
    found = [
        abs(one[name] - other[name]) / ((one[name] + other[name]) / 2)
        for one, other in itertools.combinations(repeats, 2)
        for name in one
    ]
    return {"median": statistics.median(found), "p90": float(np.percentile(found, 90)), "max": max(found)}


def spinning(folder: Path, rounds: int) -> dict[str, Any]:
    """CPU time that a session's worker threads take after its run has ended, when there is nothing to do."""
    torch.manual_seed(0)
    path = exported(MobileNetV1(width=0.5, input_size=96), folder, "spinning")
    kinds = {"spins on": OnnxRuntimeBackend(keep_spinning=True), "stops": OnnxRuntimeBackend()}
    calls = {name: backend.prepare(Artifact(onnx=path), threads=2).bind(PICTURE) for name, backend in kinds.items()}
    found: Times = {name: [] for name in calls}
    for done in range(rounds + 3):
        for name, call in calls.items():
            call()
            before = time.process_time()
            time.sleep(IDLE_S)
            if done >= 3:
                found[name].append(time.process_time() - before)
            time.sleep(3 * IDLE_S)  # on a busy machine spinning lasts longer than it is watched
    cpu = {name: {"median_cpu_ms": statistics.median(t) * 1e3, "max_cpu_ms": max(t) * 1e3} for name, t in found.items()}
    return {"threads": 2, "rounds": rounds, "idle_ms": IDLE_S * 1e3, "after_a_run": cpu}


def graph_levels(folder: Path, rounds: int) -> dict[str, Any]:
    """Latency of one file by the runtime's graph level, interleaved."""
    rows: dict[str, Any] = {}
    for name, model in (("mobilenet_v1", MobileNetV1(input_size=96)), ("mobilenet_v2", mobilenet_v2(input_size=96))):
        path = exported(model, folder, name)
        candidates = {}
        for level in ("basic", "extended", "all"):
            session = OnnxRuntimeBackend(level).prepare(Artifact(onnx=path), threads=1)
            candidates[level] = Candidate(session.bind(PICTURE), session.active)
        taken = take_samples(candidates, rounds=rounds, warmup=5, min_sample_s=5e-3, budget_s=300.0, seed=0).seconds
        rows[name] = {level: statistics.median(times) * 1e3 for level, times in taken.items()}
    return {"rounds": rounds, "median_ms": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("-o", "--output", type=Path, default=RESULTS, help="folder of the results")
    chosen = parser.parse_args()
    machine = {"device": this_device().to_json(), "versions": versions(("torch", "numpy", "onnxruntime"))}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        quiet = protocols(folder, chosen.repeats, chosen.rounds)
        cores = os.cpu_count() or 1
        with disturbed(cores):
            loud = protocols(folder, chosen.repeats, chosen.rounds)
        found = {"disturbing_processes": cores, "burst_s": list(BURST_S), "quiet": quiet, "disturbed": loud}
        write_json(chosen.output / "noise_protocol.json", {**machine, **found})
        settings = {"spinning": spinning(folder, chosen.rounds), "graph_level": graph_levels(folder, chosen.rounds)}
        write_json(chosen.output / "runtime_settings.json", {**machine, **settings})


if __name__ == "__main__":
    main()
