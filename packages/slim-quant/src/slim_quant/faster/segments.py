"""Which parts of a network lose time in integers, from the profiles of its float file and of its quantized one.

A segment is a layer with a weight (or a product of activations) and what follows it up to the next one. Profiles name
their kernels as the runtime pleases, but both run the layers in the order of the graph: the n-th convolution or product
of a profile is the n-th of the graph. Where the numbers differ, nothing is concluded.

The choice is made on a chain: each segment in integers or in float, and a price where neighbours differ. It is a guess
of what to try; what is kept is decided by timing whole files.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, fx

from slim_core.graph.export import ExportedModel
from slim_quant.graph import op_name
from slim_quant.placement import quantizable
from slim_quant.runtimes import Kernel
from slim_quant.targets import Target

#: kernels that a segment begins with
HEAVY = re.compile(
    r"(Fused|QLinear|Q|DynamicQuantize)?(Conv|ConvTranspose|Gemm|MatMul)(Integer)?(ToFloat)?(NBits)?\b"
    r"|(Convolution|GroupConvolution|Deconvolution|FullyConnected|MatMul)\b"
)
CASTS = re.compile(r"(Q|Deq|DynamicQ)uantizeLinear\b|FakeQuantize\b|Convert\b")
#: microseconds of a conversion between float and integers where a profile has none
CAST_US = 3.0


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of the graph.

    Args:
        layer: the node that it begins with.
        nodes: nodes in it that can be quantized.
        values: how many values one sample has where it begins.
    """

    layer: str
    nodes: tuple[str, ...]
    values: int


def segments_of(graph: ExportedModel, target: Target) -> tuple[Segment, ...]:
    """Return the segments of a float graph, in the order of the forward."""
    able = set(quantizable(graph, target))
    starts = target.weighted | target.matmul
    rows: list[tuple[fx.Node, list[str]]] = []
    early: list[str] = []
    for node in graph.graph.nodes:
        if op_name(node) in starts:
            rows.append((node, [*early, node.name] if not rows else [node.name]))
        elif node in able:
            (rows[-1][1] if rows else early).append(node.name)
    return tuple(Segment(node.name, tuple(names), _values(node.args[0])) for node, names in rows)


def times_of(kernels: Sequence[Kernel], segments: int) -> list[float] | None:
    """Return the microseconds of each segment; ``None``: the profile does not have that many layers."""
    times: list[float] = []
    before = 0.0
    for kernel in kernels:
        if HEAVY.match(kernel.op):
            times.append(kernel.us + before)
            before = 0.0
        elif times:
            times[-1] += kernel.us
        else:
            before += kernel.us
    return times if len(times) == segments and segments else None


def cast_us(kernels: Sequence[Kernel]) -> float:
    """Return the microseconds of one conversion between float and integers, on average."""
    found = [kernel.us for kernel in kernels if CASTS.match(kernel.op)]
    return sum(found) / len(found) if found else CAST_US


def cheapest(
    plain: Sequence[float], integers: Sequence[float], casts: Sequence[float], doubt: float = 1.0
) -> list[bool]:
    """Return for each segment whether it is cheaper in integers.

    Args:
        plain: time of each segment in float.
        integers: in integers.
        casts: time of the conversion in front of each segment, where it differs from the one before.
        doubt: times in integers are multiplied by this: above 1 a segment must win clearly. Ties go to float.
    """
    if not plain:
        return []
    costs = [[time, other * doubt] for time, other in zip(plain, integers, strict=True)]
    best = [costs[0][0], casts[0] + costs[0][1]]  # inputs are float
    links: list[tuple[int, int]] = []
    for place in range(1, len(costs)):
        step = []
        picks = []
        for state in (0, 1):
            ways = [best[other] + (casts[place] if other != state else 0.0) for other in (0, 1)]
            pick = 0 if ways[0] <= ways[1] else 1
            picks.append(pick)
            step.append(ways[pick] + costs[place][state])
        best = step
        links.append((picks[0], picks[1]))
    state = 0 if best[0] <= best[1] else 1
    chosen = [state]
    for link in reversed(links):
        state = link[state]
        chosen.append(state)
    return [bool(item) for item in reversed(chosen)]


def _values(node: object) -> int:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    total = 1
    for size in value.shape[1:] if isinstance(value, Tensor) else ():
        total *= int(size) if isinstance(size, int) else 1
    return total
