"""Measured sensitivities as plain values: JSON that can be read again, rankings, plots. Nothing is measured here."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from slim_core.errors import SlimError
from slim_core.files import require_folder, write_json

FORMAT = "slim-quant.sensitivity"
SCHEMA_VERSION = 1
MAX_BYTES = 64 << 20
MOST_BARS = 40


@dataclass(frozen=True, slots=True)
class Point:
    """One unit with one choice of bits.

    Args:
        unit: the layer, operator or group.
        bits: what it was quantized with (``"w8a8"``).
        mode: ``"quantized"``: it alone is quantized; ``"float"``: everything but it is.
        sqnr_db: of the model's outputs against the float model's, at most 200 dB; ``None`` where there is no signal.
        metric: the task's metric of the model, or ``None`` where there is no task.
    """

    unit: str
    bits: str
    mode: str
    sqnr_db: float | None
    metric: float | None


@dataclass(frozen=True, slots=True)
class UnitFacts:
    """What is known of a unit without measuring.

    Args:
        name: its name.
        op: its operator.
        nodes: its nodes in the exported graph.
        params: values in its weights.
        macs: multiply-accumulates of one sample.
    """

    name: str
    op: str
    nodes: tuple[str, ...]
    params: int
    macs: int


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """Sensitivities of the units of a model.

    Args:
        units: in the order of the forward.
        points: what was measured.
        metric: name of the metric, or ``None``.
        higher_is_better: its direction.
        base: the metric of the float model, or ``None``.
        whole: SQNR and metric of the wholly quantized model, by bits.
        samples: how many samples it was measured on.
        identity: what tells these points from others.
        notes: what the reader should know.
    """

    units: tuple[UnitFacts, ...]
    points: tuple[Point, ...]
    metric: str | None
    higher_is_better: bool
    base: float | None
    whole: Mapping[str, Mapping[str, float | None]]
    samples: int
    identity: Mapping[str, Any] = field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = ()

    def point(self, unit: str, bits: str, mode: str = "quantized") -> Point:
        """Return a point.

        Raises:
            KeyError: it was not measured.
        """
        for point in self.points:
            if (point.unit, point.bits, point.mode) == (unit, bits, mode):
                return point
        raise KeyError((unit, bits, mode))

    def drop(self, point: Point) -> float | None:
        """Return by how much the metric is worse than the float model's; in mode ``"float"`` too."""
        if point.metric is None or self.base is None:
            return None
        return self.base - point.metric if self.higher_is_better else point.metric - self.base

    def gain(self, point: Point) -> float | None:
        """Return what leaving the unit in float saves, in dB, against the wholly quantized model."""
        whole = self.whole.get(point.bits, {}).get("sqnr_db")
        return None if point.sqnr_db is None or whole is None else point.sqnr_db - whole

    def ranked(self, bits: str | None = None, mode: str = "quantized") -> tuple[Point, ...]:
        """Return the points of one choice of bits, the most sensitive unit first.

        By SQNR: the lowest first where the unit alone is quantized, the highest first where it alone is float.
        """
        chosen = bits if bits is not None else self.points[0].bits if self.points else ""
        found = [point for point in self.points if point.bits == chosen and point.mode == mode]
        order = {unit.name: number for number, unit in enumerate(self.units)}
        sign = 1 if mode == "quantized" else -1
        return tuple(sorted(found, key=lambda item: (sign * (item.sqnr_db or 0.0), order[item.unit])))

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "schema_version": SCHEMA_VERSION,
            "units": [{**asdict(unit), "nodes": list(unit.nodes)} for unit in self.units],
            "points": [asdict(point) for point in self.points],
            "metric": self.metric,
            "higher_is_better": self.higher_is_better,
            "base": self.base,
            "whole": {bits: dict(figures) for bits, figures in self.whole.items()},
            "samples": self.samples,
            "identity": dict(self.identity),
            "notes": list(self.notes),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str | None = None) -> Sensitivity:
        """Return what :meth:`to_json` gave.

        Raises:
            SlimError: it is something else.
        """
        if not isinstance(data, Mapping) or data.get("format") != FORMAT:
            raise SlimError("this is no file of sensitivities", where=where, hint="slim quant sensitivity writes one")
        if data.get("schema_version") != SCHEMA_VERSION:
            raise SlimError(
                f"sensitivities of schema {data.get('schema_version')!r} are not known", where=where,
                hint="a newer slim-quant wrote them: upgrade",
            )  # fmt: skip
        try:
            return cls(
                tuple(UnitFacts(**{**unit, "nodes": tuple(unit["nodes"])}) for unit in data["units"]),
                tuple(Point(**point) for point in data["points"]), data["metric"], data["higher_is_better"],
                data["base"], data["whole"], data["samples"], data["identity"], tuple(data["notes"]),
            )  # fmt: skip
        except (KeyError, TypeError) as error:
            raise SlimError(f"the sensitivities are damaged: {error}", where=where) from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as JSON; a kill leaves the old file or the new one.

        Raises:
            SlimError: the folder of ``path`` is not there.
        """
        require_folder(path)
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Sensitivity:
        """Read what :meth:`save` wrote.

        Raises:
            SlimError: there is no such file, or it is something else.
        """
        return cls.from_json(read_json(path), os.fspath(path))

    def plots(self) -> list[dict[str, Any]]:
        """Return bars as ``slim_core.report.plots.read_plots`` reads them, the most sensitive units first."""
        found = []
        titles = {"quantized": "SQNR with this unit alone quantized", "float": "SQNR with this unit alone in float"}
        for mode, bits in dict.fromkeys((point.mode, point.bits) for point in self.points):
            points = self.ranked(bits, mode)[:MOST_BARS]
            rows = [
                {"name": point.unit, "value": point.sqnr_db, "note": self._note(point)}
                for point in points if point.sqnr_db is not None
            ]  # fmt: skip
            if rows:
                found.append({"kind": "bars", "title": f"{titles[mode]}, {bits}", "unit": "dB", "rows": rows})
        return found

    def _note(self, point: Point) -> str:
        drop = self.drop(point)
        return "" if drop is None else f"{self.metric} drops by {drop:.4g}"


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file of bounded size.

    Raises:
        SlimError: it cannot be opened, is too large, or is no JSON.
    """
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise SlimError(f"the file cannot be read: {error.strerror or error}", where=os.fspath(path)) from None
    if len(raw) > MAX_BYTES:
        raise SlimError(f"the file is larger than {MAX_BYTES >> 20} MB", where=os.fspath(path))
    try:
        return json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise SlimError(f"the file is no JSON: {error}", where=os.fspath(path)) from None
