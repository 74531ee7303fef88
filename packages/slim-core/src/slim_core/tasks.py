"""The task that core brings: classification. Others come from plugins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from slim_core.errors import DataError, SlimError
from slim_core.workload import Inputs, Metric

#: Where a mapping batch keeps its targets, in the order of looking.
TARGET_KEYS = ("labels", "label", "targets", "target")


class Mean:
    """A mean over samples. ``compute`` gives NaN before the first update."""

    def __init__(self, *, higher_is_better: bool) -> None:
        self.higher_is_better = higher_is_better
        self._sum, self._count = 0.0, 0

    def add(self, values: Tensor) -> None:
        """Add one figure per sample."""
        self._sum += float(values.double().sum())
        self._count += values.numel()

    def compute(self) -> float:
        return self._sum / self._count if self._count else float("nan")


class TopK(Mean):
    """The share of samples whose class is among the ``k`` largest outputs, from 0 to 1."""

    def __init__(self, task: ClassificationTask, k: int) -> None:
        super().__init__(higher_is_better=True)
        self.task, self.k = task, k

    def update(self, outputs: Any, batch: Any) -> None:
        logits, targets = logits_of(outputs).detach(), self.task.targets(batch)
        if targets.is_floating_point():
            targets = targets.argmax(1)
        best = logits.float().topk(min(self.k, logits.shape[1]), 1).indices  # (N, k)
        self.add((best == targets.to(best.device)[:, None]).any(1))

    def margins(self, outputs: Any, batch: Any) -> Tensor | None:
        """Return how far each sample is from counting otherwise, ``(N,)``: above 0 where it is right.

        That is the target's logit less the ``k``-th largest of the others. ``None``: there are no others.
        """
        logits, targets = logits_of(outputs).detach().float(), self.task.targets(batch)
        if self.k >= logits.shape[1]:
            return None
        if targets.is_floating_point():
            targets = targets.argmax(1)
        places = targets.to(logits.device)[:, None]
        others = logits.scatter(1, places, float("-inf")).topk(self.k, 1).values[:, -1]
        return logits.gather(1, places)[:, 0] - others


class CrossEntropy(Mean):
    """The mean cross entropy, without label smoothing."""

    def __init__(self, task: ClassificationTask) -> None:
        super().__init__(higher_is_better=False)
        self.task = task

    def update(self, outputs: Any, batch: Any) -> None:
        logits, targets = logits_of(outputs).detach().float(), self.task.targets(batch)
        self.add(functional.cross_entropy(logits, targets.to(logits.device), reduction="none"))


class ClassificationTask:
    """One class per sample.

    A batch is ``(inputs, targets)``, or a mapping in the manner of Hugging Face, whose targets stand under
    ``labels``, ``label``, ``targets`` or ``target`` and whose other entries are keyword inputs. Targets are class
    numbers ``(N,)`` or probabilities ``(N, classes)``, as mixup makes them. Outputs are logits ``(N, classes)``, a
    mapping or object with ``logits``, or a tuple that begins with them.

    Metrics: ``top1`` and ``top5`` (shares from 0 to 1) and ``loss`` (cross entropy without smoothing).

    Args:
        label_smoothing: share of the target probability that is spread over all classes while training
            (Szegedy et al., 2015, arXiv 1512.00567).
        num_classes: number of classes, where it is known.
    """

    name = "classification"
    primary = "top1"

    def __init__(self, label_smoothing: float = 0.0, num_classes: int | None = None) -> None:
        if not 0 <= label_smoothing < 1:
            raise SlimError(f"label_smoothing must be in [0, 1), not {label_smoothing!r}")
        self.label_smoothing = label_smoothing
        self.num_classes = num_classes

    def inputs(self, batch: Any) -> Inputs:
        if isinstance(batch, Mapping):
            return {key: value for key, value in batch.items() if key not in TARGET_KEYS}
        inputs, _ = self._pair(batch)
        return inputs if isinstance(inputs, tuple | Mapping) else (inputs,)

    def targets(self, batch: Any) -> Tensor:
        """Return class numbers ``(N,)`` or probabilities ``(N, classes)``."""
        if isinstance(batch, Mapping):
            for key in TARGET_KEYS:
                if key in batch:
                    return self._checked(batch[key])
            raise DataError(
                f"the batch has no targets: its keys are {', '.join(map(str, batch))}",
                hint=f"name the targets one of: {', '.join(TARGET_KEYS)}",
            )
        return self._checked(self._pair(batch)[1])

    def with_pair(self, batch: Any, inputs: Inputs, targets: Tensor) -> Any:
        """Return a batch of the same structure with other inputs and targets: what mixup needs."""
        if isinstance(batch, Mapping):
            key = next(key for key in TARGET_KEYS if key in batch)
            return {**dict(inputs), key: targets}
        if isinstance(inputs, tuple) and not isinstance(self._pair(batch)[0], tuple):
            (inputs,) = inputs
        return inputs, targets

    def loss(self, outputs: Any, batch: Any) -> Tensor:
        logits = logits_of(outputs)
        targets = self.targets(batch).to(logits.device)
        return functional.cross_entropy(logits.float(), targets, label_smoothing=self.label_smoothing)

    def metrics(self) -> dict[str, Metric]:
        return {"top1": TopK(self, 1), "top5": TopK(self, 5), "loss": CrossEntropy(self)}

    @staticmethod
    def _pair(batch: Any) -> tuple[Any, Any]:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise DataError(
                f"a batch must be (inputs, targets) or a mapping, not {type(batch).__name__}",
                hint="write an own task where batches look otherwise",
            )
        return batch[0], batch[1]

    @staticmethod
    def _checked(targets: Any) -> Tensor:
        if not isinstance(targets, Tensor):
            raise DataError(f"targets must be a tensor, not {type(targets).__name__}")
        if targets.is_floating_point() and targets.ndim == 2:
            return targets
        if targets.is_floating_point() or targets.ndim != 1:
            found = f"{targets.dtype} {tuple(targets.shape)}"
            raise DataError(f"targets must be class numbers (N,) or probabilities (N, classes), not {found}")
        return targets.long()


def logits_of(outputs: Any) -> Tensor:
    """Return the logits ``(N, classes)`` in a model's outputs.

    Raises:
        SlimError: there are none.
    """
    logits = outputs
    if isinstance(outputs, Mapping):
        logits = outputs.get("logits")
    elif not isinstance(outputs, Tensor):
        logits = getattr(outputs, "logits", None)
        if logits is None and isinstance(outputs, tuple | list) and outputs:
            logits = outputs[0]
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(outputs).__name__
        raise SlimError(
            f"classification needs logits (N, classes), but the model's output is {shape}",
            hint="return the logits as a tensor, under the key 'logits', or first in a tuple; or write an own task",
        )
    return logits
