"""Time of loading a checkpoint against plain safetensors into a model of the same kind; interleaved medians.

    python benchmarks/checkpoint_speed.py [--out benchmarks/results/checkpoint_speed.json] [--rounds 9]

Both sides end with the same thing: a model on the CPU whose weights were all read once. The plain side builds the model
on the meta device, reads the file with ``safetensors.torch.load_file``, and assigns; that is its fastest way. It maps
the file, so that its pages are read when they are first used: the sum over all weights, which both sides do, is part of
the time. The files lie in the page cache. ``built`` is the plain side as it is usually written, with a model built on
the CPU and ``load_state_dict``. Beside the time on the clock stands the processor time of all threads, which other work
on the machine disturbs less.

``hash`` is the time that one thread needs for the SHA-256 of the file: the bound for loading with verification.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from slim_core.checkpoint import inspect, load, save
from slim_core.workload import Workload


def stack(layers: int, width: int) -> nn.Module:
    """Return linear layers: few large tensors."""
    return nn.Sequential(*(nn.Linear(width, width) for _ in range(layers)))


def convolutions(blocks: int, width: int) -> nn.Module:
    """Return convolutions with batch norm: many small tensors, as in a classifier."""
    parts: list[nn.Module] = []
    for _ in range(blocks):
        parts += [nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*parts)


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "16 linear layers of 2048, 268 MB": (lambda: stack(16, 2048), (1, 2048)),
    "53 convolutions of 256 with batch norm, 125 MB": (lambda: convolutions(53, 256), (1, 256, 4, 4)),
    "53 convolutions of 32 with batch norm, 2 MB": (lambda: convolutions(53, 32), (1, 32, 4, 4)),
}


def touch(model: nn.Module) -> float:
    """Read every weight once."""
    with torch.no_grad():
        return float(sum(tensor.sum() for tensor in model.state_dict().values()))


def case(name: str, build: Callable[[], nn.Module], shape: tuple[int, ...], rounds: int, folder: Path) -> dict:
    torch.manual_seed(0)
    model = build().eval()
    count = len(model.state_dict())
    ours, plain = folder / "slim.safetensors", folder / "plain.safetensors"
    save(Workload(model, (torch.zeros(shape),)), ours, parity=False)
    safetensors.torch.save_file(model.state_dict(), plain)

    def meta() -> nn.Module:
        with torch.device("meta"):
            return build()

    def assigned() -> nn.Module:
        loaded = meta()
        loaded.load_state_dict(safetensors.torch.load_file(plain), assign=True)
        return loaded

    def built() -> nn.Module:
        loaded = build()
        loaded.load_state_dict(safetensors.torch.load_file(plain))
        return loaded

    sides: dict[str, Callable[[], nn.Module]] = {
        "plain": assigned,
        "built": built,
        "slim": lambda: load(ours, factory=build, verify=False).model,
        "slim_verified": lambda: load(ours, factory=build).model,
    }
    expected = touch(model)
    times: dict[str, list[float]] = {side: [] for side in sides} | {"hash": [], "header": []}
    cpu: dict[str, list[float]] = {side: [] for side in sides} | {"hash": []}
    del model
    for round_ in range(rounds + 1):
        for side, function in sides.items():
            gc.collect()
            begin, used = time.perf_counter(), time.process_time()
            loaded = function()
            total = touch(loaded)
            elapsed, used = time.perf_counter() - begin, time.process_time() - used
            assert total == expected, side
            del loaded
            if round_:  # the first round warms up
                times[side].append(elapsed)
                cpu[side].append(used)
        begin, used = time.perf_counter(), time.process_time()
        with open(ours, "rb") as handle:
            hashlib.file_digest(handle, "sha256").hexdigest()
        times["hash"].append(time.perf_counter() - begin)
        cpu["hash"].append(time.process_time() - used)
        begin = time.perf_counter()
        inspect(ours)
        times["header"].append(time.perf_counter() - begin)
    medians = {side: statistics.median(values) for side, values in times.items()}
    return {
        "name": name,
        "bytes": plain.stat().st_size,
        "tensors": count,
        "median_s": medians,
        "spread_s": {side: [min(values), max(values)] for side, values in times.items()},
        "median_cpu_s": {side: statistics.median(values) for side, values in cpu.items()},
        "speed_against_plain": medians["plain"] / medians["slim"],
        "speed_against_built": medians["built"] / medians["slim"],
        "speed_verified_against_plain": medians["plain"] / medians["slim_verified"],
        "verified_against_hash": medians["slim_verified"] / medians["hash"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "checkpoint_speed.json")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [case(name, *given, arguments.rounds, Path(folder)) for name, given in CASES.items()]
    result = {
        "rows": rows,
        "rounds": arguments.rounds,
        "target_speed_against_plain": 0.7,
        "device": {
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "load_average": os.getloadavg()[0],
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "safetensors": safetensors.__version__,
        },
    }
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    for row in rows:
        print(f"{row['name']}: {row['speed_against_plain']:.2f}x plain, {row['speed_against_built']:.2f}x built, "
              f"verified {row['verified_against_hash']:.2f} times one hash")  # fmt: skip
        for kind in ("median_s", "median_cpu_s"):
            print("   ", kind, {side: round(value, 4) for side, value in row[kind].items()})


if __name__ == "__main__":
    main()
