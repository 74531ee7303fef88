"""A measurement in a process of its own, for tests that kill it: ``python sensitivity_killed.py FOLDER OUTPUT``."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import nn

import slim_prune
from slim_core.tasks import ClassificationTask


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()) for _ in range(5)))
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class SilentInWorkers(Small):
    """Says nothing in worker processes, and starts a process there that would outlive it; leaves its number."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = folder

    def forward(self, x):
        if multiprocessing.parent_process() is not None:
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            (Path(self.folder) / str(child.pid)).touch()
            time.sleep(600)
        return super().forward(x)


def subject() -> tuple:
    torch.manual_seed(0)
    model = Small().eval()
    generator = torch.Generator().manual_seed(1)
    data = [
        (torch.rand(40, 3, 8, 8, generator=generator), torch.randint(0, 4, (40,), generator=generator))
        for _ in range(6)
    ]
    return model, (data[0][0][:2],), ClassificationTask(), data


def measure(**options):
    return slim_prune.sensitivity(*subject(), **{"metric": "loss", "round_to": 4, "points": 3, **options})


if __name__ == "__main__":
    torch.set_num_threads(1)
    measure(folder=sys.argv[1]).save(Path(sys.argv[2]))
