"""Sensitivity curves as data: what a metric becomes when a channel group keeps so many of its units.

Here: the values, reading and writing them, merging, the monotone envelope, and charts. Not here: measuring
(``analysis.py``), choosing counts (``choose.py``).
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from slim_core import files
from slim_prune.documents import load_json, save_json
from slim_prune.errors import PlanError
from slim_prune.sensitivity.envelope import Envelope

if TYPE_CHECKING:
    from rich.console import RenderableType

    from slim_prune.allocation.problem import Problem

FORMAT = "slim-prune.sensitivity"
VERSION = 1
MAX_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Base:
    """The whole model.

    Args:
        value: the metric.
        samples: on how many samples.
    """

    value: float
    samples: int

    def to_json(self) -> dict[str, Any]:
        return {"value": self.value, "samples": self.samples}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Base:
        return cls(_finite(data["value"]), _samples(data["samples"]))


@dataclass(frozen=True, slots=True)
class Point:
    """One measurement.

    Args:
        group: name of the channel group.
        kept: how many of its units were kept: the most important ones.
        value: the metric.
        samples: on how many samples it was measured.
        margin: half-width of its confidence interval; 0 when all samples were used.
        method: ``"replay"`` (only what depends on the group was computed) or ``"whole"`` (the whole pruned forward).
    """

    group: str
    kept: int
    value: float
    samples: int
    margin: float = 0.0
    method: str = "replay"

    def to_json(self) -> dict[str, Any]:
        return {
            "group": self.group,
            "kept": self.kept,
            "value": self.value,
            "samples": self.samples,
            "margin": self.margin,
            "method": self.method,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Point:
        kept = data["kept"]
        if type(kept) is not int or kept < 1:
            raise ValueError(f"{kept!r} is no number of kept units")
        value, margin = _finite(data["value"]), _finite(data["margin"])
        return cls(str(data["group"]), kept, value, _samples(data["samples"]), margin, str(data["method"]))


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{number} is no measurement")
    return number


def _samples(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"{value!r} is no number of samples")
    return value


@dataclass(frozen=True, slots=True)
class Curve:
    """The points of one channel group, by ascending number of kept units.

    Args:
        name: the group's name.
        units: how many units it has; there the curve ends in the whole model's value.
        channels_per_unit: channels that one unit is in the layers that make them.
        points: what was measured.
    """

    name: str
    units: int
    channels_per_unit: int
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Curves:
    """What a metric becomes when one channel group at a time is pruned.

    Args:
        metric: name of the metric.
        higher_is_better: which direction is good.
        base: the whole model.
        curves: one per channel group, in the order of the forward.
        identity: what was measured: hashes of model, data and ranking, the criterion, the rules of early stopping.
        notes: what was measured in another way than the rest, or left out, with the reason.
    """

    metric: str
    higher_is_better: bool
    base: Base
    curves: tuple[Curve, ...]
    identity: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Curve:
        for curve in self.curves:
            if curve.name == name:
                return curve
        raise KeyError(name)

    def drop(self, point: Point) -> float:
        """Return how much worse than the whole model a point is; negative where it is better."""
        return self.base.value - point.value if self.higher_is_better else point.value - self.base.value

    @property
    def points(self) -> dict[tuple[str, int], Point]:
        """All points by group name and kept units."""
        return {(point.group, point.kept): point for curve in self.curves for point in curve.points}

    # --- using them ---

    def envelope(self) -> dict[str, Envelope]:
        """Return the monotone envelope of each curve that has points: the drop never shrinks as more is removed.

        Points that are better than the whole model, or than points with more channels, are noise as far as a choice is
        concerned: isotonic regression averages them with their neighbours, and no drop is below 0.
        """
        return {
            curve.name: Envelope.of(
                [point.kept for point in curve.points],
                [self.drop(point) for point in curve.points],
                curve.units,
                [point.samples for point in curve.points],
            )
            for curve in self.curves
            if curve.points
        }

    def choose(self, *, max_drop: float | None = None, problem: Problem | None = None) -> dict[str, int]:
        """Return how many units each group keeps: by a limit on each group's drop, by a budget, or by both.

        Args:
            max_drop: no group may lose more than this by itself (in the metric's unit). Alone, each group keeps the
                smallest count that holds it.
            problem: groups with permitted counts, and the budget: the sum of the drops is made small under every
                bound. Without one, the measured counts are what may be chosen.

        Raises:
            PlanError: neither is given, or a group of the problem was not measured.
            BudgetError: the budget cannot be met; says what is reachable.
        """
        from slim_prune.sensitivity.choose import by_budget, by_drop

        if problem is not None and problem.bounds:
            return by_budget(self, problem, max_drop=max_drop)
        if max_drop is None:
            raise PlanError("there is nothing to choose by", hint="give max_drop=0.01, or a problem with a budget")
        return by_drop(self, max_drop, problem)

    def merge(self, *others: Curves) -> Curves:
        """Return these curves with the points of ``others``, which must measure the same thing.

        Raises:
            PlanError: another model, other data, another criterion or metric; or the same point with another value.
        """
        from slim_prune.sensitivity.merge import merged

        return merged(self, others)

    # --- looking at them ---

    def summary(self) -> list[dict[str, Any]]:
        """Return one row per point: ``{"name", "kept", "total", "value", "drop", "margin", "samples", "method"}``.

        Counts are in channels of the layers that make them.
        """
        return [
            {
                "name": curve.name,
                "kept": point.kept * curve.channels_per_unit,
                "total": curve.units * curve.channels_per_unit,
                "value": point.value,
                "drop": self.drop(point),
                "margin": point.margin,
                "samples": point.samples,
                "method": point.method,
            }
            for curve in self.curves
            for point in curve.points
        ]

    def charts(self, per_chart: int = 4) -> list[dict[str, Any]]:
        """Return the curves as the charts that reports draw: a few groups each, drop over kept channels in per cent.

        The whole model is the last point of each.
        """
        drawn = [curve for curve in self.curves if curve.points]
        charts: list[dict[str, Any]] = []
        for start in range(0, len(drawn), per_chart):
            series = []
            for curve in drawn[start : start + per_chart]:
                points = [(100 * point.kept / curve.units, self.drop(point)) for point in curve.points]
                if curve.points[-1].kept < curve.units:
                    points.append((100.0, 0.0))
                series.append({"name": curve.name, "x": [x for x, _ in points], "y": [y for _, y in points]})
            charts.append(
                {
                    "title": f"Drop of {self.metric} when one group is pruned",
                    "x_label": "kept channels of the group, %",
                    "y_label": f"drop of {self.metric}",
                    "series": series,
                }
            )
        return charts

    def show(self) -> RenderableType:
        """Return the curves as a table for ``rich``: one line per group, its drop at each share of kept channels."""
        from slim_prune.sensitivity.show import table

        return table(self)

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw all curves into one SVG file.

        Raises:
            PlanError: the folder of ``path`` is not there.
        """
        from slim_prune.sensitivity.show import drawing

        files.require_folder(path, PlanError)
        files.write_text(path, drawing(self))

    # --- writing them ---

    def to_json(self) -> dict[str, Any]:
        """Return the curves as JSON values."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "metric": self.metric,
            "higher_is_better": self.higher_is_better,
            "base": self.base.to_json(),
            "curves": [
                {
                    "name": curve.name,
                    "units": curve.units,
                    "channels_per_unit": curve.channels_per_unit,
                    "points": [
                        {key: value for key, value in point.to_json().items() if key != "group"}
                        for point in curve.points
                    ],
                }
                for curve in self.curves
            ],
            "identity": dict(self.identity),
            "notes": list(self.notes),
        }

    @classmethod
    def from_json(cls, data: Any, *, where: str | None = None) -> Curves:
        """Return the curves that :meth:`to_json` wrote.

        Raises:
            PlanError: ``data`` is not valid.
        """
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise PlanError("these are no sensitivity curves", where=where)
        if data.get("version") != VERSION:
            raise PlanError(
                f"the curves have layout {data.get('version')}, and this version reads layout {VERSION}",
                where=where,
                hint="install the slim-prune that wrote them, or a newer one",
            )
        try:
            curves = tuple(_curve(item) for item in data["curves"])
            if len({curve.name for curve in curves}) != len(curves):
                raise ValueError("a group stands there twice")
            return cls(
                str(data["metric"]),
                bool(data["higher_is_better"]),
                Base.from_json(data["base"]),
                curves,
                dict(data["identity"]),
                tuple(str(note) for note in data["notes"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            told = f"'{error.args[0]}' is missing" if isinstance(error, KeyError) else str(error)
            raise PlanError(f"the curves are malformed: {told}", where=where) from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the curves to ``path`` as JSON; a kill leaves the old file or the new one.

        Raises:
            PlanError: the folder of ``path`` is not there, or the file cannot be written.
        """
        save_json(path, self.to_json(), "the curves")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Curves:
        """Read curves.

        Raises:
            PlanError: the file is not there, too large, not JSON, or holds no curves.
        """
        data = load_json(
            path,
            "the curves",
            most=MAX_BYTES,
            missing="`slim prune sensitivity … -o FILE` and Curves.save write curves",
            hint="it was cut short or is another kind of file; `slim prune sensitivity … -o FILE` writes curves anew",
        )
        return cls.from_json(data, where=str(path))

    def with_points(self, points: Sequence[Point]) -> Curves:
        """Return these curves with exactly ``points``, sorted into their groups."""
        by_group: dict[str, list[Point]] = {}
        for point in points:
            by_group.setdefault(point.group, []).append(point)
        curves = tuple(
            replace(curve, points=tuple(sorted(by_group.get(curve.name, ()), key=lambda point: point.kept)))
            for curve in self.curves
        )
        return replace(self, curves=curves)


def _curve(data: Mapping[str, Any]) -> Curve:
    name, units = str(data["name"]), int(data["units"])
    points = tuple(Point.from_json({**item, "group": name}) for item in data["points"])
    counts = [point.kept for point in points]
    if counts != sorted(set(counts)) or (counts and counts[-1] > units):
        raise ValueError(f"the points of '{name}' are not ascending numbers up to {units}")
    return Curve(name, units, int(data["channels_per_unit"]), points)
