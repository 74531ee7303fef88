"""What the processes of the distributed tests run. In a module of its own, so that a spawned process can import it."""

from __future__ import annotations

from typing import Any

import torch

from slim_quant.observers import OBSERVERS, make_observer
from slim_quant.schemes import Scheme

WORLD = 2


def batches() -> list[torch.Tensor]:
    """Eight batches; those of the second process are larger, so that the ranges differ."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(16, 500, generator=generator) * (1 + 3 * (index % 2)) - 0.5 for index in range(8)]


def observe(rank: int, folder: str, queue: Any) -> None:
    """Put this process's ranges into ``queue``."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD)
    try:
        found = {}
        for name in OBSERVERS:
            observer = make_observer(name)
            for batch in batches()[rank::WORLD]:
                observer.update(batch)
            observer.all_reduce()
            found[name] = tuple(float(end) for end in observer.range(Scheme(8, False)))
        for name in OBSERVERS:  # one process sees nothing
            observer = make_observer(name)
            if rank == 1:
                observer.update(batches()[1])
            observer.all_reduce()
            found[f"{name} alone"] = tuple(float(end) for end in observer.range(Scheme(8, False)))
        queue.put((rank, found))
    finally:
        torch.distributed.destroy_process_group()
