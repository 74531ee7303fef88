"""Running sums over passes: from numbers per weight to scores per unit, in memory that no number of passes changes.

A pass gives one tensor per parameter (gradient times weight, say). :class:`MemberSums` keeps one number per index of
every dimension that a channel group covers, :class:`UnitSums` one per unit. Not here: running the model
(``passes.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from slim_core.graph.types import ChannelGroup, Member
from slim_prune.errors import PlanError
from slim_prune.importance.aggregate import Aggregate, Normalize, Scores, combined, normalized, unit_sums

Function = Callable[[Tensor], Tensor]
#: a parameter's first state-dict name, and a dimension of it
Place = tuple[str, int]


def slice_sums(tensor: Tensor, dims: Iterable[int], function: Function | None = None) -> dict[int, Tensor]:
    """Return the sum over all other dimensions, for each of ``dims``: ``(tensor.shape[dim],)``, at least float32."""
    values = tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
    if function is not None:
        values = function(values)
    found: dict[int, Tensor] = {}
    for dim in dims:
        others = [other for other in range(values.dim()) if other != dim]
        found[dim] = values.sum(others) if others else values
    return found


def all_slice_sums(
    values: Mapping[str, Tensor], dims: Mapping[str, Iterable[int]], function: Function | None = None
) -> dict[Place, Scores]:
    """Return :func:`slice_sums` of all tensors that ``dims`` names, brought to the CPU at once."""
    found: dict[Place, Tensor] = {}
    for name, tensor in values.items():
        for dim, sums in slice_sums(tensor, dims.get(name, ()), function).items():
            found[name, dim] = sums.detach()
    if not found:
        return {}
    vectors = list(found.values())
    if len({vector.device for vector in vectors}) > 1:  # a model that is spread over devices
        vectors = [vector.cpu() for vector in vectors]
    flat = torch.cat(vectors).cpu().double().numpy()
    ends = np.cumsum([len(sums) for sums in found.values()])
    return dict(zip(found, np.split(flat, ends[:-1]), strict=True))


def places(groups: Iterable[ChannelGroup]) -> dict[str, list[int]]:
    """Return the dimensions that ``groups`` cover, by parameter."""
    found: dict[str, list[int]] = {}
    for group in groups:
        for member in group.members:
            dims = found.setdefault(member.name, [])
            if member.dim not in dims:
                dims.append(member.dim)
    return found


class MemberSums:
    """One number per index of each dimension, added up over passes; members are put together at the end.

    Args:
        groups: the channel groups of the model.
        joint: ``"member"``: ``function`` is applied to the sum of each unit's slice of a tensor; ``"weight"``: to each
            weight.
        function: what is taken of the numbers of a pass; ``None``: nothing.
    """

    def __init__(
        self, groups: Iterable[ChannelGroup], joint: Literal["member", "weight"], function: Function | None = None
    ) -> None:
        groups = tuple(groups)
        self._places = places(groups)
        self._joint, self._function = joint, function
        self._members: dict[Place, list[Member]] = {}
        for group in groups:
            for member in group.members:
                self._members.setdefault((member.name, member.dim), []).append(member)
        self._sums: dict[Place, Scores] = {}
        self._total = 0.0

    def add(self, weight: float, values: Mapping[str, Tensor]) -> None:
        """Take in one pass: numbers per weight, by parameter."""
        self._total += weight
        each = self._function if self._joint == "weight" else None
        for place, sums in all_slice_sums(values, self._places, each).items():
            if self._joint == "member" and self._function is not None:
                sums = self._of_units(place, sums, self._function)
            known = self._sums.get(place)
            self._sums[place] = weight * sums if known is None else known + weight * sums

    def _of_units(self, place: Place, sums: Scores, function: Function) -> Scores:
        """Apply the function to the sum over all indices of each unit; the first of them carries the result."""
        result = np.zeros_like(sums)
        for member in self._members[place]:
            result[member.indices[:, 0]] = function(torch.from_numpy(unit_sums(member, sums))).numpy()
        return result

    def scores(
        self, group: ChannelGroup, *, normalize: Normalize, aggregate: Aggregate, signed: bool = False
    ) -> Tensor:
        """Return the mean over passes, one score per unit: ``(units,)``."""
        present = [member for member in group.members if (member.name, member.dim) in self._sums]
        if not present:
            raise unused(group)
        scored = ((m, unit_sums(m, self._sums[m.name, m.dim]) / self._total) for m in present)
        return combined(group, scored, normalize=normalize, aggregate=aggregate, signed=signed)


class UnitSums:
    """One number per unit: ``function`` of the sum over everything that a unit has, added up over passes.

    Args:
        groups: the channel groups of the model.
        function: what is taken of a unit's sum in each pass.
    """

    def __init__(self, groups: Iterable[ChannelGroup], function: Function) -> None:
        self._groups = {group.name: group for group in groups}
        self._places = places(self._groups.values())
        self._function = function
        self._sums: dict[str, Scores] = {name: np.zeros(group.units) for name, group in self._groups.items()}
        self._seen: dict[str, Member] = {}
        self._total = 0.0

    def add(self, weight: float, values: Mapping[str, Tensor]) -> None:
        """Take in one pass: numbers per weight, by parameter."""
        self._total += weight
        sums = all_slice_sums(values, self._places)
        for name, group in self._groups.items():
            present = [member for member in group.members if (member.name, member.dim) in sums]
            if present:
                self._seen.setdefault(name, present[0])
                joined = np.sum([unit_sums(m, sums[m.name, m.dim]) for m in present], axis=0)
                self._sums[name] += weight * self._function(torch.from_numpy(joined)).numpy()

    def scores(self, group: ChannelGroup, *, normalize: Normalize, aggregate: Aggregate) -> Tensor:
        """Return the mean over passes, one score per unit: ``(units,)``."""
        if group.name not in self._seen:
            raise unused(group)
        scores = self._sums[group.name] / self._total
        return torch.from_numpy(normalized(by_unit(group, self._groups[group.name], scores), normalize))


def by_unit(asked: ChannelGroup, known: ChannelGroup, scores: Scores) -> Scores:
    """Return the scores of ``known``'s units in the order of ``asked``, which may have other, and fewer, units.

    Units are told apart by the index that they have in the group's first member.
    """
    if asked is known:
        return scores
    first = known.members[0]
    table = np.full(int(first.indices.max()) + 1, np.nan)
    table[first.indices[:, 0]] = scores
    for member in asked.members:
        if (member.name, member.dim) == (first.name, first.dim) and int(member.indices.max()) < len(table):
            return table[member.indices[:, 0]]
    raise unused(asked)


def unused(group: ChannelGroup) -> PlanError:
    """Return the error of a group about which the passes said nothing."""
    return PlanError(
        "nothing was measured of this group: the loss depends on none of its weights",
        where=f"channel group '{group.name}'",
        hint="exclude it, or score it by weights ('l1')",
    )
