"""The checkpoint transform ``quant.weight_only``: which weights are packed and how, and how to pack them again.

Its reader is strict: the record comes from a file that anyone may have written. The integers, scales and zero points
are buffers of the model; the file stores them as they are, so that 4 bits take half a byte.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from slim_core.checkpoint import limits
from slim_core.checkpoint.node import Node
from slim_core.errors import CheckpointError, ModelError, SlimError
from slim_core.workload import Inputs, Transform
from slim_quant.schemes import Scheme
from slim_quant.weight_only.packed import empty, install, packed_names
from slim_quant.weight_only.rounding import layout_of

KIND = "quant.weight_only"
SCHEMA = 1

_KEYS = ("axis", "bits", "granularity", "kind", "names", "symmetric")
_GRANULARITIES = ("per_tensor", "per_channel", "per_group")
_KINDS = ("linear", "embedding")
_MOST_GROUP = 2**20


@dataclass(frozen=True, slots=True)
class PackedRecord:
    """One packed weight as the record has it: its names (several where it is tied), what it is, axis and scheme."""

    names: tuple[str, ...]
    kind: str
    axis: int
    scheme: Scheme


def describe(model: nn.Module, schemes: Mapping[str, tuple[str, Scheme]]) -> Transform:
    """Return the transform of a model whose weights are packed.

    Args:
        model: the packed model.
        schemes: kind and scheme by name, tied names included.
    """
    layouts = packed_names(model)
    return Transform(KIND, SCHEMA, {"weights": rows_of(model, {name: (*schemes[name], layouts[name].axis)
                                                               for name in schemes})})  # fmt: skip


def rows_of(model: nn.Module, weights: Mapping[str, tuple[str, Scheme, int]]) -> list[dict[str, Any]]:
    """Return the records of packed weights, in order of their names, tied names in one."""
    tied: dict[int, list[str]] = {}
    for name in sorted(weights):
        path, _, leaf = name.rpartition(".")
        tied.setdefault(id(model.get_submodule(path)._buffers[f"{leaf}_packed"]), []).append(name)
    rows = []
    for names in tied.values():
        kind, scheme, axis = weights[names[0]]
        rows.append({"names": names, "kind": kind, "axis": axis, **scheme.to_json()})
    return rows


def read(transform: Transform) -> list[PackedRecord]:
    """Return the packed weights that a transform names.

    Raises:
        CheckpointError: names the field that is missing, unknown, or not what it must be.
    """
    if transform.schema != SCHEMA:
        raise CheckpointError(
            f"schema {transform.schema} is not known", field=KIND, hint="a newer slim-quant wrote it: upgrade"
        )
    return read_rows(Node(transform.data, KIND).record(("weights",))["weights"])


def read_rows(node: Node) -> list[PackedRecord]:
    """Return the records of packed weights in a list.

    Raises:
        CheckpointError: names the field that is not what it must be.
    """
    found: list[PackedRecord] = []
    seen: set[str] = set()
    for row in node.items(limits.MAX_TENSORS):
        fields = row.record(_KEYS, ("group_size",))
        names = tuple(item.name() for item in fields["names"].items(limits.MAX_TENSORS))
        if not names or seen & set(names) or len(set(names)) != len(names):
            fields["names"].fail("a weight needs names, and each may stand once")
        seen |= set(names)
        granularity = fields["granularity"].choice(_GRANULARITIES)
        group = fields["group_size"].whole(1, _MOST_GROUP) if "group_size" in fields else None
        if (group is None) == (granularity == "per_group"):
            row.fail("a group size stands where the granularity is per_group, and nowhere else")
        bits, symmetric = fields["bits"].whole(2, 8), fields["symmetric"].truth()
        try:
            scheme = Scheme(bits, symmetric, granularity, group)  # type: ignore[arg-type]
        except SlimError as error:
            row.fail(error.what)
        found.append(PackedRecord(names, fields["kind"].choice(_KINDS), fields["axis"].whole(0, 1), scheme))
    return found


def install_empty(model: nn.Module, records: list[PackedRecord], field: str) -> None:
    """Put packed weights without values in the place of the recorded parameters of a model on the meta device.

    Raises:
        CheckpointError: the records do not fit the model.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for item in records:
        for name in item.names:
            if name not in parameters:
                raise CheckpointError(f"the model has no parameter '{name}'", field=field)
        tensor = parameters[item.names[0]]
        if tensor.dim() != 2 or any(parameters[name] is not tensor for name in item.names):
            raise CheckpointError(
                f"'{item.names[0]}' is no matrix, or is not one tensor with {list(item.names[1:])}", field=field
            )
        shape = (tensor.shape[0], tensor.shape[1])
        try:
            install(model, item.names, empty(layout_of(shape, item.axis, item.scheme), tensor))
        except (AttributeError, ModelError) as error:
            raise CheckpointError(f"does not fit the model: {error}", field=field) from error


class WeightOnlyReplayer:
    """Builds the packed model again, from a float model on the meta device: names and shapes only."""

    def replay(self, model: nn.Module, transform: Transform, example_inputs: Inputs) -> nn.Module:
        """Return ``model`` with packed weights in the place of the recorded ones.

        Raises:
            CheckpointError: the record is malformed or does not fit the model.
        """
        install_empty(model, read(transform), KIND)
        return model
