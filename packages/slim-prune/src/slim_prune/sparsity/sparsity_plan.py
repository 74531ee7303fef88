"""``SparsityPlan``: which weights become zero, as data, and the verbs on it: show, compare, save, apply, roll back.

Not here: how a plan is made (``planning.py``), the file (``plan_file.py``).
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Optimizer

from slim_core.graph.isolate import unwrap
from slim_core.workload import Transform
from slim_prune.edits import state_of
from slim_prune.sparsity.errors import SparsityError
from slim_prune.sparsity.masks import SparsityMasks
from slim_prune.sparsity.orders import Order, averaged_tensors, check_orders, reorder_
from slim_prune.sparsity.schemes import Scheme, to_json
from slim_prune.sparsity.undo import SparsityRollback
from slim_prune.surgery import Ema

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True, slots=True)
class WeightDifference:
    """A weight that two plans mask differently: how many elements each keeps, and how many both keep."""

    name: str
    total: int
    first: int
    second: int
    common: int


@dataclass(frozen=True, eq=False)
class SparsityPlan:
    """Which weights of one model become zero. Data only: it can be read, compared, written and applied later.

    Args:
        model_class: the planned model's class name.
        scheme: the pattern of the zeros.
        masks: for each weight that was selected, which elements stay.
        axes: the input dimension of each of them.
        importance: name of the criterion.
        asked: what was asked: ``sparsity``, ``budget``, ``threshold``, ``ratios``.
        params: parameters of the model; a tied one counts once.
        orders: the order of channels that the model gets first, which leaves what it computes as it is.
        notes: one line for everything that a reader should know.
    """

    model_class: str
    scheme: Scheme
    masks: SparsityMasks
    axes: Mapping[str, int]
    importance: str = "magnitude"
    asked: Mapping[str, Any] = field(default_factory=dict)
    params: int = 0
    orders: tuple[Order, ...] = ()
    notes: tuple[str, ...] = ()

    # --- looking at it ---

    @property
    def sparsity(self) -> float:
        """The share of the selected weights that becomes zero."""
        return self.masks.sparsity

    @property
    def nonzero(self) -> int:
        """How many parameters of the model may be other than zero."""
        return self.params - self.masks.total + self.masks.kept

    def summary(self) -> list[dict[str, Any]]:
        """Return one row per weight: ``{"name", "shape", "kept", "total", "sparsity"}``."""
        return self.masks.statistics()

    def show(self) -> RenderableType:
        """Return the plan as a table for ``rich``."""
        from slim_prune.sparsity.show import table

        return table(self)

    def diff(self, other: SparsityPlan) -> list[WeightDifference]:
        """Return the weights that this plan and ``other`` mask differently.

        Raises:
            SparsityError: a weight has other shapes in the two plans.
        """
        rows = []
        for name in dict.fromkeys([*self.masks, *other.masks]):
            mine, theirs = self.masks.get(name), other.masks.get(name)
            if mine is not None and theirs is not None and mine.shape != theirs.shape:
                raise SparsityError("the plans are for different models: the shapes differ", where=name)
            shape = (mine if mine is not None else theirs).shape  # type: ignore[union-attr]
            first = mine if mine is not None else theirs.new_ones(shape)  # type: ignore[union-attr]
            second = theirs if theirs is not None else first.new_ones(shape)
            both = int((first & second).sum())
            counts = int(first.sum()), int(second.sum())
            if counts != (both, both):
                rows.append(WeightDifference(name, first.numel(), *counts, both))
        return rows

    # --- using it ---

    def check(self, model: nn.Module) -> None:
        """Check that this plan was made for a model like ``model``. Touches nothing.

        Raises:
            SparsityError: says the first difference.
        """
        self.masks.check(model)
        check_orders(self.orders, state_of(unwrap(model)))

    def apply(
        self, model: nn.Module, *, inplace: bool = False, optimizer: Optimizer | None = None, ema: Ema | None = None
    ) -> nn.Module:
        """Return the model with the planned weights at zero, its channels in the planned order.

        The zeros are in the weights. To hold them there while the model is trained, use ``plan.masks``.

        Args:
            model: the model that the plan was made for, or one like it.
            inplace: change ``model`` itself; otherwise a copy is made.
            optimizer: the model's optimizer, whose state is ordered with the channels (needs ``inplace``).
            ema: a moving average of the weights, ordered and masked alike (needs ``inplace``).

        Raises:
            SparsityError: the plan does not fit; ``model`` is untouched then.
        """
        self.check(model)
        if not inplace:
            if optimizer is not None or ema is not None:
                raise SparsityError(
                    "an optimizer or EMA belongs to the very model that it was made for, and a copy was asked",
                    hint="pass inplace=True",
                )
            model = copy.deepcopy(unwrap(model))
        reorder_(self.orders, unwrap(model), optimizer=optimizer, ema=ema)
        self.masks.apply_(model)
        if ema is not None:
            mask_ema_(self.masks, ema)
        return model

    def apply_reversibly(
        self, model: nn.Module, *, optimizer: Optimizer | None = None, ema: Ema | None = None
    ) -> SparsityRollback:
        """Apply the plan to ``model`` in place and return what undoes it, bit for bit, whatever was trained since.

        ``with plan.apply_reversibly(model): …`` undoes it at the end of the block.

        Raises:
            SparsityError: the plan does not fit; ``model`` is untouched then.
        """
        self.check(model)
        rollback = SparsityRollback(unwrap(model), optimizer=optimizer, ema=ema)
        self.apply(model, inplace=True, optimizer=optimizer, ema=ema)
        return rollback

    def transform(self) -> Transform:
        """Return the record that goes into a checkpoint (kind ``prune.sparse``); with it weights are stored sparse."""
        from slim_prune.sparsity.record import to_transform

        return to_transform(self)

    # --- writing it ---

    def to_json(self) -> dict[str, Any]:
        """Return everything but the masks themselves as JSON values."""
        return {
            "model_class": self.model_class,
            "scheme": to_json(self.scheme),
            "importance": self.importance,
            "asked": dict(self.asked),
            "params": self.params,
            "nonzero": self.nonzero,
            "sparsity": self.sparsity,
            "weights": [{**row, "axis": self.axes[row["name"]]} for row in self.summary()],
            "orders": [order.to_json() for order in self.orders],
            "notes": list(self.notes),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan to one safetensors file: JSON in its metadata, masks a bit per weight.

        Raises:
            SparsityError: the folder of ``path`` is not there, or the file cannot be written.
        """
        from slim_prune.sparsity.plan_file import write

        write(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SparsityPlan:
        """Read a plan. Reading treats the file as hostile.

        Raises:
            SparsityError: the file is not there, or not a valid plan; names the key.
        """
        from slim_prune.sparsity.plan_file import read

        return read(path)


def mask_ema_(masks: SparsityMasks, ema: Ema) -> None:
    """Set what the masks remove to zero in a moving average, by the model's names or those with ``module.`` before."""
    state = averaged_tensors(ema)
    for name, mask in masks.items():
        tensor = state.get(name)
        if tensor is not None:
            tensor.data.masked_fill_(~mask.to(tensor.device), 0)
