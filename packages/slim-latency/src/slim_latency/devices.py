"""Where device tables are: those that come with the package, and the user's own. Imports nothing heavy."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slim_core.errors import MeasureError

#: folders with tables, several separated as in ``PATH``; they come before all others
VARIABLE = "SLIM_DEVICES"
SUFFIX = ".table.json"
_SHIPPED = Path(__file__).parent / "tables"


def folders() -> tuple[Path, ...]:
    """Return the folders that are searched: ``SLIM_DEVICES``, the user's, the package's."""
    given = [Path(part).expanduser() for part in os.environ.get(VARIABLE, "").split(os.pathsep) if part]
    return (*given, user_folder(), _SHIPPED)


def user_folder() -> Path:
    """Return where ``slim latency import`` puts tables: ``~/.local/share/slim/devices``, or below XDG_DATA_HOME."""
    base = os.environ.get("XDG_DATA_HOME")
    try:
        return (Path(base) if base else Path.home() / ".local" / "share") / "slim" / "devices"
    except RuntimeError:  # no home folder is known
        return Path("/nonexistent")


def target_folder() -> Path:
    """Return where new tables go: the first folder of ``SLIM_DEVICES``, or the user's."""
    return folders()[0]


@dataclass(frozen=True, slots=True)
class DeviceFile:
    """A table's file.

    Args:
        name: of the device.
        path: the file.
        shipped: whether it came with the package.
    """

    name: str
    path: Path
    shipped: bool

    def __call__(self) -> Any:
        """Return the cost model: what the registry's users call."""
        from slim_latency.cost import load_cost

        return load_cost(self.path)


def find_devices() -> dict[str, DeviceFile]:
    """Return the device tables by name; of two with one name the first folder's is taken. No file is opened."""
    found: dict[str, DeviceFile] = {}
    for file in _files():
        found.setdefault(file.name, file)
    return dict(sorted(found.items()))


def device(name: str) -> DeviceFile:
    """Return the table's file of a device, or of a path to one.

    Raises:
        MeasureError: there is none of that name.
    """
    known = find_devices()
    if name in known:
        return known[name]
    path = Path(name)
    if name.endswith(SUFFIX) and path.is_file():
        return DeviceFile(path.name[: -len(SUFFIX)], path, False)
    from slim_core.errors import close_match

    raise MeasureError(
        f"there is no table of a device '{name}'",
        hint="; ".join(
            part
            for part in (
                close_match(name, known),
                f"known: {', '.join(known)}" if known else "none is known yet",
                "`slim latency bundle` and `slim latency import` make one",
            )
            if part
        ),
    )


def _files() -> Iterator[DeviceFile]:
    for folder in folders():
        try:
            paths = sorted(folder.glob(f"*{SUFFIX}"))
        except OSError:
            continue
        for path in paths:
            name = path.name[: -len(SUFFIX)]
            if name and not any(character.isspace() for character in name):
                yield DeviceFile(name, path, folder == _SHIPPED)
