"""What a model's outputs are worth: SQNR against the float model's, and a metric of the task, over batches."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from slim_core.data import batch_size
from slim_core.errors import DataError, SlimError, close_match
from slim_core.workload import DataSource, Task, tensors_of
from slim_quant.calibration import CalibrationData, some_samples
from slim_quant.diff.sums import decibels
from slim_quant.sensitivity.engine import Lane, Program, float_outputs

#: the name under which the task's loss is measured where it has no metric of that name
LOSS = "loss"


@dataclass(frozen=True, slots=True)
class Figures:
    """What one model is worth.

    Args:
        sqnr_db: of its outputs against the float model's, at most 200; ``None`` where there is no signal.
        metric: the metric, or ``None``.
    """

    sqnr_db: float | None
    metric: float | None


class Evaluation:
    """The samples that models are judged on.

    Args:
        batches: batches of ``val``, or of inputs where there is no task.
        task: how they split and what is measured, or ``None``: SQNR only.
        metric: name of the metric; ``None``: the task's primary one.
        samples: use the first so many only; ``None``: all.

    Raises:
        DataError: there is no batch.
        SlimError: the task has no such metric.
    """

    def __init__(
        self, batches: DataSource | CalibrationData, task: Task | None, metric: str | None = None,
        samples: int | None = None,
    ) -> None:  # fmt: skip
        self.task = task
        self.metric = metric_name(task, metric)
        found = task.metrics().get(self.metric) if task is not None and self.metric is not None else None
        self.higher_is_better = bool(found.higher_is_better) if found is not None else False
        self.batches: list[Any] = []
        self.samples = 0
        for batch in batches:
            if samples is not None and self.samples >= samples:
                break
            size = batch_size(batch)
            if samples is not None and size > samples - self.samples:
                batch, size = some_samples(batch, 0, samples - self.samples), samples - self.samples
            self.batches.append(batch)
            self.samples += size
        if not self.batches:
            raise DataError("there is nothing to evaluate on: the data gives no batch")

    @property
    def identity(self) -> str:
        """A hash of all samples."""
        return digest(tensor for batch in self.batches for tensor in tensors_of(batch))

    def inputs(self) -> list[Any]:
        """Return what the model's forward takes, batch by batch."""
        return [batch if self.task is None else self.task.inputs(batch) for batch in self.batches]

    def judge(self, outputs: Iterable[Any], references: References) -> Figures:
        """Return what outputs, one for each batch, are worth."""
        signal = noise = 0.0
        meter = Meter(self.task, self.metric) if self.task is not None and self.metric is not None else None
        for batch, output, reference in zip(self.batches, outputs, references, strict=True):
            for one, other in zip(reference, float_outputs(output), strict=True):
                signal += float(one.double().square().sum())
                noise += float((one.double() - other.double()).square().sum())
            if meter is not None:
                meter.update(output, batch)
        return Figures(decibels(signal, noise), None if meter is None else meter.value())


class References:
    """The float model's outputs for each batch: kept, or made again where they are too large.

    Args:
        program: the float model.
        inputs: what its forward takes, batch by batch.
        memory: bytes that may be kept.
    """

    def __init__(self, program: Program, inputs: list[Any], memory: int) -> None:
        self._program, self._inputs, self._memory = program, inputs, memory
        self._kept: list[list[Tensor] | None] = [None] * len(inputs)
        self._held = 0

    def __iter__(self) -> Iterator[list[Tensor]]:
        for number in range(len(self._inputs)):
            yield self._of(number)

    def _of(self, number: int) -> list[Tensor]:
        kept = self._kept[number]
        if kept is None:
            with torch.no_grad():
                kept = float_outputs(Lane(self._program, self._inputs[number], {}).output())
            size = sum(tensor.nbytes for tensor in kept)
            if self._held + size <= self._memory:
                self._kept[number] = kept
                self._held += size
        return kept


class Meter:
    """Adds up a metric of a task, or its loss."""

    def __init__(self, task: Task, name: str) -> None:
        self._task = task
        self._metric = task.metrics().get(name)
        self._sum, self._samples = 0.0, 0

    def update(self, outputs: Any, batch: Any) -> None:
        if self._metric is not None:
            self._metric.update(outputs, batch)
        else:
            size = batch_size(batch)
            self._sum += float(self._task.loss(outputs, batch)) * size
            self._samples += size

    def value(self) -> float:
        return float(self._metric.compute()) if self._metric is not None else self._sum / max(self._samples, 1)


def metric_name(task: Task | None, metric: str | None) -> str | None:
    """Return the name of the metric that is measured.

    Raises:
        SlimError: the task has no such metric, or there is no task.
    """
    if task is None:
        if metric is not None:
            raise SlimError(f"metric '{metric}' needs a task and data with targets", hint="pass task= and val=")
        return None
    known = [*task.metrics(), LOSS]
    name = task.primary if metric is None else metric
    if name not in known:
        hint = f"{close_match(name, known)} known: {', '.join(dict.fromkeys(known))}".strip()
        raise SlimError(f"task '{task.name}' has no metric '{name}'", hint=hint)
    return name


def digest(tensors: Iterable[Tensor]) -> str:
    """Return the sha256 over shapes, dtypes and values."""
    total = hashlib.sha256()
    for tensor in tensors:
        plain = tensor.detach().cpu().contiguous()
        total.update(f"{plain.dtype} {tuple(plain.shape)}\n".encode())
        total.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def as_json(figures: Figures) -> Mapping[str, float | None]:
    return {"sqnr_db": figures.sqnr_db, "metric": figures.metric}
