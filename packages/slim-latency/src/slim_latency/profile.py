"""Profiles of ONNX files on onnxruntime: where the time goes, kernel by kernel, measured in shuffled rounds.

Measuring is the agent's (``agent.py``), so that figures from this machine and from a phone are of one kind. What is
drawn of a profile is in ``profile_views.py``.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slim_core.errors import MeasureError
from slim_core.extras import require
from slim_core.measure import stats
from slim_core.measure.device import Others, Watch
from slim_core.measure.measurement import CROWDED
from slim_core.progress import Progress, SilentProgress
from slim_latency import agent
from slim_latency.kernels import parse_key
from slim_latency.predict.fit import corrected
from slim_latency.results import warnings_of

SCHEMA_VERSION = 1
EXTRA = "slim-latency[onnxruntime]"
#: a sum of kernels further from the whole than this is told
_APART = 0.05


@dataclass(frozen=True, slots=True)
class KernelTime:
    """One kernel of a network, in its place.

    Args:
        name: of the node in the runtime's optimised graph.
        key: names the kernel (see ``kernels.py``).
        median_us: median over the rounds in microseconds, without the profiler's overhead.
        q1_us: lower quartile.
        q3_us: upper quartile.
        share: of the sum over all kernels.
    """

    name: str
    key: str
    median_us: float
    q1_us: float
    q3_us: float
    share: float


@dataclass(frozen=True, slots=True)
class Profile:
    """One network.

    Args:
        name: what it is called.
        sha256: of its file.
        median_ms: median over the rounds of one call, without a profiler.
        q1_ms: lower quartile.
        q3_ms: upper quartile.
        noise: how much the medians of two halves of the rounds differ, relative; ``None`` below four rounds.
        drift: by how much the later half was slower, relative.
        profiled_ms: median of one call under the profiler.
        kernels: in the order in which they ran.
        samples_ms: one for each round.
    """

    name: str
    sha256: str
    median_ms: float
    q1_ms: float
    q3_ms: float
    noise: float | None
    drift: float | None
    profiled_ms: float
    kernels: tuple[KernelTime, ...]
    samples_ms: tuple[float, ...]

    @property
    def sum_ms(self) -> float:
        """Sum of the kernels: close to ``median_ms`` when the profile tells the truth."""
        return sum(kernel.median_us for kernel in self.kernels) / 1e3

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the kernels, channels that the runtime pads included."""
        return sum(parse_key(kernel.key).macs for kernel in self.kernels)

    def by_kind(self) -> tuple[tuple[str, int, float, float], ...]:
        """Return kind of kernel, how many, microseconds and share, the most costly kind first."""
        sums: dict[str, list[float]] = {}
        for kernel in self.kernels:
            sums.setdefault(parse_key(kernel.key).family, []).append(kernel.median_us)
        total = sum(map(sum, sums.values())) or 1.0
        rows = [(kind, len(times), sum(times), sum(times) / total) for kind, times in sums.items()]
        return tuple(sorted(rows, key=lambda row: (-row[2], row[0])))


@dataclass(frozen=True, slots=True)
class Profiles:
    """What was measured in one go.

    Args:
        profiles: one for each network, in the order given.
        device: facts about the machine.
        runtime: name, version and provider.
        settings: threads, graph level, rounds, seed and so on.
        overhead_us: what the profiler adds to each kernel; it is taken off.
        notes: what the reader should know.
        rows: the agent's lines, from which tables are made.
    """

    profiles: tuple[Profile, ...]
    device: Mapping[str, Any]
    runtime: Mapping[str, Any]
    settings: Mapping[str, Any]
    overhead_us: float
    notes: tuple[str, ...]
    rows: tuple[Mapping[str, Any], ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "device": dict(self.device),
            "runtime": dict(self.runtime),
            "settings": dict(self.settings),
            "profiler_overhead_us": self.overhead_us,
            "notes": list(self.notes),
            "profiles": [
                {**asdict(profile), "sum_ms": profile.sum_ms, "macs": profile.macs} for profile in self.profiles
            ],
        }


def profile(
    files: Mapping[str, Path],
    *,
    rounds: int = 10,
    threads: int = 1,
    level: str = "all",
    batch: int = 1,
    shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
    sample_ms: float = 30.0,
    progress: Progress | None = None,
) -> Profiles:
    """Profile ONNX files on this machine, all of them in shuffled rounds.

    In every round each file gives one sample: calls without a profiler for its latency, and as many under onnxruntime's
    own profiler for its kernels.

    Args:
        files: ONNX files by the name that they get.
        rounds: samples per file.
        threads: threads inside operators.
        level: how far the runtime rewrites the graph: ``disabled``, ``basic``, ``extended`` or ``all``.
        batch: size of a first dimension of any size.
        shapes: shapes of inputs with other dimensions of any size, by input name.
        seed: of the inputs and of the order in the rounds.
        sample_ms: how long the calls of one sample take together.
        progress: where to report to.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        MeasureError: a file is not there, or the runtime refuses it.
    """
    require("onnxruntime", EXTRA)
    if not files:
        raise MeasureError("there is nothing to profile")
    if rounds < 1 or threads < 1:
        raise MeasureError("rounds and threads must be at least 1")
    if level not in agent._LEVELS:
        raise MeasureError(f"unknown graph level {level!r}", hint=f"onnxruntime has: {', '.join(agent._LEVELS)}")
    settings = {
        **agent.SETTINGS, "rounds": rounds, "threads": threads, "level": level, "seed": seed, "sample_ms": sample_ms,
        "batch": batch, "shapes": {name: list(shape) for name, shape in (shapes or {}).items()} or None,
    }  # fmt: skip
    for path in files.values():
        if not Path(path).is_file():
            raise MeasureError(f"there is no file {path}")
    header: dict[str, Any] = {
        "kind": "header", "schema": agent.SCHEMA, "device": agent.device_facts(), "runtime": agent.OnnxRuntime.facts(),
        "settings": settings, "layout_block": agent.layout_block() if level == "all" else 0,
        "profiler_overhead_us": agent.profiler_overhead(threads, level),
    }  # fmt: skip
    models = {name: agent.Model(name, str(path), settings) for name, path in files.items()}
    watch = Watch()
    rows: list[dict[str, Any]] = [header]
    with (progress or SilentProgress()).track("profile", rounds * len(models)) as track:
        for number in range(rounds):
            for name in agent.order_of(list(models), seed, number):
                row = _sampled(models[name], files[name])
                row.update(kind="sample", round=number, model=name, at=time.time(), mhz=agent.clock_mhz())
                rows.append(row)
                track.advance(1)
    profiles = tuple(_profile(name, path, rows, header["profiler_overhead_us"]) for name, path in files.items())
    return Profiles(
        profiles, header["device"], header["runtime"], settings, header["profiler_overhead_us"],
        tuple(_notes(profiles, rows, settings, watch.read())), tuple(rows),
    )  # fmt: skip


def _sampled(model: agent.Model, path: Path) -> dict[str, Any]:
    try:
        return model.sample()
    except agent.Refused as error:
        raise MeasureError(str(error), where=str(path), hint="give the shape: --shape NAME=1,3,224,224") from error
    except Exception as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise MeasureError(f"onnxruntime does not run the file: {first}", where=str(path)) from error


def _profile(name: str, path: Path, rows: Sequence[Mapping[str, Any]], overhead: float) -> Profile:
    found = [row for row in rows if row["kind"] == "sample" and row["model"] == name]
    times = [float(row["ms"]) for row in found]
    q1, median, q3 = stats.quartiles(times)
    places = np.array([[micros for _, micros in row["kernels"]] for row in found])
    low, middle, high = np.percentile(places, [25, 50, 75], axis=0)
    clean = [corrected(float(value), overhead) for value in middle]
    total = sum(clean) or 1.0
    kernels = tuple(
        KernelTime(
            node, key, value, corrected(float(first), overhead), corrected(float(third), overhead), value / total
        )
        for (key, _), node, value, first, third in zip(
            found[0]["kernels"], found[0]["nodes"], clean, low, high, strict=True
        )
    )
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    profiled = stats.quartiles([float(row["profiled_ms"]) for row in found])[1]
    return Profile(
        name, digest, median, q1, q3, stats.noise_floor(times), stats.drift(times), profiled, kernels, tuple(times)
    )


def _notes(
    profiles: Sequence[Profile], rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any], others: Others | None
) -> list[str]:
    from slim_latency.table import NetworkRow

    networks = [
        NetworkRow(item.name, item.median_ms, item.q1_ms, item.q3_ms, len(item.samples_ms), item.noise, item.drift,
                   0, ()) for item in profiles
    ]  # fmt: skip
    notes = warnings_of(networks, rows[1:])
    if others is not None and others.busy + others.stolen > CROWDED:
        notes.append(f"others used {others.busy + others.stolen:.1f} of the machine's cores during the measurement")
    for item in profiles:
        apart = item.sum_ms / item.median_ms - 1
        if abs(apart) > _APART and settings["threads"] == 1:
            notes.append(
                f"the kernels of {item.name} sum to {apart:+.0%} of its latency: they are very small, or others used "
                "the machine"
            )
    return notes
