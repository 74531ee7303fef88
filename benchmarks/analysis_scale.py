"""How the analysis scales: a graph of 1,000 nodes, and a model of a billion parameters on the meta device.

Writes ``results/analysis_scale.json`` with seconds and the growth of resident memory. Each case runs in a process of
its own, so that one's memory is not another's.

    python benchmarks/analysis_scale.py
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slim_core.files import write_json
from slim_core.graph import analyse, couple, record

RESULT = Path(__file__).parent / "results" / "analysis_scale.json"


class Deep(nn.Module):
    """Residual blocks of five operators each: 1,000 nodes and a few."""

    def __init__(self, blocks: int = 200, channels: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(),
                nn.Conv2d(channels, channels, 1),
            )
            for _ in range(blocks)
        )  # fmt: skip
        self.head = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x.mean((2, 3)))


class Block(nn.Module):
    """A transformer block without attention's softmax over channels: attention and a wide MLP, pre-norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class Billion(nn.Module):
    """A decoder-sized stack: 20 blocks of width 2048, a vocabulary of 32,000."""

    def __init__(self, blocks: int = 20, width: int = 2048, heads: int = 16, vocabulary: int = 32000) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def thousand_nodes() -> tuple[nn.Module, tuple[Tensor, ...]]:
    return Deep().eval(), (torch.randn(1, 3, 32, 32),)


def billion_parameters() -> tuple[nn.Module, tuple[Tensor, ...]]:
    with torch.device("meta"):
        return Billion().eval(), (torch.zeros(1, 128, dtype=torch.int64),)


CASES: dict[str, tuple[Callable[[], tuple[nn.Module, tuple[Tensor, ...]]], int]] = {
    "thousand_nodes": (thousand_nodes, 7),
    "billion_parameters": (billion_parameters, 3),
}


def run(case: str) -> dict[str, Any]:
    make, rounds = CASES[case]
    warm = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 3, 1)).eval()
    analyse(warm, (torch.randn(1, 3, 4, 4),))
    model, inputs = make()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    record_couple, whole, cpu = [], [], []
    for _ in range(rounds):
        start = time.perf_counter()
        graph = record(model, inputs)
        couple(graph)
        record_couple.append(time.perf_counter() - start)
        start, work = time.perf_counter(), time.process_time()
        coupling = analyse(model, inputs)
        whole.append(time.perf_counter() - start)
        cpu.append(time.process_time() - work)
    return {
        "case": case,
        "nodes": len(coupling.graph.nodes),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "groups": len(coupling.groups),
        "record_and_couple_seconds": statistics.median(record_couple),
        "analyse_seconds": statistics.median(whole),
        "analyse_cpu_seconds": statistics.median(cpu),
        "first_analyse_seconds": whole[0],
        "resident_growth_bytes": 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before),
        "rounds": rounds,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=list(CASES), help="run one case in this process and print it")
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(run(arguments.case)))
        return 0
    rows = []
    for case in CASES:
        done = subprocess.run([sys.executable, __file__, "--case", case], check=True, capture_output=True, text=True)
        rows.append(json.loads(done.stdout.strip().splitlines()[-1]))
        print(rows[-1], flush=True)
    write_json(
        arguments.output,
        {
            "rows": rows,
            "load_average": os.getloadavg()[0],
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
            "versions": {name: version(name) for name in ("torch", "slim-core")},
        },
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
