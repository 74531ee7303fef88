"""The plain way of measuring, as an oracle: for every point a pruned copy, run over every batch; and small subjects."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from slim_core.graph import analyse
from slim_core.modes import evaluating
from slim_core.tasks import Mean
from slim_core.workload import call, tensors_of
from slim_prune.edits import edits_of, state_of
from slim_prune.importance.magnitude import l1
from slim_prune.surgery import copy_and_operate


class Energy(Mean):
    """The mean square of a sample's outputs."""

    def __init__(self) -> None:
        super().__init__(higher_is_better=False)

    def update(self, outputs: Any, batch: Any) -> None:
        first = tensors_of(outputs)[0].detach()
        self.add(first.double().reshape(len(first), -1).square().mean(1))


class EnergyTask:
    """Measures outputs of any kind; batches are tuples of inputs."""

    name = "energy"
    primary = "energy"

    def inputs(self, batch: Any) -> Any:
        return batch

    def loss(self, outputs: Any, batch: Any) -> torch.Tensor:
        return tensors_of(outputs)[0].square().mean()

    def metrics(self) -> dict[str, Any]:
        return {"energy": Energy()}


def batches_like(inputs: Any, count: int = 2, seed: int = 0) -> list[Any]:
    """Return batches of the shapes of example inputs, with other numbers in them."""
    generator = torch.Generator().manual_seed(seed)

    def other(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_floating_point():
            return torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
        flat = tensor.reshape(-1)
        return flat[torch.randint(0, len(flat), flat.shape, generator=generator)].reshape(tensor.shape)

    if isinstance(inputs, Mapping):
        return [{name: other(tensor) for name, tensor in inputs.items()} for _ in range(count)]
    return [tuple(other(tensor) for tensor in inputs) for _ in range(count)]


def plain_values(
    model: nn.Module, inputs: Any, task: Any, data: Iterable[Any], metric: str, keys: Iterable[tuple[str, int]]
) -> dict[tuple[str, int], float]:
    """Return the metric of pruned copies, one after the other: the plain way."""
    coupling = analyse(model, inputs)
    tensors = {name: tensor.detach() for name, tensor in state_of(model).items()}
    values = {}
    for name, kept in keys:
        scores = l1(coupling.group(name), tensors).numpy()
        best = np.sort(np.argsort(-scores, kind="stable")[:kept])
        pruned = copy_and_operate(model, edits_of(model, coupling, {name: best}))
        accumulator, total, samples = task.metrics().get(metric), 0.0, 0
        with evaluating(pruned), torch.no_grad():
            for batch in data:
                outputs = call(pruned, task.inputs(batch))
                if accumulator is None:
                    size = len(tensors_of(batch)[0])
                    total, samples = total + float(task.loss(outputs, batch)) * size, samples + size
                else:
                    accumulator.update(outputs, batch)
        values[name, kept] = total / samples if accumulator is None else float(accumulator.compute())
    return values


def points_of(*drops: tuple[int, float]) -> dict[int, float]:
    return dict(drops)
