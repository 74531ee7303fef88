"""What the processes of the distributed test run. In a module of its own, so that a spawned process can import it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from slim_quant import convert, prepare_qat
from slim_quant.qat import freeze_batch_norms

WORLD = 2
STEPS = 3


def net() -> nn.Module:
    """Without batch norm, whose statistics are those of each process."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.Flatten(), nn.Linear(64, 3)
    )


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Eight samples; the later four are larger, so that the processes see other extremes."""
    generator = torch.Generator().manual_seed(step)
    scale = torch.tensor([1.0, 1, 1, 1, 3, 3, 3, 3]).view(8, 1, 1, 1)
    return torch.randn(8, 2, 4, 4, generator=generator) * scale, torch.randint(0, 3, (8,), generator=generator)


def learn(quantizer: str, rank: int, world: int) -> dict[str, torch.Tensor]:
    """Train on this process's share of each batch; return the state."""
    model = prepare_qat(net(), (batch(0)[0],), quantizer=quantizer).train()
    wrapped = DistributedDataParallel(model) if world > 1 else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for step in range(STEPS):
        x, labels = (part[rank * 8 // world : (rank + 1) * 8 // world] for part in batch(step))
        optimizer.zero_grad()
        nn.functional.cross_entropy(wrapped(x), labels).backward()
        optimizer.step()
    freeze_batch_norms(wrapped)  # the helpers look through the wrapper
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    state["output"] = convert(wrapped).model(batch(9)[0]).detach()
    return state


def run(rank: int, folder: str, queue: Any) -> None:
    """Put this process's states into ``queue``, as lists."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD)
    try:
        found = {
            quantizer: {name: value.tolist() for name, value in learn(quantizer, rank, WORLD).items()}
            for quantizer in ("moving_average", "lsq+")
        }
        queue.put((rank, found))
    finally:
        torch.distributed.destroy_process_group()
