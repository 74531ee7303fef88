"""Builds models of mixed precision for real, and measures them on all of the validation data."""

from __future__ import annotations

import glob
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from slim_core.progress import Progress
from slim_core.training.evaluate import evaluate
from slim_core.workload import DataSource, Task
from slim_quant.bits import FLOAT, Bits
from slim_quant.overrides import Override
from slim_quant.result import QuantResult
from slim_quant.units import Unit

#: a model may be this much worse than the goal says: rounding of the metric, not more
EPS = 1e-9


@dataclass(frozen=True, slots=True)
class Trial:
    """A model that was measured on the way.

    Args:
        label: what it is.
        cost: of the model.
        metric: measured, or ``None`` where nothing was.
        drop: against the float model.
        built: whether it was quantized and evaluated as a whole; otherwise its quantizers were switched on in the float
            graph.
    """

    label: str
    cost: float
    metric: float | None
    drop: float | None
    built: bool


@dataclass(frozen=True, slots=True)
class Settings:
    """What ``quantize`` is given for an assignment.

    Args:
        overrides: bits of units that differ from the rest.
        skip: patterns of what stays in float.
    """

    overrides: tuple[Override, ...]
    skip: tuple[str, ...]


def settings_of(assignment: Mapping[str, str], units: Sequence[Unit], bits: Sequence[Bits]) -> Settings:
    """Return the settings of an assignment; units with the last of ``bits`` need none.

    Later overrides win where layers share a value, so those with more bits come last.
    """
    by_name = {item.name: item for item in bits}
    overrides, skip = [], []
    for item in sorted(by_name.values(), key=lambda item: item.key):
        for unit in units:
            if assignment[unit.name] == item.name and item is not bits[-1]:
                overrides += [
                    Override(match=name, weight=item.weight, activation=item.activation) for name in _names(unit)
                ]
    for unit in units:
        if assignment[unit.name] == bits[-1].name and any(item.activation != bits[-1].activation for item in bits):
            overrides += [Override(match=name, activation=bits[-1].activation) for name in _names(unit)]
        if assignment[unit.name] == FLOAT:
            skip += _names(unit)
    return Settings(tuple(overrides), tuple(dict.fromkeys(skip)))


class Judge:
    """Builds and measures.

    Args:
        model: the float model.
        task: measures, or ``None``.
        val: on what, or ``None``.
        metric: name of the metric, or ``None``.
        higher_is_better: its direction.
        build: makes a quantized model with settings.
        units: the units of assignments.
        bits: the choices.
        progress: where to report to.
    """

    def __init__(
        self, model: nn.Module, task: Task | None, val: DataSource | None, metric: str | None, higher_is_better: bool,
        build: Callable[[Settings], QuantResult], units: Sequence[Unit], bits: Sequence[Bits], progress: Progress,
    ) -> None:  # fmt: skip
        self._model, self._task, self._val, self._metric = model, task, val, metric
        self._higher, self._build, self._units, self._bits = higher_is_better, build, units, bits
        self._progress = progress
        self._built: dict[tuple[str, ...], QuantResult | None] = {}
        self._measured: dict[tuple[str, ...], float | None] = {}

    def before(self) -> float | None:
        """Return the float model's metric."""
        if () not in self._measured:
            self._measured[()] = self._figure(self._model)
        return self._measured[()]

    def result(self, assignment: Mapping[str, str]) -> QuantResult | None:
        """Return the quantized model; ``None``: everything stays in float."""
        key = self._key(assignment)
        if key not in self._built:
            self._built.clear()  # one at a time: models are large
            everything = all(choice == FLOAT for choice in assignment.values())
            self._built[key] = None if everything else self._build(self.settings(assignment))
        return self._built[key]

    def settings(self, assignment: Mapping[str, str]) -> Settings:
        return settings_of(assignment, self._units, self._bits)

    def metric_of(self, assignment: Mapping[str, str]) -> float | None:
        """Return the metric of the built model, measured on all data."""
        key = self._key(assignment)
        if key not in self._measured:
            result = self.result(assignment)
            self._measured[key] = self.before() if result is None else self._figure(result.model)
        return self._measured[key]

    def drop_of(self, assignment: Mapping[str, str]) -> float | None:
        """Return by how much the built model is worse than the float one."""
        before, after = self.before(), self.metric_of(assignment)
        if before is None or after is None:
            return None
        return before - after if self._higher else after - before

    def limit(self, max_drop: float) -> float:
        """Return ``max_drop`` in the metric's unit: points are hundredths where the metric is a share."""
        before = self.before()
        share = self._higher and before is not None and 0 <= before <= 1
        return max_drop / 100 if share else max_drop

    def _figure(self, model: nn.Module) -> float | None:
        if self._task is None or self._val is None or self._metric is None:
            return None
        return evaluate(model, self._task, self._val, progress=self._progress)[self._metric]

    def _key(self, assignment: Mapping[str, str]) -> tuple[str, ...]:
        return tuple(assignment[unit.name] for unit in self._units)


def _names(unit: Unit) -> list[str]:
    """Return patterns that mean this unit's nodes."""
    return [glob.escape(name) for name in ([unit.name] if unit.weights and len(unit.nodes) == 1 else unit.nodes)]
