"""Scorers that worker processes can import: good ones, slow ones, and ones that die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from slim_core.errors import DataError


class Double:
    """Gives twice the number that it is asked, and who computed it."""

    def __call__(self, edits):
        return {"score": 2.0 * edits, "pid": float(os.getpid()), "threads": float(torch.get_num_threads())}


class DiesOnce(Double):
    """Is killed the first time that it is asked for each of ``numbers``, and each time for those of ``always``."""

    def __init__(self, folder: Path, numbers=(), always=()) -> None:
        self.folder, self.numbers, self.always = folder, numbers, always

    def __call__(self, edits):
        mark = self.folder / f"{edits}.died"
        if edits in self.always or (edits in self.numbers and not mark.exists()):
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(edits)


class Sleeps(Double):
    """Takes for ever on one number, with a child process that would outlive it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, edits):
        if edits == 1:
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            (self.folder / "child").write_text(str(child.pid))
            time.sleep(600)
        return super().__call__(edits)


class Fails(Double):
    """Raises for odd numbers."""

    def __call__(self, edits):
        if edits == 1:
            raise ValueError("odd")
        if edits == 3:
            raise DataError("odder", hint="even")
        return super().__call__(edits)


class DiesWhenUnpacked(Double):
    """Ends every process that it is sent to."""

    def __setstate__(self, state) -> None:
        os._exit(3)

    def __getstate__(self):
        return {"some": "state"}


class Unknown(Double):
    """Cannot be unpacked."""

    def __setstate__(self, state) -> None:
        raise ImportError("no module named nowhere")

    def __getstate__(self):
        return {"some": "state"}


class Holds(Double):
    """Carries tensors of all kinds; gives back what arrived of them."""

    def __init__(self) -> None:
        weight = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
        self.weight, self.tied = weight, weight
        self.half, self.flag = torch.ones(3, dtype=torch.bfloat16), torch.tensor([True, False])
        self.turned = torch.arange(6.0).reshape(2, 3).t()

    def __call__(self, edits):
        return {
            "sum": float(self.weight.sum()),
            "tied": float(self.weight is self.tied),
            "trains": float(self.weight.requires_grad),
            "half": float(self.half.sum()),
            "flag": float(self.flag.sum()),
            "turned": float(self.turned[2, 1]),
            "shared": float(self.weight.is_shared()),
        }
