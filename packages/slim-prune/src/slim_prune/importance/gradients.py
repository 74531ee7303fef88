"""First-order criteria: what the loss would do without a unit, told by gradients on real batches.

Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning", arXiv:1906.10771: :class:`Taylor`.
Theis et al. 2018, "Faster gaze prediction with dense networks and Fisher pruning", arXiv:1801.05787, and Liu et al.
2021, "Group Fisher Pruning for Practical Network Compression", arXiv:2108.00708: :class:`Fisher`.

Not here: running the model (``passes.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from slim_core.errors import SlimError
from slim_core.graph.types import ChannelGroup
from slim_prune.importance import Importance
from slim_prune.importance.aggregate import Aggregate, Normalize, check_names
from slim_prune.importance.passes import Per, Reading, gradients, require
from slim_prune.importance.sums import MemberSums, UnitSums

if TYPE_CHECKING:
    from slim_prune.context import Context

#: What is added up before the square (or the absolute value) is taken.
Joint = Literal["group", "member", "weight"]
Power = Literal["squared", "absolute"]

_POWERS: Mapping[Power, Callable[[Tensor], Tensor]] = {"squared": torch.square, "absolute": torch.abs}


class _FirstOrder:
    """Gradient times weight, added up per unit, squared or absolute, averaged over passes."""

    label: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ("task", "train")
    factor: ClassVar[float] = 1.0

    def __init__(
        self, power: Power, joint: Joint, reading: Reading, normalize: Normalize, aggregate: Aggregate
    ) -> None:
        check_names(normalize, aggregate)
        if joint == "group" and aggregate != "sum":
            raise SlimError(
                f"importance '{self.label}': joint='group' adds up all members, so that there is nothing to aggregate",
                hint="leave aggregate out, or take joint='member'",
            )
        self._power, self._joint = _POWERS[power], joint
        self._normalize, self._aggregate = normalize, aggregate
        self._reading = reading.check(self.label)

    def prepare(self, context: Context) -> Importance:
        """Run the model forward and backward on training data.

        Raises:
            PlanError: task or training data are missing, or the loss is not finite.
        """
        require(context, self.label, *self.needs)
        groups = context.coupling.groups
        sums: UnitSums | MemberSums = (
            UnitSums(groups, self._power) if self._joint == "group" else MemberSums(groups, self._joint, self._power)
        )
        with closing(gradients(context, self._reading, self.label)) as passes:
            for samples, weights, found in passes:
                products = {name: found.pop(name) * weights[name] for name in list(found)}
                sums.add(samples, products)
                del products

        def importance(group: ChannelGroup, tensors: Mapping[str, Tensor]) -> Tensor:
            return self.factor * sums.scores(group, normalize=self._normalize, aggregate=self._aggregate)

        return importance


class Taylor(_FirstOrder):
    """The first-order change of the loss when a unit is set to zero: gradient times weight, ``(units,)``.

    Needs a task and training data. The model runs in evaluation mode.

    Args:
        power: squared or absolute: what is taken of the change in each pass, before the passes are averaged.
        joint: group, member or weight: what is added up before that. ``"group"``: all weights that a unit has in the
            whole channel group, which is the change of the loss itself; ``"member"``: those in one weight tensor;
            ``"weight"``: none, so that nothing cancels out.
        per: batch or sample: the gradient of whole batches, or of each sample (slower, and nothing cancels out over
            samples; Molchanov et al. use batches).
        samples: at most so many training samples are looked at.
        batches: at most so many batches are read.
        normalize: one of mean, max, sum, minmax, gaussian, lamp, none; ``"none"`` keeps the scores comparable over
            groups.
        aggregate: one of mean, sum, max, prod, first: how the members' scores become one; not for joint ``"group"``.
    """

    label = "taylor"

    def __init__(
        self,
        *,
        power: Power = "squared",
        joint: Joint = "group",
        per: Per = "batch",
        samples: int | None = 1024,
        batches: int | None = None,
        normalize: Normalize = "none",
        aggregate: Aggregate = "sum",
    ) -> None:
        super().__init__(power, joint, Reading(samples, batches, per), normalize, aggregate)


class Fisher(_FirstOrder):
    """Half the diagonal of the empirical Fisher information times the squared weight: ``(units,)``.

    The second-order change of the loss at a minimum, with the Fisher information in place of the Hessian matrix. Needs
    a task and training data. The model runs in evaluation mode.

    Args:
        joint: group, member or weight: what is added up before the square. ``"weight"``: none, the diagonal over
            weights; ``"group"``: all weights that a unit has in the whole channel group, as if one gate stood before
            all of them (Liu et al.); ``"member"``: one gate for each weight tensor.
        per: sample or batch: whose gradient is squared. Of samples, as the definition has it; of batches it is faster
            and too small, because gradients cancel out within a batch.
        samples: at most so many training samples are looked at.
        batches: at most so many batches are read.
        normalize: one of mean, max, sum, minmax, gaussian, lamp, none; ``"none"`` keeps the scores comparable over
            groups.
        aggregate: one of mean, sum, max, prod, first: how the members' scores become one; not for joint ``"group"``.
    """

    label = "fisher"
    factor = 0.5

    def __init__(
        self,
        *,
        joint: Joint = "weight",
        per: Per = "sample",
        samples: int | None = 256,
        batches: int | None = None,
        normalize: Normalize = "none",
        aggregate: Aggregate = "sum",
    ) -> None:
        super().__init__("squared", joint, Reading(samples, batches, per), normalize, aggregate)
