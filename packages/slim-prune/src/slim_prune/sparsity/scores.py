"""Scores of single weights: magnitude, and first-order criteria from gradients on real batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from slim_core.data import check_reiterable, generator, generators_of, to_device
from slim_core.errors import DataError, close_match
from slim_core.progress import Progress, SilentProgress
from slim_core.training.rng import kept_generators, seed_epoch
from slim_core.workload import DataSource, Task, call
from slim_prune.sparsity.errors import SparsityError
from slim_prune.sparsity.selecting import check_scores
from slim_prune.sparsity.targets import Target

#: A criterion of one's own: state-dict name and weight -> one score per element; high scores stay.
Criterion = Callable[[str, Tensor], "Tensor | NDArray[Any]"]
#: Criteria by name; all but the first need a task and training data.
CRITERIA = ("magnitude", "taylor", "movement")
BATCHES = 8


def score_all(
    importance: str | Criterion,
    targets: Sequence[Target],
    *,
    model: nn.Module,
    task: Task | None = None,
    train: DataSource | None = None,
    batches: int = BATCHES,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[str, dict[str, NDArray[Any]]]:
    """Return the criterion's label and one array of scores per weight.

    Args:
        importance: ``"magnitude"``, |w|; ``"taylor"``, |w g| (Molchanov et al., 2017, arXiv 1611.06440);
            ``"movement"``, -w g (Sanh et al., 2020, arXiv 2005.07683), with g the gradient of the loss summed over
            batches; or a function.
        targets: the weights.
        model: the model, for gradients.
        task: its loss.
        train: training batches.
        batches: how many of them are used, without augmentation.
        seed: of their order; the generators get their state back.
        progress: where to report.

    Raises:
        SparsityError: nobody knows the criterion, or it gave no finite scores.
        DataError: a gradient criterion without task or data.
    """
    if callable(importance):
        label = getattr(importance, "__name__", type(importance).__name__)
        found = {target.name: _array(importance(target.name, target.tensor.detach())) for target in targets}
    elif importance == "magnitude":
        label = importance
        found = {target.name: _array(target.tensor.detach().abs()) for target in targets}
    elif importance in CRITERIA:
        label = importance
        require_data(importance, task, train)
        assert task is not None  # noqa: S101 - just checked
        assert train is not None  # noqa: S101
        slopes = gradients(model, targets, task, train, batches=batches, seed=seed, progress=progress)
        found = {}
        for target in targets:
            product = target.tensor.detach() * slopes[target.name]
            found[target.name] = _array(product.abs() if importance == "taylor" else -product)
    else:
        raise SparsityError(
            f"unknown importance {importance!r} for single weights",
            hint=close_match(str(importance), CRITERIA)
            or f"one of {', '.join(CRITERIA)}, or a function (name, tensor)",
        )
    for target in targets:
        check_scores(target.name, found[target.name], tuple(target.tensor.shape))
    return label, found


def require_data(importance: str | Criterion, task: Task | None, train: DataSource | None) -> None:
    """Check that there is data for a criterion that needs it.

    Raises:
        DataError: there is none.
    """
    if importance in CRITERIA[1:] and (task is None or train is None):
        raise DataError(
            f"the importance '{importance}' needs gradients, so a task and training data",
            hint="pass task=… and train=…, or importance='magnitude'",
        )


def gradients(
    model: nn.Module,
    targets: Sequence[Target],
    task: Task,
    train: DataSource,
    *,
    batches: int = BATCHES,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """Return the gradient of the task's loss for each weight, summed over the first ``batches`` batches.

    The model runs in evaluation mode; its modes, gradients and buffers are left as they are.

    Raises:
        DataError: there is no batch, or the data can be read only once.
        SparsityError: a gradient is not finite.
    """
    check_reiterable(train, "training")
    plain: DataSource = train.plain() if hasattr(train, "plain") else train
    tensors = [target.tensor for target in targets]
    sums = [torch.zeros_like(tensor, dtype=torch.float32) for tensor in tensors]
    device = tensors[0].device if tensors else torch.device("cpu")
    seen = 0
    with (
        _still(model, tensors),
        torch.enable_grad(),
        kept_generators(*generators_of(plain)),
        (progress or SilentProgress()).track("gradients", batches) as track,
    ):
        seed_epoch(seed, 0)
        for own in generators_of(plain):
            own.manual_seed(generator(seed, 0).initial_seed())
        for batch in islice(plain, batches):
            batch = to_device(batch, device)
            loss = task.loss(call(model, task.inputs(batch)), batch)
            for total, slope in zip(sums, torch.autograd.grad(loss, tensors, allow_unused=True), strict=True):
                if slope is not None:
                    total += slope
            seen += 1
            track.advance(1)
    if not seen:
        raise DataError("the training data yields no batch")
    for target, total in zip(targets, sums, strict=True):
        if not math.isfinite(float(total.abs().sum())):
            raise SparsityError("the gradient is not finite", where=target.name)
    return {target.name: total for target, total in zip(targets, sums, strict=True)}


@contextmanager
def _still(model: nn.Module, tensors: Sequence[Tensor]) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    wanted = [tensor.requires_grad for tensor in tensors]
    try:
        model.eval()
        for tensor in tensors:
            tensor.requires_grad_(True)
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for tensor, before in zip(tensors, wanted, strict=True):
            tensor.requires_grad_(before)


def _array(values: Tensor | NDArray[Any]) -> NDArray[Any]:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return (values if values.dtype == torch.float64 else values.float()).contiguous().numpy()
    return np.asarray(values)
