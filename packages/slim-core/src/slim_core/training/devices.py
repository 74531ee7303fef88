"""The processes that share a run: one, or several through accelerate.

The model of several processes is plain data parallelism. Every process iterates over the same global batches and
works on its share of each, so order, augmentation and the number of steps are those of one process, and so is the
result, up to float error, for models whose samples do not see each other (batch norm's statistics are per process).
Launch with ``torchrun --nproc-per-node=2 …`` or ``accelerate launch …``; ``fit`` notices.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from slim_core.data import batch_size, map_tensors, slice_batch
from slim_core.extras import require


@dataclass(frozen=True, slots=True)
class Shard:
    """One process's share of a global batch.

    Args:
        batch: the share; never empty (a process without work repeats a sample, and ``counts`` says 0 for it).
        counts: samples of each process.
    """

    batch: Any
    counts: tuple[int, ...]


class Devices(Protocol):
    """What a run needs from the processes that share it."""

    device: torch.device
    rank: int
    world: int

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return what to call in the forward pass, so that gradients are averaged."""

    def shard(self, batch: Any) -> Shard:
        """Return this process's share of a global batch."""

    def gather(self, outputs: Any, shard: Shard) -> Any:
        """Return the outputs of the global batch, in order, from every process's share."""

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum of a scalar over the processes."""

    def synchronize(self, tensors: list[Tensor]) -> None:
        """Give every process the first one's values, in place."""

    def wait(self) -> None:
        """Wait for all processes."""


class OneDevice:
    """One process on one device."""

    rank, world = 0, 1

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def wrap(self, model: nn.Module) -> nn.Module:
        return model

    def shard(self, batch: Any) -> Shard:
        return Shard(batch, (batch_size(batch),))

    def gather(self, outputs: Any, shard: Shard) -> Any:
        return outputs

    def sum(self, value: Tensor) -> Tensor:
        return value

    def synchronize(self, tensors: list[Tensor]) -> None:
        pass

    def wait(self) -> None:
        pass


class AccelerateDevices:
    """Several processes, one device each, through ``accelerate.Accelerator``."""

    def __init__(self, *, cpu: bool) -> None:
        accelerate = require("accelerate", "slim-core[multi]")
        self._accelerator = accelerate.Accelerator(cpu=cpu)
        self._reduce = accelerate.utils.reduce
        self._broadcast = accelerate.utils.broadcast
        self.device: torch.device = self._accelerator.device
        self.rank: int = self._accelerator.process_index
        self.world: int = self._accelerator.num_processes

    def wrap(self, model: nn.Module) -> nn.Module:
        wrapped: nn.Module = self._accelerator.prepare_model(model)
        return wrapped

    def shard(self, batch: Any) -> Shard:
        counts = split(batch_size(batch), self.world)
        start = sum(counts[: self.rank])
        if counts[self.rank] == 0:
            return Shard(slice_batch(batch, 0, 1), counts)
        return Shard(slice_batch(batch, start, start + counts[self.rank]), counts)

    def gather(self, outputs: Any, shard: Shard) -> Any:
        most = max(shard.counts)

        def gathered(tensor: Tensor) -> Tensor:
            padded = tensor.new_zeros((most, *tensor.shape[1:]))
            own = shard.counts[self.rank]
            padded[:own] = tensor[:own]
            everyone: Tensor = self._accelerator.gather(padded)  # (world * most, …)
            parts = [everyone[rank * most : rank * most + count] for rank, count in enumerate(shard.counts)]
            return torch.cat(parts)

        return map_tensors(outputs, gathered)

    def sum(self, value: Tensor) -> Tensor:
        total: Tensor = self._reduce(value.detach().clone(), reduction="sum")
        return total

    def synchronize(self, tensors: list[Tensor]) -> None:
        for tensor in tensors:
            tensor.data.copy_(self._broadcast(tensor.detach().clone().contiguous(), from_process=0))

    def wait(self) -> None:
        self._accelerator.wait_for_everyone()


def split(samples: int, parts: int) -> tuple[int, ...]:
    """Return how many of ``samples`` each of ``parts`` gets: as equal as possible, the first ones more."""
    each, rest = divmod(samples, parts)
    return tuple(each + (part < rest) for part in range(parts))


def choose_devices(device: str | None, present: torch.device) -> Devices:
    """Return the devices of a run: several processes if a launcher started them, else one device.

    Args:
        device: what the configuration asks for.
        present: where the model is.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        cpu = device == "cpu" or not torch.cuda.is_available()
        return AccelerateDevices(cpu=cpu)
    if device is not None:
        return OneDevice(torch.device(device))
    if present.type == "cpu" and torch.cuda.is_available():
        return OneDevice(torch.device("cuda"))
    return OneDevice(present)
