"""Models, tasks and brute-force references for the tests of criteria that look at data."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slim_core.graph import ChannelGroup, Member, analyse
from slim_core.workload import call, tensors_of
from slim_prune import importance as importances
from slim_prune.context import Context
from slim_prune.edits import state_of
from slim_prune.importance.aggregate import Tensors


class Joined(nn.Module):
    """A residual add, a concat, a grouped convolution, attention with heads, a flatten, and a raw parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.back = nn.Conv2d(8, 8, 1, bias=False)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.raw = nn.Parameter(torch.randn(6, 8, 1, 1))
        self.qkv = nn.Linear(14, 24)
        self.out = nn.Linear(8, 12)
        self.head = nn.Linear(12 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))  # (N, 8, 4, 4)
        x = torch.relu_(x + self.back(x))
        left, right = F.gelu(self.grouped(x)), F.relu(F.conv2d(x, self.raw))
        x = torch.cat([left, right], 1)  # (N, 14, 4, 4)
        tokens = x.flatten(2).transpose(1, 2)  # (N, 16, 14)
        q, k, v = (t.unflatten(2, (-1, 2)).transpose(1, 2) for t in self.qkv(tokens).chunk(3, 2))
        tokens = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # (N, 16, 8)
        tokens = torch.relu(self.out(tokens))
        return self.head(tokens.transpose(1, 2).flatten(1))


class Squares:
    """Half the mean square of the difference to the targets, over samples."""

    name = "squares"
    primary = "loss"

    def inputs(self, batch: Any) -> tuple[Tensor, ...]:
        return (batch[0],)

    def loss(self, outputs: Any, batch: Any) -> Tensor:
        (out,) = tensors_of(outputs)
        return 0.5 * (out - batch[1]).square().sum() / len(out)

    def metrics(self) -> dict[str, Any]:
        return {}


class First(Squares):
    """The mean over samples of the first output, or of a given combination: linear in the outputs."""

    def __init__(self, weights: Tensor | None = None) -> None:
        self.weights = weights

    def loss(self, outputs: Any, batch: Any) -> Tensor:
        (out,) = tensors_of(outputs)
        return (out[:, 0] if self.weights is None else out @ self.weights).mean()


def joined(seed: int = 0) -> Joined:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Joined()
        with torch.no_grad():
            model.norm.running_mean.normal_(0, 0.2)
            model.norm.running_var.uniform_(0.5, 1.5)
            model.norm.weight.uniform_(0.5, 1.5)
            model.norm.bias.normal_(0, 0.2)
    return model.eval()


def data(batches: int = 3, size: int = 4, shape: tuple[int, ...] = (3, 4, 4), outputs: int = 5) -> list[Any]:
    generator = torch.Generator().manual_seed(7)
    return [
        (torch.randn(size, *shape, generator=generator), torch.randn(size, outputs, generator=generator))
        for _ in range(batches)
    ]


def context(model: nn.Module, train: Any, task: Any = None, **other: Any) -> Context:
    example_inputs = other.pop("example_inputs", None)
    if example_inputs is None:
        example_inputs = (next(iter(train))[0][:2],)
    coupling = analyse(model, example_inputs)
    tensors = Tensors({name: tensor.detach() for name, tensor in state_of(model).items()})

    def no_score(group: ChannelGroup) -> Any:
        raise AssertionError("a criterion must not ask for its own scores")

    return Context(model, example_inputs, coupling, tensors, no_score, task or Squares(), train, **other)


def scores(criterion: Any, ctx: Context) -> dict[str, np.ndarray]:
    """Prepare a criterion and score every group."""
    label, criterion = importances.resolve(criterion)
    function = criterion.prepare(ctx) if hasattr(criterion, "prepare") else criterion
    return {group.name: importances.score(label, function, group, ctx.tensors) for group in ctx.coupling.groups}


def gradients(model: nn.Module, task: Any, batch: Any) -> dict[str, Tensor]:
    """Gradients of the loss by plain ``backward`` on a copy, in double precision."""
    model = copy.deepcopy(model).double()
    batch = tuple(t.double() if t.is_floating_point() else t for t in batch)
    task.loss(call(model, task.inputs(batch)), batch).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def unit_parts(group: ChannelGroup, values: dict[str, Tensor]) -> list[list[list[float]]]:
    """All numbers that each unit has in each member: ``[unit][member]`` is a list. Index by index."""
    present = [member for member in group.members if member.name in values]
    return [[_of_unit(values[member.name], member, unit) for member in present] for unit in range(group.units)]


def _of_unit(tensor: Tensor, member: Member, unit: int) -> list[float]:
    return [x for i in member.indices[unit] for x in tensor.select(member.dim, int(i)).reshape(-1).tolist()]


def by_hand(
    ctx: Context, passes: list[tuple[int, dict[str, Tensor]]], joint: str, function: Callable[[float], float]
) -> dict[str, np.ndarray]:
    """The mean over passes of ``function`` of gradient times weight, joined as asked, summed over members."""
    result = {}
    total = sum(samples for samples, _ in passes)
    for group in ctx.coupling.groups:
        sums = np.zeros(group.units)
        for samples, found in passes:
            products = {name: gradient * ctx.tensors[name].double() for name, gradient in found.items()}
            for unit, members in enumerate(unit_parts(group, products)):
                if joint == "group":
                    value = function(sum(sum(member) for member in members))
                elif joint == "member":
                    value = sum(function(sum(member)) for member in members)
                else:
                    value = sum(function(x) for member in members for x in member)
                sums[unit] += samples * value
        result[group.name] = sums / total
    return result
