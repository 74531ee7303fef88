"""Device tables: what kernels and whole networks took on one device, in one file that notices every changed byte.

A table is JSON, one line per row, in one canonical form: reading writes it again in memory and compares. ``sha256``
covers everything else in it. What predicts from a table is in ``predict``; how rows come about, in ``results.py``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from slim_core.errors import MeasureError
from slim_core.files import require_folder, write_text
from slim_latency.kernels import parse_key

FORMAT = "slim-latency-table"
SCHEMA_VERSION = 1
SUFFIX = ".table.json"
#: a table is some hundred kilobytes; nothing larger than this is parsed
_LARGEST = 64 * 2**20
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")
#: what must be the same before rows of two tables may be put together
_SAME = ("runtime", "precision", "layout_block")


class TableError(MeasureError):
    """A device table cannot be read, was changed, or does not fit another one."""


@dataclass(frozen=True, slots=True)
class KernelRow:
    """What one kernel took, over all its places in the measured networks and all rounds.

    Args:
        key: the kernel.
        count: samples.
        median_us: median in microseconds, as the runtime's profiler counts: its own overhead is in it.
        q1_us: lower quartile.
        q3_us: upper quartile.
    """

    key: str
    count: int
    median_us: float
    q1_us: float
    q3_us: float

    @property
    def iqr_us(self) -> float:
        """Distance between the quartiles."""
        return self.q3_us - self.q1_us


@dataclass(frozen=True, slots=True)
class NetworkRow:
    """What one whole network took, without a profiler.

    Args:
        name: of the network, unique in the table.
        median_ms: median over the rounds.
        q1_ms: lower quartile.
        q3_ms: upper quartile.
        rounds: samples.
        noise: how much the medians of two halves of the samples differ, relative; ``None`` below four samples.
        drift: by how much the later half was slower, relative; ``None`` below four samples.
        macs: multiply-accumulates of the network as it was exported.
        kernels: keys of its kernels, in the order in which they ran; empty where the runtime does not tell.
    """

    name: str
    median_ms: float
    q1_ms: float
    q3_ms: float
    rounds: int
    noise: float | None
    drift: float | None
    macs: int
    kernels: tuple[str, ...]


@dataclass(frozen=True)
class DeviceTable:
    """Everything that is known of one device with one runtime and one setting.

    Args:
        name: what cost models call it: ``latency:<name>``.
        header: where the figures come from: ``device`` (facts), ``runtime`` (name, version, provider), ``settings``
            (threads, graph level, …), ``precision``, ``layout_block``, ``profiler_overhead_us``, ``protocol``,
            ``notes``, ``created``.
        kernels: rows by key.
        networks: rows by name.
        model: what was fitted to the rows (see ``predict``), or ``None``.
    """

    name: str
    header: Mapping[str, Any]
    kernels: Mapping[str, KernelRow]
    networks: Mapping[str, NetworkRow]
    model: Mapping[str, Any] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise TableError(
                f"'{self.name}' cannot name a device",
                hint="use small letters, digits, dots, underscores and dashes: my-phone-4threads",
            )

    @property
    def runtime(self) -> str:
        """Name and version of the runtime."""
        runtime = self.header.get("runtime", {})
        return f"{runtime.get('name', 'unknown')} {runtime.get('version', '')}".strip()

    @property
    def noise(self) -> float | None:
        """The noise floor: the median of the networks' own, below which no prediction can be judged."""
        found = sorted(row.noise for row in self.networks.values() if row.noise is not None)
        return found[len(found) // 2] if found else None

    def to_text(self) -> str:
        """Return the file's text, hash included."""
        body = self._body()
        digest = hashlib.sha256(_canonical(body).encode()).hexdigest()
        parts = [f'"format":{_canonical(FORMAT)}', f'"schema_version":{SCHEMA_VERSION}', f'"sha256":"{digest}"']
        parts += [f'"name":{_canonical(self.name)}', f'"header":{_canonical(body["header"])}']
        for section in ("kernels", "networks"):
            parts.append(f'"{section}":[' + "".join(f"\n  {line}" for line in _lines(body[section])) + "\n]")
        parts.append(f'"model":{_canonical(body["model"])}')
        return "{" + ",\n".join(parts) + "}\n"

    def _body(self) -> dict[str, Any]:
        kernels = [
            [row.key, row.count, row.median_us, row.q1_us, row.q3_us]
            for row in sorted(self.kernels.values(), key=lambda row: row.key)
        ]
        numbers = {row[0]: position for position, row in enumerate(kernels)}
        networks = [
            {
                "name": row.name, "ms": [row.median_ms, row.q1_ms, row.q3_ms], "rounds": row.rounds,
                "noise": row.noise, "drift": row.drift, "macs": row.macs,
                "kernels": [numbers[key] for key in row.kernels],
            }
            for row in sorted(self.networks.values(), key=lambda row: row.name)
        ]  # fmt: skip
        return {
            "name": self.name, "header": dict(self.header), "kernels": kernels, "networks": networks,
            "model": self.model,
        }  # fmt: skip


def write_table(table: DeviceTable, path: str | os.PathLike[str]) -> Path:
    """Write a table atomically; the folder must be there.

    Raises:
        TableError: there is no such folder.
    """
    require_folder(path, TableError)
    write_text(path, table.to_text())
    return Path(path)


def read_table(path: str | os.PathLike[str]) -> DeviceTable:
    """Read a table.

    Raises:
        TableError: it is not there, is no table of a known schema, or a byte of it was changed.
    """
    where = os.fspath(path)
    try:
        if os.path.getsize(where) > _LARGEST:
            raise TableError("too large for a device table", where=where)
        text = Path(where).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TableError(f"cannot read the table: {error}", where=where) from None
    try:
        data = json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
        table, digest = _from_json(data)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError) as error:
        raise TableError(f"not a device table: {error}", where=where) from None
    except TableError as error:
        error.where = error.where or where
        raise
    except MeasureError as error:
        raise TableError(f"not a device table: {error.what}", where=where) from None
    again = table.to_text()
    if again != text or f'"sha256":"{digest}"' not in again[:200]:
        raise TableError(
            "the table was changed after it was written",
            where=where,
            hint="take the file that the tool wrote, or import the results anew; tables are not edited by hand",
        )
    return table


def _from_json(data: Any) -> tuple[DeviceTable, str]:
    if data["format"] != FORMAT:
        raise ValueError(f"its format is {data['format']!r}")
    if data["schema_version"] != SCHEMA_VERSION:
        raise TableError(
            f"the table has schema version {data['schema_version']}, this version of Slim reads {SCHEMA_VERSION}",
            hint="update slim-latency, or import the device's results again",
        )
    kernels = {}
    keys = []
    for key, count, median, q1, q3 in data["kernels"]:
        parse_key(key)
        kernels[key] = KernelRow(key, int(count), _time(median), _time(q1), _time(q3))
        keys.append(key)
    networks = {}
    for row in data["networks"]:
        median, q1, q3 = row["ms"]
        networks[_text(row["name"])] = NetworkRow(
            row["name"], _time(median), _time(q1), _time(q3), int(row["rounds"]), _share(row["noise"]),
            _share(row["drift"]), int(row["macs"]), tuple(keys[number] for number in row["kernels"]),
        )  # fmt: skip
    return DeviceTable(data["name"], _header(data["header"]), kernels, networks, data["model"]), str(data["sha256"])


def _header(header: Any) -> Mapping[str, Any]:
    """Return a header whose parts are of the kinds that readers of tables rely on."""
    if not isinstance(header, dict):
        raise ValueError("its header is no object")
    for part in ("device", "runtime", "settings", "protocol"):
        if not isinstance(header.get(part, {}), dict):
            raise ValueError(f"'{part}' of its header is no object")
    if not isinstance(header.get("notes", []), list):
        raise ValueError("the notes of its header are no list")
    _time(header.get("profiler_overhead_us", 0.0))
    if type(header.get("layout_block", 0)) is not int:
        raise ValueError("'layout_block' of its header is no number of channels")
    return header


def merge_tables(tables: Sequence[DeviceTable], name: str | None = None) -> DeviceTable:
    """Put tables of one device, runtime and setting together. What was fitted is left out: fit it anew.

    Rows of one kernel are averaged with their counts as weights.

    Raises:
        TableError: they are of different devices, runtimes or settings, or two networks of one name differ.
    """
    if not tables:
        raise TableError("there is nothing to merge")
    first = tables[0]
    for other in tables[1:]:
        for part, mine, its in _identity(first, other):
            if mine != its:
                raise TableError(
                    f"tables of different {part} cannot be merged: '{first.name}' has {mine}, '{other.name}' {its}",
                    hint="figures of another device, runtime, graph level or thread count are another table",
                )
    kernels: dict[str, KernelRow] = {}
    networks: dict[str, NetworkRow] = {}
    for table in tables:
        for key, row in table.kernels.items():
            kernels[key] = _averaged(kernels[key], row) if key in kernels else row
        for label, network in table.networks.items():
            if label in networks and networks[label].kernels != network.kernels:
                raise TableError(f"network '{label}' is another one in '{table.name}'", hint="give it another name")
            networks[label] = network
    notes = [note for table in tables for note in table.header.get("notes", ())]
    overheads = [table.header.get("profiler_overhead_us", 0.0) for table in tables]
    header = {
        **first.header, "notes": list(dict.fromkeys(notes)),
        "profiler_overhead_us": sum(overheads) / len(overheads),
        "merged": [table.header.get("created") for table in tables],
    }  # fmt: skip
    return DeviceTable(name or first.name, header, kernels, networks)


@dataclass(frozen=True, slots=True)
class Change:
    """One kernel that two tables disagree about.

    Args:
        key: the kernel.
        before_us: in the first table, or ``None``.
        after_us: in the second table, or ``None``.
    """

    key: str
    before_us: float | None
    after_us: float | None

    @property
    def ratio(self) -> float | None:
        """Second over first."""
        return self.after_us / self.before_us if self.before_us and self.after_us is not None else None


@dataclass(frozen=True, slots=True)
class TableDiff:
    """What differs between two tables.

    Args:
        header: parts of the headers that differ: name to both values.
        changes: kernels that only one has, or whose quartiles do not overlap, the largest change first.
        same: kernels that both have and agree about.
        ratio: median over the common kernels of second over first, or ``None`` without any.
    """

    header: Mapping[str, tuple[Any, Any]]
    changes: tuple[Change, ...]
    same: int
    ratio: float | None


def diff_tables(first: DeviceTable, second: DeviceTable) -> TableDiff:
    """Compare two tables kernel by kernel."""
    header = {part: (mine, its) for part, mine, its in _identity(first, second) if mine != its}
    changes, same, ratios = [], 0, []
    for key in sorted({*first.kernels, *second.kernels}):
        before, after = first.kernels.get(key), second.kernels.get(key)
        if before is None or after is None:
            changes.append(Change(key, before.median_us if before else None, after.median_us if after else None))
            continue
        if before.median_us > 0:
            ratios.append(after.median_us / before.median_us)
        if before.q3_us < after.q1_us or after.q3_us < before.q1_us:
            changes.append(Change(key, before.median_us, after.median_us))
        else:
            same += 1
    changes.sort(key=lambda item: (-abs((item.after_us or 0) - (item.before_us or 0)), item.key))
    ratios.sort()
    return TableDiff(header, tuple(changes), same, ratios[len(ratios) // 2] if ratios else None)


def with_model(table: DeviceTable, model: Mapping[str, Any] | None) -> DeviceTable:
    """Return the table with another fitted model."""
    return replace(table, model=model)


def precision_of(kernels: Iterable[str]) -> str:
    """Return what kernels multiply: ``"fp32"``, ``"int8"``, ``"fp16"``, … or ``"mixed"``."""
    names = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "i8": "int8", "u8": "int8", "f64": "fp64"}
    found = {names.get(kernel.inputs[0][0], "other") for kernel in map(parse_key, kernels) if kernel.macs}
    return found.pop() if len(found) == 1 else "mixed" if found else "none"


def _identity(first: DeviceTable, second: DeviceTable) -> Iterator[tuple[str, Any, Any]]:
    for part in _SAME:
        yield part, first.header.get(part), second.header.get(part)
    for part in ("threads", "level", "batch"):
        yield part, first.header.get("settings", {}).get(part), second.header.get("settings", {}).get(part)
    for part in ("cpu", "architecture", "flags"):
        yield part, first.header.get("device", {}).get(part), second.header.get("device", {}).get(part)


def _averaged(first: KernelRow, second: KernelRow) -> KernelRow:
    total = first.count + second.count

    def mean(one: float, other: float) -> float:
        return (one * first.count + other * second.count) / total

    return KernelRow(
        first.key, total, mean(first.median_us, second.median_us), mean(first.q1_us, second.q1_us),
        mean(first.q3_us, second.q3_us),
    )  # fmt: skip


def _time(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e12:
        raise ValueError(f"{value!r} is no time")
    return value


def _share(value: Any) -> float | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise ValueError(f"{value!r} is no share")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no name")
    return value


def _lines(rows: Sequence[Any]) -> Iterator[str]:
    for position, row in enumerate(rows):
        yield _canonical(row) + ("," if position < len(rows) - 1 else "")


def _canonical(data: Any) -> str:
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in it")
    return found


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is no number")
