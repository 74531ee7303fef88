"""Measured points on disk: one JSON file, written anew after each point: a kill loses the point in work at most."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from slim_core.errors import SlimError
from slim_core.files import write_json
from slim_quant.sensitivity.found import Point, read_json

FORMAT = "slim-quant.sensitivity.points"
VERSION = 1
NAME = "points.json"
Key = tuple[str, str, str]


class Store:
    """The points of one folder.

    Args:
        folder: where the file is; ``None``: nothing is kept.
        identity: what is measured.

    Raises:
        SlimError: the folder holds points of something else, or a file that is damaged.
    """

    def __init__(self, folder: Path | None, identity: Mapping[str, Any]) -> None:
        self._path = None if folder is None else folder / NAME
        self._identity = dict(identity)
        self.points: dict[Key, Point] = {}
        if self._path is not None and self._path.exists():
            self._read(self._path)

    def add(self, point: Point) -> None:
        """Keep a point; it is on the disk when this returns."""
        self.points[point.unit, point.bits, point.mode] = point
        if self._path is not None:
            rows = [asdict(item) for item in self.points.values()]
            write_json(self._path, {"format": FORMAT, "version": VERSION, "identity": self._identity, "points": rows})

    def _read(self, path: Path) -> None:
        hint = "remove the file to measure its points again, or name another folder"
        data = read_json(path)
        if not isinstance(data, dict) or data.get("format") != FORMAT or data.get("version") != VERSION:
            raise SlimError("this is no file of points that this version reads", where=str(path), hint=hint)
        other = data.get("identity")
        if other != self._identity:
            unlike = sorted(
                key for key in {*self._identity, *(other or {})} if (other or {}).get(key) != self._identity.get(key)
            )
            raise SlimError(
                f"the folder holds points of something else: {', '.join(unlike)} differ", where=str(path), hint=hint
            )
        try:
            points = [Point(**row) for row in data["points"]]
        except (KeyError, TypeError) as error:
            raise SlimError(f"a measured point is damaged: {error}", where=str(path), hint=hint) from None
        self.points = {(point.unit, point.bits, point.mode): point for point in points}
