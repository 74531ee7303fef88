"""Shape edits as data: which indices of which tensors stay, and which module attributes change with them.

Here: the values, their validation against a model, and how they are written (one pool of index arrays, because many
tensors share one). Not here: carrying them out (``surgery.py``), deciding them (``planning.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from slim_core.graph.attributes import attribute_edits
from slim_core.graph.isolate import walk
from slim_core.graph.shrink import cuts_of
from slim_core.graph.types import Coupling
from slim_prune.errors import PlanError
from slim_prune.schema import EditsData

Size = int | tuple[int, ...]
Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class TensorEdit:
    """The indices of one dimension of one parameter or buffer that stay.

    Args:
        name: state-dict name; a tied tensor has an edit, the same, for each of its names.
        dim: the dimension.
        total: its size before.
        kept: the indices that stay, ascending, int64.
    """

    name: str
    dim: int
    total: int
    kept: Indices

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, TensorEdit)
            and (self.name, self.dim, self.total) == (other.name, other.dim, other.total)
            and np.array_equal(self.kept, other.kept)
        )

    __hash__ = None  # type: ignore[assignment]

    @property
    def removed(self) -> Indices:
        mask = np.ones(self.total, dtype=bool)
        mask[self.kept] = False
        return np.flatnonzero(mask)


@dataclass(frozen=True, slots=True)
class AttributeEdit:
    """A size that a module remembers as an attribute, before and after."""

    module: str
    name: str
    before: Size
    after: Size


@dataclass(frozen=True, slots=True)
class Edits:
    """Everything that changes when channels are removed; sorted by name and dimension, however it was given."""

    tensors: tuple[TensorEdit, ...]
    attributes: tuple[AttributeEdit, ...]

    def __post_init__(self) -> None:
        tensors = sorted(self.tensors, key=lambda edit: (edit.name, edit.dim))
        attributes = sorted(self.attributes, key=lambda edit: (edit.module, edit.name))
        object.__setattr__(self, "tensors", tuple(tensors))
        object.__setattr__(self, "attributes", tuple(attributes))

    def by_name(self) -> dict[str, list[TensorEdit]]:
        """Return the edits of each name, one per dimension."""
        found: dict[str, list[TensorEdit]] = {}
        for edit in self.tensors:
            found.setdefault(edit.name, []).append(edit)
        return found

    def of(self, state: Mapping[str, Tensor]) -> list[tuple[str, Tensor, list[TensorEdit]]]:
        """Return first name, tensor and edits of each tensor of ``state`` that is cut; a tied one stands once.

        Names that ``state`` does not have are left out.

        Raises:
            PlanError: one tensor would be cut in two ways under two names.
        """
        found: dict[int, tuple[str, Tensor, list[TensorEdit]]] = {}
        for name, cuts in self.by_name().items():
            tensor = state.get(name)
            if tensor is None:
                continue
            first, _, same = found.setdefault(id(tensor), (name, tensor, cuts))
            if same is not cuts and not _same(same, cuts):
                raise PlanError(f"'{first}' and '{name}' are one tensor, and the plan cuts them in different ways")
        return list(found.values())


def edits_of(model: nn.Module, coupling: Coupling, kept: Mapping[str, Indices]) -> Edits:
    """Return what changes when ``kept`` (unit numbers by group name) stays. The model is not changed.

    Args:
        model: the model that ``coupling`` was derived from.
        coupling: the analysis.
        kept: kept unit numbers; a group that it does not name stays whole.
    """
    values = {value.names[0]: value for value in coupling.graph.values if value.kind in ("parameter", "buffer")}
    tensors = tuple(
        TensorEdit(name, dim, values[first].shape[dim], indices)
        for first, dims in cuts_of(coupling, kept).items()
        for name in values[first].names
        for dim, indices in dims.items()
    )
    paths = {id(module): path for path, module in walk(model)}
    attributes = tuple(
        AttributeEdit(paths[id(module)], name, _plain(getattr(module, name)), _plain(value))
        for (_, name), (module, value) in attribute_edits(model, coupling, kept).items()
    )
    return Edits(tensors, attributes)


def is_size(value: object) -> bool:
    """Return whether ``value`` is an integer or a tuple of integers (booleans are neither)."""
    if isinstance(value, tuple):
        return bool(value) and all(type(item) is int for item in value)
    return type(value) is int


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers by name, every name of a tied one."""
    found: dict[str, Tensor] = {}
    for path, module in walk(model, every_path=True):
        prefix = f"{path}." if path else ""
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                if tensor is not None:
                    found[prefix + name] = tensor
    return found


def check_fits(edits: Edits, model: nn.Module) -> dict[str, Tensor]:
    """Check that ``edits`` can be carried out on ``model``, before anything is touched. Returns :func:`state_of` it.

    Raises:
        PlanError: a name, a size or an attribute is not what the edits expect.
    """
    state, modules = state_of(model), dict(walk(model))
    checked: set[tuple[int, int]] = set()  # many edits share an array
    for edit in edits.tensors:
        where = f"{edit.name}, dimension {edit.dim}"
        if edit.name not in state:
            raise PlanError(f"the model has no parameter or buffer '{edit.name}'", where=type(model).__name__)
        shape = tuple(state[edit.name].shape)
        if not 0 <= edit.dim < len(shape) or shape[edit.dim] != edit.total:
            raise PlanError(f"the plan expects {edit.total} indices, and the shape is {shape}", where=where)
        if (id(edit.kept), edit.total) not in checked:
            check_indices(edit.kept, edit.total, where)
            checked.add((id(edit.kept), edit.total))
    edits.of(state)
    for attribute in edits.attributes:
        where = f"{attribute.module}.{attribute.name}"
        module = modules.get(attribute.module)
        if module is None or attribute.name not in vars(module):
            raise PlanError("the model has no such module attribute", where=where)
        value = vars(module)[attribute.name]
        if not is_size(value) or _plain(value) != attribute.before:
            raise PlanError(f"the plan expects {attribute.before}, and the attribute is {value!r}", where=where)
    return state


def check_indices(kept: Indices, total: int, where: str) -> None:
    """Check that ``kept`` is ascending, without duplicates, within ``[0, total)`` and not empty.

    Raises:
        PlanError: it is not.
    """
    if kept.ndim != 1 or kept.size == 0:
        raise PlanError("no index is kept", where=where)
    if kept[0] < 0 or kept[-1] >= total or bool((kept[1:] <= kept[:-1]).any()):
        raise PlanError(f"kept indices must be ascending, unique and within 0..{total - 1}", where=where)


def encode(edits: Edits) -> tuple[dict[str, Any], dict[str, Indices]]:
    """Return the edits as JSON values and the pool of index arrays that they refer to by short name.

    What is cut alike stands in one row: most of a model's edits are those of a few channel groups.
    """
    pool: dict[bytes, str] = {}
    arrays: dict[str, Indices] = {}
    tensors: dict[tuple[str, int, int], list[str]] = {}
    for edit in edits.tensors:
        key = edit.kept.tobytes()
        if key not in pool:
            pool[key] = f"kept{len(pool)}"
            arrays[pool[key]] = edit.kept
        tensors.setdefault((pool[key], edit.dim, edit.total), []).append(edit.name)
    attributes: dict[tuple[Size, Size], list[str]] = {}
    for item in edits.attributes:
        name = f"{item.module}.{item.name}" if item.module else item.name
        attributes.setdefault((item.before, item.after), []).append(name)
    return {
        "tensors": [
            {"kept": kept, "dim": dim, "total": total, "names": names} for (kept, dim, total), names in tensors.items()
        ],
        "attributes": [
            {"before": _listed(before), "after": _listed(after), "names": names}
            for (before, after), names in attributes.items()
        ],
    }, arrays


def decode(data: EditsData, arrays: Mapping[str, Indices]) -> Edits:
    """Return the edits that :func:`encode` wrote.

    Raises:
        PlanError: an index array is missing.
    """
    tensors = []
    for row in data.tensors:
        if row.kept not in arrays:
            raise PlanError(f"there is no index array '{row.kept}'", where=row.names[0])
        tensors += [TensorEdit(name, row.dim, row.total, arrays[row.kept]) for name in row.names]
    attributes = []
    for item in data.attributes:
        for full in item.names:
            module, _, name = full.rpartition(".")
            attributes.append(AttributeEdit(module, name, _sized(item.before), _sized(item.after)))
    return Edits(tuple(tensors), tuple(attributes))


def _same(left: list[TensorEdit], right: list[TensorEdit]) -> bool:
    return {edit.dim: edit.kept.tobytes() for edit in left} == {edit.dim: edit.kept.tobytes() for edit in right}


def _plain(value: Any) -> Size:
    return tuple(value) if isinstance(value, tuple) else int(value)


def _listed(value: Size) -> int | list[int]:
    return list(value) if isinstance(value, tuple) else value


def _sized(value: int | Sequence[int]) -> Size:
    return value if isinstance(value, int) else tuple(value)
