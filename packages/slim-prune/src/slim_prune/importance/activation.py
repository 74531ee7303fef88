"""Activation criteria: how often a unit is on, and how strongly, on real data.

Hu et al. 2016, "Network Trimming: A Data-Driven Neuron Pruning Approach towards Efficient Deep Architectures",
arXiv:1607.03250: :class:`APoZ`. Mean activation: Molchanov et al. 2017, "Pruning Convolutional Neural Networks for
Resource Efficient Inference", arXiv:1611.06440: :class:`Activation`. Not here: where activations are found
(``taps.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from slim_core.graph.types import ChannelGroup, Member
from slim_prune.errors import PlanError
from slim_prune.importance import Importance
from slim_prune.importance.aggregate import Aggregate, Normalize, Scores, check_names, combined
from slim_prune.importance.passes import Reading, batches, require
from slim_prune.importance.sums import by_unit
from slim_prune.importance.taps import Tap, find_taps, is_rectifier, read_taps

if TYPE_CHECKING:
    from slim_prune.context import Context

Statistic = Literal["mean", "rms", "std"]
Figures = Callable[[Tensor], dict[str, Tensor]]


class _Sums:
    """Running sums at one tap: several figures per index, and how many numbers went into each."""

    def __init__(self) -> None:
        self.figures: dict[str, Scores] = {}
        self.count = 0

    def add(self, figures: Mapping[str, Tensor], count: int) -> None:
        self.count += count
        for name, values in figures.items():
            found = values.double().cpu().numpy()
            known = self.figures.get(name)
            self.figures[name] = found if known is None else known + found


class _OnData:
    """Figures of activations per index, added up over batches, averaged per unit, and combined over taps."""

    label: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ("task", "train")

    def __init__(self, reading: Reading, normalize: Normalize, aggregate: Aggregate) -> None:
        check_names(normalize, aggregate)
        self._reading = reading.check(self.label)
        self._normalize, self._aggregate = normalize, aggregate

    def figures(self, tensor: Tensor, others: list[int]) -> dict[str, Tensor]:
        """Return sums over the dimensions ``others``: ``(size,)`` each."""
        raise NotImplementedError

    def finish(self, means: Mapping[str, Scores]) -> Scores:
        """Return one score per unit from the means of the figures."""
        raise NotImplementedError

    def prepare(self, context: Context) -> Importance:
        """Run the model on training data, in evaluation mode, and count.

        Raises:
            PlanError: task or training data are missing.
            ModelError: the forward fails on the data.
        """
        require(context, self.label, *self.needs)
        assert context.task is not None  # noqa: S101  `require` came first
        assert context.train is not None  # noqa: S101
        taps = find_taps(context.coupling)
        self._note(context, taps)
        by_key: dict[tuple[Any, ...], list[Tap]] = {}
        for found in taps.values():
            for tap in found:
                by_key.setdefault(tap.key, []).append(tap)
        sums = {id(tap): _Sums() for found in by_key.values() for tap in found}

        def read(tap: Tap, tensor: Tensor) -> None:
            index = torch.from_numpy(tap.indices).to(tensor.device)
            part = tensor if len(index) == tap.size else tensor.index_select(tap.dim, index)
            part = part.detach().float() if part.dtype in (torch.float16, torch.bfloat16) else part.detach()
            others = [dim for dim in range(part.dim()) if dim != tap.dim]
            sums[id(tap)].add(self.figures(part, others), part.numel() // max(1, len(index)))

        what = f"importance '{self.label}'"
        with closing(batches(context, context.train, self._reading, self.label)) as read_batches:
            for batch in read_batches:
                read_taps(context.model, context.task.inputs(batch), by_key, read, what)
        groups = {group.name: group for group in context.coupling.groups}
        scores = {name: self._scores(groups[name], found, sums) for name, found in taps.items()}

        def importance(group: ChannelGroup, tensors: Mapping[str, Tensor]) -> Tensor:
            known = groups.get(group.name)
            per_tap = scores.get(group.name, [])
            if known is None or not per_tap:
                raise PlanError(
                    f"{what} has seen no activation of these channels on the data",
                    where=f"channel group '{group.name}'",
                    hint="exclude the group, or score it by weights ('l1')",
                )
            asked = [(member, by_unit(group, known, values)) for member, values in per_tap]
            return combined(group, asked, normalize=self._normalize, aggregate=self._aggregate)

        return importance

    def _scores(self, group: ChannelGroup, taps: list[Tap], sums: Mapping[int, _Sums]) -> list[tuple[Member, Scores]]:
        """Return one row of scores per tap that was seen. A unit that a tap does not carry has the row's mean."""
        rows: list[tuple[Member, Scores]] = []
        for tap in taps:
            found = sums[id(tap)]
            if not found.count:
                continue
            each = np.bincount(tap.units, minlength=group.units)
            means = {
                name: np.bincount(tap.units, values, minlength=group.units) / np.maximum(each, 1) / found.count
                for name, values in found.figures.items()
            }
            scores = self.finish(means)
            scores = np.where(each > 0, scores, scores[each > 0].mean())
            rows.append((group.members[0], scores))
        return rows

    def _note(self, context: Context, taps: Mapping[str, list[Tap]]) -> None:
        """Say which groups are judged where they are made, because they pass no rectifier."""


class APoZ(_OnData):
    """The share of activations that are above zero, which is 1 less the average percentage of zeros: ``(units,)``.

    Counted after the nonlinearities that the channels pass; where they pass none, where they are made, and the plan's
    notes say so. For GELU and others that are never exactly zero, what is not above ``threshold`` counts as zero.
    Needs a task and training data. The model runs in evaluation mode.

    Args:
        threshold: an activation counts when it is above this.
        samples: at most so many training samples are looked at.
        batches: at most so many batches are read.
        normalize: one of mean, max, sum, minmax, gaussian, lamp, none; ``"none"`` keeps the shares.
        aggregate: one of mean, sum, max, prod, first: how several nonlinearities of a group become one score.
    """

    label = "apoz"

    def __init__(
        self,
        *,
        threshold: float = 0.0,
        samples: int | None = 1024,
        batches: int | None = None,
        normalize: Normalize = "none",
        aggregate: Aggregate = "mean",
    ) -> None:
        super().__init__(Reading(samples, batches), normalize, aggregate)
        self._threshold = threshold

    def figures(self, tensor: Tensor, others: list[int]) -> dict[str, Tensor]:
        return {"on": (tensor > self._threshold).sum(others) if others else (tensor > self._threshold).long()}

    def finish(self, means: Mapping[str, Scores]) -> Scores:
        return means["on"]

    def _note(self, context: Context, taps: Mapping[str, list[Tap]]) -> None:
        plain = [name for name, found in taps.items() if found and not is_rectifier(found[0].op)]
        if plain:
            named = ", ".join(plain[:4]) + (f" and {len(plain) - 4} more" if len(plain) > 4 else "")
            context.note(f"importance apoz: these pass no rectifier, and are counted where they are made: {named}")


class Activation(_OnData):
    """The size of the activations: ``(units,)``.

    Taken after the nonlinearities that the channels pass, else where they are made. Needs a task and training data. The
    model runs in evaluation mode.

    Args:
        statistic: mean, rms or std: the mean absolute value, the root of the mean square, or the standard deviation
            (a channel that never changes can be replaced by an offset).
        samples: at most so many training samples are looked at.
        batches: at most so many batches are read.
        normalize: one of mean, max, sum, minmax, gaussian, lamp, none: what brings the taps to one scale.
        aggregate: one of mean, sum, max, prod, first: how several nonlinearities of a group become one score.
    """

    label = "activation"

    def __init__(
        self,
        *,
        statistic: Statistic = "mean",
        samples: int | None = 1024,
        batches: int | None = None,
        normalize: Normalize = "mean",
        aggregate: Aggregate = "mean",
    ) -> None:
        super().__init__(Reading(samples, batches), normalize, aggregate)
        self._statistic = statistic

    def figures(self, tensor: Tensor, others: list[int]) -> dict[str, Tensor]:
        if self._statistic == "mean":
            return {"absolute": _sum(tensor.abs(), others)}
        found = {"square": _sum(tensor.double().square(), others)}
        if self._statistic == "std":
            found["sum"] = _sum(tensor.double(), others)
        return found

    def finish(self, means: Mapping[str, Scores]) -> Scores:
        if self._statistic == "mean":
            return means["absolute"]
        variance = means["square"] - (means["sum"] ** 2 if self._statistic == "std" else 0.0)
        return np.sqrt(np.maximum(variance, 0.0))


def _sum(tensor: Tensor, others: list[int]) -> Tensor:
    return tensor.sum(others) if others else tensor
