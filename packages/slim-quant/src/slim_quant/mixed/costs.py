"""What a unit costs at a choice of bits: bytes of a checkpoint, bit operations, or milliseconds that were measured.

A cost is a table: unit -> choice -> figure; what no choice changes is a constant beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from slim_core.errors import BudgetError, SlimError, close_match
from slim_core.graph.export import ExportedModel
from slim_quant.bits import FLOAT, Bits
from slim_quant.graph import get_tensor
from slim_quant.schemes import Scheme, scale_shape
from slim_quant.units import Unit

KNOWN = ("bytes", "bitops")


@dataclass(frozen=True, slots=True)
class Costs:
    """A cost of each unit at each choice.

    Args:
        name: what is counted.
        table: unit -> name of the bits, or ``"float"`` -> figure.
        rest: what everything else costs.
    """

    name: str
    table: Mapping[str, Mapping[str, float]]
    rest: float = 0.0

    def total(self, assignment: Mapping[str, str]) -> float:
        """Return the cost of the whole model."""
        return self.rest + sum(self.table[unit][choice] for unit, choice in assignment.items())

    @property
    def original(self) -> float:
        """Return the cost of the float model."""
        return self.rest + sum(row[FLOAT] for row in self.table.values())


def costs_of(
    name: str, graph: ExportedModel, units: Sequence[Unit], bits: Sequence[Bits],
    measured: Mapping[str, Mapping[str, float]] | None = None,
) -> Costs:  # fmt: skip
    """Return the cost called ``name``.

    Args:
        name: ``"bytes"`` of a checkpoint; ``"bitops"``: multiply-accumulates times bits of weight and activation; any
            other name needs ``measured``.
        graph: the float graph.
        units: what is chosen for.
        bits: the choices beside float.
        measured: unit -> choice -> figure, ``"float"`` among the choices; ``""`` -> ``"float"`` is the rest.

    Raises:
        SlimError: an unknown cost, or figures that do not cover the units.
    """
    if measured is not None:
        wanted = {FLOAT, *(item.name for item in bits)}
        for unit in units:
            missing = wanted - set(measured.get(unit.name, {}))
            if missing:
                raise SlimError(f"the cost '{name}' says nothing about {unit.name} at {', '.join(sorted(missing))}")
        rest = float(measured.get("", {}).get(FLOAT, 0.0))
        return Costs(name, {unit.name: {key: float(value) for key, value in measured[unit.name].items()}
                            for unit in units}, rest)  # fmt: skip
    if name == "bytes":
        table = {unit.name: _bytes(graph, unit, bits) for unit in units}
        total = sum(tensor.numel() * tensor.element_size() for tensor in _tensors(graph))
        return Costs(name, table, total - sum(row[FLOAT] for row in table.values()))
    if name == "bitops":
        table = {
            unit.name: {FLOAT: float(unit.macs * 32 * 32)}
            | {item.name: float(unit.macs * item.weight.bits * item.activation.bits) for item in bits}
            for unit in units
        }
        return Costs(name, table)
    raise BudgetError(
        f"there is no cost '{name}' for choosing bits", where="budget",
        hint=f"{close_match(name, KNOWN)} known: {', '.join(KNOWN)}; pass measured figures as costs=".strip(),
    )  # fmt: skip


def stored_bytes(count: int, shape: tuple[int, ...], scheme: Scheme, axis: int = 0) -> int:
    """Return the bytes of a quantized weight in a checkpoint: integers, two to a byte up to 4 bits, and scales.

    Args:
        count: values.
        shape: of the weight.
        scheme: its scheme.
        axis: of its output channels.
    """
    along = 1 if scheme.granularity == "per_group" else axis  # groups lie along the inputs
    scales = 1
    for size in scale_shape(shape, scheme, along):
        scales *= size
    integers = (count + 1) // 2 if scheme.bits <= 4 and scheme.symmetric else count
    return integers + 4 * scales * (1 if scheme.symmetric else 2)


def _bytes(graph: ExportedModel, unit: Unit, bits: Sequence[Bits]) -> dict[str, float]:
    weights = [get_tensor(graph, name) for name in unit.weights]
    axis = 1 if unit.op == "conv_transpose" else 0
    row = {FLOAT: float(sum(tensor.numel() * tensor.element_size() for tensor in weights))}
    for item in bits:
        row[item.name] = float(sum(stored_bytes(w.numel(), tuple(w.shape), item.weight, axis) for w in weights))
    return row


def _tensors(graph: ExportedModel) -> list:  # type: ignore[type-arg]
    named = [*graph.named_parameters(), *graph.named_buffers()]  # tied ones once
    return [tensor for name, tensor in named if name in graph.state_dict()]
