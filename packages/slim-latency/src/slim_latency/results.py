"""From the agent's lines to a device table: medians, quartiles, noise floors, and what a reader should be warned of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from slim_core.measure import stats
from slim_latency import agent
from slim_latency.table import DeviceTable, KernelRow, NetworkRow, TableError, precision_of

#: later half slower by more than this in most networks: the clock was throttled, or something else ran
THROTTLED = 0.05
#: a noise floor above this is named in the table's notes
NOISY = 0.05
#: a line is some kilobytes; nothing larger than this is parsed
_LARGEST = 512 * 2**20
_FACTS = ("rounds", "seed", "warmup", "sample_ms", "most_calls")


def read_results(path: Path) -> list[dict[str, Any]]:
    """Return the lines of ``results.jsonl``, their chain of hashes checked.

    Raises:
        TableError: a line was changed, lost or moved, or the file is none of the agent's.
    """
    if not path.is_file():
        raise TableError(f"there are no results at {path}", hint="run the agent first: python agent.py BUNDLE")
    if path.stat().st_size > _LARGEST:
        raise TableError("too large for an agent's results", where=str(path))
    data = path.read_bytes()
    rows: list[dict[str, Any]] = []
    previous = "start"
    try:
        for number, line in enumerate(data.split(b"\n")[:-1], 1):  # a line without its end was cut by a kill
            rows.append(agent._checked(line, previous, number))
            previous = rows[-1]["hash"]
    except agent.Refused as error:
        raise TableError(str(error), where=str(path), hint="import the file as the agent wrote it") from None
    if not rows or rows[0].get("kind") != "header" or rows[0].get("schema") != agent.SCHEMA:
        raise TableError("these are not results of this version's agent", where=str(path))
    return rows


def table_of(
    name: str, rows: Sequence[Mapping[str, Any]], macs: Mapping[str, int] | None = None, note: str | None = None
) -> DeviceTable:
    """Make a device table of a header line and sample lines.

    Args:
        name: of the device.
        rows: what :func:`read_results` returned, or lines that were made here.
        macs: multiply-accumulates by network, of the networks as they were exported; without them those of the
            kernels, padding included, are taken.
        note: a line of provenance.

    Raises:
        TableError: there is no sample, or a line lacks what it must have.
    """
    try:
        return _table_of(name, rows, macs, note)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        told = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise TableError(
            f"the results have a line that the agent does not write: {told}", hint="import the file as it wrote it"
        ) from None


def _table_of(
    name: str, rows: Sequence[Mapping[str, Any]], macs: Mapping[str, int] | None, note: str | None
) -> DeviceTable:
    header, samples = rows[0], [row for row in rows if row["kind"] == "sample"]
    if not samples:
        raise TableError("there are no finished samples yet", hint="let the agent run on")
    by_name: dict[str, list[Mapping[str, Any]]] = {}
    for row in samples:
        by_name.setdefault(row["model"], []).append(row)
    micros: dict[str, list[float]] = {}
    networks: dict[str, NetworkRow] = {}
    for label, found in by_name.items():
        keys = tuple(key for key, _ in found[0].get("kernels", ()))
        for row in found:  # a runtime may order independent kernels another way when it loads the model again
            if Counter(key for key, _ in row.get("kernels", ())) != Counter(keys):
                raise TableError(f"'{label}' ran other kernels in round {row['round']} than in its first one")
            for key, time in row.get("kernels", ()):
                micros.setdefault(key, []).append(float(time))
        networks[label] = _network(label, [float(row["ms"]) for row in found], keys, (macs or {}).get(label))
    kernels = {key: _kernel(key, times) for key, times in micros.items()}
    settings = dict(header["settings"])
    found_header = {
        "device": dict(header["device"]),
        "runtime": dict(header["runtime"]),
        "settings": {key: value for key, value in settings.items() if key not in _FACTS},
        "precision": precision_of(kernels),
        "layout_block": header.get("layout_block", 0),
        "profiler_overhead_us": header.get("profiler_overhead_us", 0.0),
        "protocol": {**{key: settings[key] for key in _FACTS if key in settings}, "order": "interleaved, shuffled"},
        "notes": [*([note] if note else []), *warnings_of(networks.values(), samples)],
        "created": datetime.fromtimestamp(float(samples[0].get("at", 0.0)), UTC).isoformat(timespec="seconds"),
    }
    return DeviceTable(name, found_header, kernels, networks)


def warnings_of(networks: Any, samples: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what the reader of a table should know: throttling, noise, others on the machine."""
    notes = []
    rows = list(networks)
    drifts = [row.drift for row in rows if row.drift is not None]
    if drifts and abs(float(np.median(drifts))) > THROTTLED:
        word = "slower" if np.median(drifts) > 0 else "faster"
        notes.append(
            f"the device became {abs(float(np.median(drifts))):.0%} {word} during the run: its clock was changed or "
            "something else ran; let it cool and measure again"
        )
    noises = [row.noise for row in rows if row.noise is not None]
    if noises and float(np.median(noises)) > NOISY:
        notes.append(f"the noise floor is {float(np.median(noises)):.1%}: smaller differences mean nothing")
    clocks = [row["mhz"] for row in samples if row.get("mhz")]
    if clocks and min(clocks) < 0.9 * max(clocks):
        notes.append(f"the clock moved between {min(clocks):.0f} and {max(clocks):.0f} MHz")
    rounds = Counter(row.rounds for row in rows)
    if rounds and max(rounds) < 4:
        notes.append("fewer than four rounds tell no noise floor")
    return notes


def _network(name: str, times: list[float], keys: tuple[str, ...], macs: int | None) -> NetworkRow:
    from slim_latency.kernels import total_macs

    q1, median, q3 = stats.quartiles(times)
    count = total_macs(keys) if macs is None else macs
    return NetworkRow(name, median, q1, q3, len(times), stats.noise_floor(times), stats.drift(times), count, keys)


def _kernel(key: str, times: list[float]) -> KernelRow:
    q1, median, q3 = stats.quartiles(times)
    return KernelRow(key, len(times), median, q1, q3)
