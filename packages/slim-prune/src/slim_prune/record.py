"""The checkpoint transform ``prune.channels``: writing it, and replaying it on a freshly built model.

A replay needs no graph and no forward pass: it cuts tensors and sets attributes as recorded. The record may come from a
hostile file, so every name, index and value is checked against the model, and only sizes that are known to go with
channels may be set, to values no larger than before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pydantic import Field, NonNegativeInt
from torch import Tensor, nn

from slim_core.errors import CheckpointError
from slim_core.graph.attributes import names_a_size
from slim_core.technique import StrictConfig
from slim_core.workload import Inputs, Transform
from slim_prune.edits import AttributeEdit, Edits, Indices, decode, encode
from slim_prune.errors import PlanError
from slim_prune.schema import EditsData, read
from slim_prune.surgery import operate

KIND = "prune.channels"
SCHEMA = 1

#: Attributes of PyTorch's own modules that hold sizes which follow the channels.
ATTRIBUTES = frozenset({
    "in_channels", "out_channels", "groups", "in_features", "out_features", "num_features", "num_channels",
    "num_groups", "normalized_shape", "num_embeddings", "embedding_dim", "embed_dim", "num_heads", "head_dim", "kdim",
    "vdim", "num_parameters", "input_size", "hidden_size", "proj_size", "d_model", "nhead",
})  # fmt: skip


def may_be_set(attribute: str) -> bool:
    """Return whether a record may set an attribute of this name: a size that follows the channels, nothing else."""
    return attribute in ATTRIBUTES or names_a_size(attribute)


class ChannelRow(StrictConfig):
    """Kept and total channels of one group, for people who read the header."""

    name: str
    kept: NonNegativeInt
    total: NonNegativeInt


class TransformData(StrictConfig):
    """``Transform.data`` of schema 1."""

    edits: EditsData
    importance: str = ""
    allocation: str = ""
    groups: list[ChannelRow] = Field(default_factory=list)


def to_transform(
    edits: Edits, *, importance: str = "", allocation: str = "", groups: Sequence[Mapping[str, Any]] = ()
) -> Transform:
    """Return ``edits`` as a transform, with the index arrays as int32 tensors."""
    data, arrays = encode(edits)
    return Transform(
        KIND,
        SCHEMA,
        {"edits": data, "importance": importance, "allocation": allocation, "groups": [dict(row) for row in groups]},
        {name: torch.from_numpy(array.astype(np.int32)) for name, array in arrays.items()},
    )


def from_transform(transform: Transform) -> Edits:
    """Return the edits that :func:`to_transform` wrote.

    Raises:
        PlanError: the record is malformed.
    """
    if transform.kind != KIND or transform.schema != SCHEMA:
        raise PlanError(
            f"transform '{transform.kind}' has schema {transform.schema}, and this version reads schema {SCHEMA}",
            hint="install the slim-prune that wrote it, or a newer one",
        )
    data = read(TransformData, dict(transform.data))
    edits = decode(data.edits, {name: _indices(name, tensor) for name, tensor in transform.tensors.items()})
    check_edits(edits)
    return edits


def check_edits(edits: Edits) -> None:
    """Check what can be checked of edits from a file without a model: nothing twice, only sizes, only smaller ones.

    Raises:
        PlanError: says the first edit that is wrong.
    """
    seen: set[tuple[str, int]] = set()
    for edit in edits.tensors:
        if (edit.name, edit.dim) in seen:
            raise PlanError("the same dimension is cut twice", where=f"{edit.name}, dimension {edit.dim}")
        seen.add((edit.name, edit.dim))
    known: set[tuple[str, str]] = set()
    for attribute in edits.attributes:
        _check_attribute(attribute)
        if (attribute.module, attribute.name) in known:
            raise PlanError("the same attribute is set twice", where=f"{attribute.module}.{attribute.name}")
        known.add((attribute.module, attribute.name))


class ChannelsReplayer:
    """Replays ``prune.channels`` (a :class:`slim_core.workload.Replayer`)."""

    def replay(self, model: nn.Module, transform: Transform, example_inputs: Inputs) -> nn.Module:
        """Cut ``model`` in place as recorded, and return it.

        Raises:
            CheckpointError: the record is malformed or does not fit the model.
        """
        try:
            operate(model, from_transform(transform))
        except PlanError as error:
            raise CheckpointError(error.what, field=f"transforms.{KIND}", where=error.where, hint=error.hint) from error
        return model


def _indices(name: str, tensor: Tensor) -> Indices:
    if tensor.dtype != torch.int32 or tensor.dim() != 1:
        raise PlanError(
            f"index arrays are one-dimensional int32, not {tensor.dtype} of shape {tuple(tensor.shape)}", where=name
        )
    return tensor.cpu().numpy().astype(np.int64)


def _check_attribute(edit: AttributeEdit) -> None:
    where = f"{edit.module}.{edit.name}"
    if not may_be_set(edit.name):
        raise PlanError("this attribute may not be set from a file", where=where)
    before, after = (value if isinstance(value, tuple) else (value,) for value in (edit.before, edit.after))
    if type(edit.before) is not type(edit.after) or len(before) != len(after):
        raise PlanError(f"{edit.after} is not of the kind of {edit.before}", where=where)
    if any(new > old for new, old in zip(after, before, strict=True)):
        raise PlanError(f"{edit.after} is larger than {edit.before}; pruning only makes sizes smaller", where=where)
