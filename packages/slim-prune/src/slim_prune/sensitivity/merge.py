"""Putting measured points together: equal ones once, and one clear error where they contradict each other."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import replace
from typing import Any

from slim_prune.errors import PlanError
from slim_prune.sensitivity.curves import Base, Curves, Point

#: values this close are equal: other machines add up in another order
_RELATIVE, _ABSOLUTE = 1e-5, 1e-7

_WORDS = {
    "model": "another model, or the same one with other weights",
    "data": "other data",
    "samples": "another number of samples",
    "task": "another task",
    "metric": "another metric",
    "importance": "another importance criterion",
    "ranking": "channels in another order of importance",
    "stop": "other rules of early stopping",
    "seed": "another seed",
}


def check_identity(mine: Mapping[str, Any], other: Any, where: str) -> None:
    """Check that two sets of points measure the same thing.

    Raises:
        PlanError: they do not; names every difference.
    """
    theirs = other if isinstance(other, Mapping) else {}
    differing = [key for key in dict.fromkeys([*mine, *theirs]) if mine.get(key) != theirs.get(key)]
    if differing:
        told = "; ".join(
            f"{_WORDS.get(key, key)} ({_told(theirs.get(key))}, not {_told(mine.get(key))})" for key in differing
        )
        raise PlanError(
            f"these points were measured with {told}",
            where=where,
            hint="points go together only when all of this is equal; use another folder, or start afresh",
        )


def put(points: MutableMapping[tuple[str, int], Point], point: Point, where: str) -> None:
    """Add a point; one that is there already must agree.

    Raises:
        PlanError: the same point has two values.
    """
    known = points.setdefault((point.group, point.kept), point)
    if known is point:
        return
    close = math.isclose(known.value, point.value, rel_tol=_RELATIVE, abs_tol=_ABSOLUTE)
    if not close or known.samples != point.samples:
        raise PlanError(
            f"channel group '{point.group}' with {point.kept} units kept has two values: {known.value} "
            f"({known.samples} samples) and {point.value} ({point.samples} samples)",
            where=where,
            hint="one of the two runs was made with other code, settings or hardware: measure one of them again",
        )


def same_base(known: Base | None, base: Base, where: str) -> Base:
    """Return the value of the whole model, which every part must agree on.

    Raises:
        PlanError: it differs.
    """
    if known is not None and not math.isclose(known.value, base.value, rel_tol=_RELATIVE, abs_tol=_ABSOLUTE):
        raise PlanError(
            f"the whole model was measured at {known.value} and at {base.value}",
            where=where,
            hint="the model is not deterministic, or code or hardware changed in between: measure again from the start",
        )
    return known or base


def merged(first: Curves, others: Iterable[Curves]) -> Curves:
    """Return ``first`` with all points of ``others``: see :meth:`slim_prune.sensitivity.curves.Curves.merge`.

    Raises:
        PlanError: they measure different things, or contradict each other.
    """
    points = first.points
    curves = {curve.name: replace(curve, points=()) for curve in first.curves}
    base, notes = first.base, list(first.notes)
    for number, other in enumerate(others, 2):
        where = f"curves number {number}"
        check_identity(first.identity, other.identity, where)
        if (first.metric, first.higher_is_better) != (other.metric, other.higher_is_better):
            raise PlanError(f"these curves measure {other.metric}, not {first.metric}", where=where)
        base = same_base(base, other.base, where)
        for curve in other.curves:
            known = curves.setdefault(curve.name, replace(curve, points=()))
            if (known.units, known.channels_per_unit) != (curve.units, curve.channels_per_unit):
                raise PlanError(
                    f"channel group '{curve.name}' has {curve.units} units here and {known.units} there", where=where
                )
            for point in curve.points:
                put(points, point, where)
        notes += [note for note in other.notes if note not in notes]
    empty = replace(first, base=base, curves=tuple(curves.values()), notes=tuple(notes))
    return empty.with_points(list(points.values()))


def _told(value: Any) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 else text
