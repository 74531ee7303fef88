"""Cost models for budgets: ``latency:<device>``, the milliseconds of one forward pass on a device that has a table.

A query costs well under a millisecond: what an architecture's operators become on the runtime is worked out once, and
each kernel's time is remembered by its shapes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar

from slim_core.graph.types import Graph, Value
from slim_latency.lowering import Plan, Shape, Signature, key_of
from slim_latency.predict.estimate import Estimate, Predictor
from slim_latency.table import DeviceTable, TableError, read_table

#: architectures that are remembered at a time
_PLANS = 16
_DTYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "float64": "f64"}


class LatencyCost:
    """Milliseconds of one forward pass of the recorded batch.

    Args:
        table: of the device; one that was made with onnxruntime.

    Raises:
        TableError: the table has no kernels of a runtime whose fusion is known.
    """

    unit: str = "ms"
    runtimes: ClassVar[tuple[str, ...]] = ("onnxruntime", "paddleslim")

    def __init__(self, table: DeviceTable) -> None:
        name = table.header.get("runtime", {}).get("name")
        if name not in self.runtimes:
            raise TableError(
                f"the table of '{table.name}' is of {name}: cost models are made of tables of "
                f"{', '.join(self.runtimes)}"
            )
        self.table = table
        self.predictor = Predictor.of(table)
        settings = table.header.get("settings", {})
        self._block = int(table.header.get("layout_block", 0)) if settings.get("level", "all") == "all" else 0
        self._plans: list[Plan] = []
        self._micros: dict[Signature, float] = {}

    def total(self, graph: Graph) -> float:
        """Return milliseconds. Operators that nothing is known about count as what moves the same bytes would: never as
        nothing; :meth:`estimate` names them.
        """
        plan = self._plan(graph)
        return self._ms(plan, [value.shape for value in graph.values], graph)

    def totals(self, graphs: Iterable[Graph]) -> list[float]:
        """Return the milliseconds of many graphs; kernels that are new are predicted in one go."""
        waiting = [(self._plan(graph), [value.shape for value in graph.values], graph) for graph in graphs]
        self._learn({made for plan, shapes, _ in waiting for made in plan.signatures(shapes, self._block)})
        return [self._ms(*item) for item in waiting]

    def total_of_shapes(self, graph: Graph, shapes: Sequence[Shape]) -> float:
        """Return the milliseconds of ``graph`` with other shapes of its values (``slim_core.graph.resize.new_sizes``):
        the quickest way to ask about one more width.
        """
        return self._ms(self._plan(graph), shapes, graph)

    def estimate(self, graph: Graph) -> Estimate:
        """Return the whole estimate: interval, sources, and what is unknown."""
        from slim_core.graph.cost import count_macs

        plan = self._plan(graph)
        made = plan.signatures([value.shape for value in graph.values], self._block)
        keys = [key_of(signature) for signature in made]
        return self.predictor.estimate(keys, count_macs(graph), partial=plan.unknown)

    def _ms(self, plan: Plan, shapes: Sequence[Shape], graph: Graph) -> float:
        made = plan.signatures(shapes, self._block)
        known = self._micros
        try:
            micros: float = sum([known[signature] for signature in made])
        except KeyError:
            self._learn(set(made))
            micros = sum([known[signature] for signature in made])
        total = self.predictor.scaled_ms(micros, len(made))
        return float(total + self._unknown_ms(plan, shapes) if plan.unknown else total)

    def _learn(self, made: set[Signature]) -> None:
        new = sorted(signature for signature in made if signature not in self._micros)
        if new:
            times = self.predictor.micros([key_of(signature) for signature in new])
            self._micros.update(zip(new, times.tolist(), strict=True))

    def _unknown_ms(self, plan: Plan, shapes: Sequence[Shape]) -> float:
        keys = []
        for step in plan.steps:
            if step.kind == "unknown":
                inputs = tuple(shapes[index] for index in step.inputs)
                keys.append(key_of((step.op, (), inputs, shapes[step.output])))
        return float(self.predictor.factor * self.predictor.roofline(keys).sum() / 1e3)

    def _plan(self, graph: Graph) -> Plan:
        for position, plan in enumerate(self._plans):
            if plan.fits(graph):
                if position:
                    self._plans.insert(0, self._plans.pop(position))
                return plan
        plan = Plan(graph)
        self._plans.insert(0, plan)
        del self._plans[_PLANS:]
        return plan


def load_cost(path: Path) -> LatencyCost:
    """Return the cost model of a table file."""
    return LatencyCost(read_table(path))


def dtype_of(value: Value) -> str:
    """Return a value's dtype as keys write it."""
    return _DTYPES.get(value.dtype, value.dtype)
