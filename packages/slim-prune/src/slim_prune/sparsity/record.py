"""The checkpoint transform ``prune.sparse``: which weights are sparse, and in what pattern. Nothing changes its shape.

The zeros themselves are in the weights. The record's key ``sparse`` tells the writer of a checkpoint which weights to
try to store sparse, see the checkpoint format.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field
from torch import nn

from slim_core.checkpoint.sparse import MAX_BLOCK, MAX_GROUP
from slim_core.errors import CheckpointError
from slim_core.technique import StrictConfig
from slim_core.workload import Inputs, Transform
from slim_prune.edits import state_of
from slim_prune.schema import read
from slim_prune.sparsity.schemes import NM, Block, Scheme, to_json

if TYPE_CHECKING:
    from slim_prune.sparsity.sparsity_plan import SparsityPlan

KIND = "prune.sparse"
SCHEMA = 1


class HintData(StrictConfig):
    """The pattern of one weight: none, blocks, or N:M."""

    block: Annotated[list[Annotated[int, Field(ge=1, le=MAX_BLOCK)]], Field(min_length=2, max_length=2)] | None = None
    n: Annotated[int, Field(ge=1, lt=MAX_GROUP)] | None = None
    m: Annotated[int, Field(ge=2, le=MAX_GROUP)] | None = None
    layout: Literal["flat", "channels"] | None = None
    axis: Annotated[int, Field(ge=0, le=1)] | None = None


class RecordData(StrictConfig):
    """``Transform.data`` of schema 1."""

    scheme: dict[str, Any]
    importance: str = ""
    sparsity: Annotated[float, Field(ge=0, le=1)]
    sparse: dict[str, HintData]


def to_transform(plan: SparsityPlan) -> Transform:
    """Return the record of a plan that was applied."""
    return Transform(
        KIND,
        SCHEMA,
        {
            "scheme": to_json(plan.scheme),
            "importance": plan.importance,
            "sparsity": plan.sparsity,
            "sparse": {name: hint_of(plan.scheme, plan.axes[name]) for name in plan.masks},
        },
    )


def hint_of(scheme: Scheme, axis: int) -> dict[str, Any]:
    """Return what the writer of a checkpoint is told of a weight's zeros."""
    if isinstance(scheme, NM):
        return {"n": scheme.n, "m": scheme.m, "layout": scheme.layout, "axis": axis}
    if isinstance(scheme, Block):
        return {"block": list(scheme.shape), "layout": scheme.layout, "axis": axis}
    return {}


class SparseReplayer:
    """Replays ``prune.sparse`` (a :class:`slim_core.workload.Replayer`): checks the record, and changes nothing."""

    def replay(self, model: nn.Module, transform: Transform, example_inputs: Inputs) -> nn.Module:
        """Return ``model`` as it is.

        Raises:
            CheckpointError: the record is malformed, of another version, or names a weight that the model lacks.
        """
        if transform.kind != KIND or transform.schema != SCHEMA:
            raise CheckpointError(
                f"transform '{transform.kind}' has schema {transform.schema}, and this version reads schema {SCHEMA}",
                field=f"transforms.{KIND}.schema",
                hint="install the slim-prune that wrote it, or a newer one",
            )
        if transform.tensors:
            raise CheckpointError("the record has no tensors", field=f"transforms.{KIND}.tensors")
        data = _read(transform.data)
        state = state_of(model)
        for name in data.sparse:
            if name not in state:
                raise CheckpointError(f"the model has no weight '{name}'", field=f"transforms.{KIND}.sparse")
        return model


def _read(data: Mapping[str, Any]) -> RecordData:
    from slim_prune.errors import PlanError

    try:
        return read(RecordData, dict(data))
    except PlanError as error:
        raise CheckpointError(error.what, field=f"transforms.{KIND}.data", hint=error.hint) from error
