"""Small allocation problems with costs that are known: what the tests of allocations try everything on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from math import ceil

import numpy as np
import torch
from torch import nn

from slim_core.budget import parse_budget
from slim_core.graph import analyse
from slim_core.graph.types import Graph, Ref
from slim_prune.allocation.grid import grid
from slim_prune.allocation.problem import Choice, Problem
from slim_prune.context import Context
from slim_prune.costs import cost_models
from slim_prune.importance.aggregate import Tensors


class Chain(nn.Module):
    """Convolutions one after the other, the second and third in a residual block, and a linear head."""

    def __init__(self, widths: tuple[int, ...] = (16, 24, 32)) -> None:
        super().__init__()
        first, inner, last = widths
        self.a = nn.Conv2d(3, first, 3, padding=1)
        self.b = nn.Conv2d(first, inner, 3, padding=1)
        self.c = nn.Conv2d(inner, first, 3, padding=1)
        self.d = nn.Conv2d(first, last, 1)
        self.head = nn.Linear(last, 5)

    def forward(self, x):
        x = torch.relu(self.a(x))
        x = x + self.c(torch.relu(self.b(x)))
        return self.head(torch.relu(self.d(x)).mean((2, 3)))


INPUTS = (torch.linspace(-1, 1, 3 * 8 * 8).reshape(1, 3, 8, 8),)


class Staircase:
    """Milliseconds of a made-up runtime: work in square tiles of channels, a fixed part per operator, odd ones slow."""

    unit = "ms"

    def __init__(self, tile: int = 4) -> None:
        self.tile = tile
        self.asked = 0

    def total(self, graph: Graph) -> float:
        self.asked += 1
        time = 0.0
        for node in graph.nodes:
            weight = node.args.get("weight", node.args.get("mat2"))
            if isinstance(weight, Ref):
                shape = graph.values[weight.index].shape
                if len(shape) < 2:
                    continue
                out, into, inner = shape[0], shape[1], int(np.prod(shape[2:]))
                tiles = ceil(out / self.tile) * ceil(into / self.tile)
                time += 0.005 + 0.001 * inner * tiles + (0.003 if ceil(out / self.tile) % 2 else 0.0)
        return time


def model(widths: tuple[int, ...] = (16, 24, 32), seed: int = 0) -> Chain:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Chain(widths).eval()


def problem(
    budget: Mapping[str, float | str],
    *,
    net: nn.Module | None = None,
    round_to: int = 4,
    min_channels: int = 1,
    ratios: Mapping[str, float] | None = None,
    models: Mapping[str, object] | None = None,
) -> tuple[Problem, nn.Module]:
    net = net or model()
    coupling = analyse(net, INPUTS)
    choices = [
        Choice(group, grid(group, round_to=round_to, min_channels=min_channels), (ratios or {}).get(group.name))
        for group in coupling.groups
    ]
    bounds = parse_budget(budget)
    own = dict(models or {})
    known = cost_models([name for name in ("macs", "params", *(b.cost for b in bounds)) if name not in own])
    return Problem(coupling, choices, {**known, **own}, bounds), net


def context(prob: Problem, net: nn.Module, scores: Callable | None = None) -> Context:
    """A context whose scores are drawn once, of each group to another scale."""

    def drawn(group):
        rng = np.random.default_rng(sum(map(ord, group.name)))
        return rng.gamma(1.5, 1.0, group.units) * (1 + len(group.name))

    return Context(net, INPUTS, prob._coupling, Tensors(dict(net.state_dict())), scores or drawn)


def all_choices(prob: Problem) -> list[dict[str, int]]:
    names = [choice.name for choice in prob.choices]
    return [
        dict(zip(names, counts, strict=True))
        for counts in itertools.product(*(choice.counts for choice in prob.choices))
    ]
