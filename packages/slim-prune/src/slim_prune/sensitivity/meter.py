"""What is measured: one metric of the task, or its loss, over batches; sample by sample where the metric is a mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from slim_core.errors import SlimError, close_match
from slim_core.tasks import Mean
from slim_core.workload import Task

#: the name under which the task's loss is measured where it has no metric of that name
LOSS = "loss"


@dataclass(frozen=True, slots=True)
class Measure:
    """A metric of a task.

    Args:
        task: the task.
        metric: its name.
        higher_is_better: which direction is good.
        by_sample: whether it is a mean over samples, so that a part of the data gives an estimate.
    """

    task: Task
    metric: str
    higher_is_better: bool
    by_sample: bool

    @classmethod
    def of(cls, task: Task, metric: str | None = None) -> Measure:
        """Return what ``metric`` (default: the task's primary one) of ``task`` is.

        Raises:
            SlimError: the task has no such metric.
        """
        metrics = task.metrics()
        name = task.primary if metric is None else metric
        if name in metrics:
            return cls(task, name, bool(metrics[name].higher_is_better), isinstance(metrics[name], Mean))
        if name == LOSS:
            return cls(task, name, False, False)
        known = [*metrics, *([] if LOSS in metrics else [LOSS])]
        raise SlimError(
            f"task '{task.name}' has no metric '{name}'",
            hint=f"{close_match(name, known)} known: {', '.join(known)}".strip(),
        )

    def meter(self) -> Meter:
        return Meter(self)

    def margins(self, outputs: Any, batch: Any) -> NDArray[np.float64] | None:
        """Return by how much each sample counts 1 (above 0) or 0, ``(N,)``; ``None``: the metric does not tell."""
        margins = getattr(self.task.metrics().get(self.metric), "margins", None)
        found = margins(outputs, batch) if margins is not None else None
        return None if found is None else found.detach().double().cpu().reshape(-1).numpy()


class Meter:
    """Adds up a metric over batches."""

    def __init__(self, measure: Measure) -> None:
        self._measure = measure
        self._metric: Any = measure.task.metrics().get(measure.metric)
        self._sum = 0.0
        self.samples = 0
        self._rows: list[NDArray[np.float64]] = []
        if measure.by_sample:
            self._listen(self._metric)

    def _listen(self, metric: Any) -> None:
        add = metric.add

        def listening(values: Tensor) -> None:
            self._rows.append(values.detach().double().cpu().reshape(-1).numpy())
            add(values)

        vars(metric)["add"] = listening

    def update(self, outputs: Any, batch: Any, size: int) -> NDArray[np.float64]:
        """Add a batch. Returns the figure of each of its samples, ``(size,)``; empty where there is none."""
        self.samples += size
        if self._metric is None:
            self._sum += float(self._measure.task.loss(outputs, batch)) * size
            return np.zeros(0)
        self._rows.clear()
        self._metric.update(outputs, batch)
        rows = np.concatenate(self._rows) if self._rows else np.zeros(0)
        return rows if len(rows) == size else np.zeros(0)

    def value(self) -> float:
        if self._metric is None:
            return self._sum / self.samples if self.samples else float("nan")
        return float(self._metric.compute())
