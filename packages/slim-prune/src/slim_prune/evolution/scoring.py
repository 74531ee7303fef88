"""How good a candidate is: cut a copy, train it shortly if asked, measure its running statistics anew, evaluate it.

A copy is cut rather than masked: copying only what stays takes milliseconds, and the smaller model then runs through
hundreds of samples at its own cost, while a masked one would run at the full cost. Not here: in which process that
happens (``workers.py``).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from slim_core.data import batch_size, begin_epoch, check_reiterable, generator, generators_of, slice_batch
from slim_core.errors import DataError
from slim_core.modes import evaluating
from slim_core.training import fit
from slim_core.training.config import FitConfig
from slim_core.training.evaluate import evaluate
from slim_core.training.rng import kept_generators, seed_epoch
from slim_core.workload import DataSource, Inputs, Task, Workload, tensors_of
from slim_prune.edits import Edits
from slim_prune.errors import PlanError
from slim_prune.recalibration import recalibrate
from slim_prune.surgery import copy_and_operate

#: A user's own way of scoring: the pruned model in evaluation mode -> how good it is, more is better.
Judge = Callable[[nn.Module], float]
#: The name under which its figure stands.
JUDGED = "score"


class Batches:
    """Batches in memory whose order is a function of seed and epoch."""

    def __init__(self, batches: Sequence[Any], seed: int) -> None:
        self.batches, self.seed, self.epoch = list(batches), seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        order = torch.randperm(len(self.batches), generator=generator(self.seed, self.epoch)).tolist()
        return iter([self.batches[at] for at in order])


@dataclass(frozen=True, slots=True)
class Parts:
    """The samples of a search, in memory; no two parts share a sample, but ``calibration`` is part of ``training``.

    Args:
        holdout: what candidates are scored on.
        calibration: what running statistics are measured on.
        training: what short fine-tuning trains on.
        said: one line that says where the samples come from.
    """

    holdout: list[Any]
    calibration: list[Any]
    training: list[Any]
    said: str

    def digest(self) -> str:
        """Return what tells other data apart."""
        state = hashlib.sha256()
        for part in (self.holdout, self.calibration, self.training):
            for tensor in tensors_of(part):
                state.update(repr((tensor.dtype, tuple(tensor.shape))).encode())
                state.update(_bytes(tensor))
        return state.hexdigest()


def part(
    train: DataSource | None, val: DataSource | None, *, holdout: int, calibration: int, training: int, seed: int
) -> Parts:
    """Take the samples of a search: out of the training data, so that the validation data stays unseen.

    Args:
        train: training batches; taken without augmentation where the source knows how (``plain()``).
        val: validation batches: taken only where there is no training data, which the line then says.
        holdout: samples to score on.
        calibration: samples for running statistics; 0: none.
        training: samples for fine-tuning; 0: none.
        seed: of the order, where the source draws one.

    Raises:
        DataError: there is no data, or too little of it.
    """
    source, name = (train, "training") if train is not None else (val, "validation")
    if source is None:
        raise DataError("a search scores candidates on data, and there is none", hint="pass train=… and task=…")
    rest = max(calibration, training)
    batches = _take(source, holdout + rest, seed, name)
    samples = sum(batch_size(batch) for batch in batches)
    used = holdout if samples >= holdout + rest else min(holdout, max(1, samples // 2))
    if samples < 4 or (rest and samples - used < 2):
        raise DataError(f"the {name} data has {samples} samples, too few to search with", hint="give some hundreds")
    held, others = _split(batches, used)
    said = f"candidates were scored on {used:,} samples held out of the {name} data"
    if rest:
        said += f", {min(rest, samples - used):,} others were used to prepare them"
    if used < holdout or (rest and samples - used < rest):
        said += f" ({samples:,} are all that there are)"
    if train is None:
        said += "; there was no training data, so figures on the validation data are now too good"
    return Parts(held, _split(others, calibration)[0], _split(others, training)[0], said)


@dataclass(frozen=True, slots=True, eq=False)
class Scoring:
    """Everything that scoring needs; it travels to worker processes.

    Args:
        model: the model that candidates are cut from; it is never changed.
        example_inputs: its inputs.
        task: loss and metrics; unused where ``judge`` is given.
        parts: the samples.
        recalibrate: whether running statistics are measured anew.
        fit: short fine-tuning, or ``None``.
        seed: of fine-tuning.
        judge: scores the pruned model instead of task and held-out samples.
    """

    model: nn.Module
    example_inputs: Inputs
    task: Task | None
    parts: Parts
    recalibrate: bool
    fit: FitConfig | None
    seed: int
    judge: Judge | None = None

    def __call__(self, edits: Edits) -> dict[str, float | None]:
        """Return the figures of one candidate by name; ``None`` stands for what is not finite."""
        # whatever user code draws is the same for a candidate wherever and whenever it is scored
        with kept_generators():
            seed_epoch(self.seed, 0)
            figures = self._figures(copy_and_operate(self.model, edits))
        return {name: value if math.isfinite(value) else None for name, value in figures.items()}

    def _figures(self, pruned: nn.Module) -> Mapping[str, float]:
        if self.fit is not None:
            source = Batches(self.parts.training, self.seed)
            workload = Workload(pruned, self.example_inputs, task=self.task, train=source)
            config = self.fit.model_copy(update={"seed": self.seed if self.fit.seed is None else self.fit.seed})
            fit(workload, config, inplace=True)
        if self.recalibrate and self.parts.calibration:
            samples = sum(batch_size(batch) for batch in self.parts.calibration)
            recalibrate(pruned, self.parts.calibration, samples=samples, task=self.task)
        if self.judge is not None:
            with evaluating(pruned), torch.no_grad():
                return {JUDGED: float(self.judge(pruned))}
        assert self.task is not None  # noqa: S101 - seen to before the search
        return evaluate(pruned, self.task, self.parts.holdout)


def direction(task: Task | None, metric: str | None, judged: bool) -> tuple[str, bool]:
    """Return the name of the figure that decides, and whether more of it is better.

    Raises:
        PlanError: the task has no such metric.
    """
    if judged:
        return JUDGED, True
    assert task is not None  # noqa: S101
    name = metric or task.primary
    known = task.metrics()
    if name in known:
        return name, known[name].higher_is_better
    if name == "loss":
        return name, False
    raise PlanError(
        f"the task '{task.name}' has no metric '{name}'", where="metric", hint=f"it has: {', '.join([*known, 'loss'])}"
    )


def _take(source: DataSource, samples: int, seed: int, name: str) -> list[Any]:
    """Return up to ``samples`` samples. Of a list, batches drawn from its whole length: it may be sorted by class."""
    check_reiterable(source, name)
    source = source.plain() if hasattr(source, "plain") else source
    with kept_generators(*generators_of(source)):
        seed_epoch(seed, 0)
        begin_epoch(source, 0, seed)
        if isinstance(source, list | tuple) and source:
            source = [source[at] for at in torch.randperm(len(source), generator=generator(seed)).tolist()]
        taken: list[Any] = []
        missing = samples
        for batch in source:
            size = batch_size(batch)
            taken.append(batch if size <= missing else slice_batch(batch, 0, missing))
            missing -= min(size, missing)
            if not missing:
                break
    return taken


def _split(batches: Sequence[Any], samples: int) -> tuple[list[Any], list[Any]]:
    """Return the first ``samples`` samples and the rest, as batches."""
    first: list[Any] = []
    rest: list[Any] = []
    for batch in batches:
        size = batch_size(batch)
        here = min(size, samples)
        if here:
            first.append(batch if here == size else slice_batch(batch, 0, here))
        if here < size:
            rest.append(batch if not here else slice_batch(batch, here, size))
        samples -= here
    return first, rest


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
