"""The data of a report: what ``report.json`` holds. No drawing here, and no measuring.

``report.json`` is the :class:`Report` as JSON, field by field. Readers accept every ``schema_version`` up to their own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from slim_core.errors import SlimError
from slim_core.files import write_json

SCHEMA_VERSION = 1
MAX_BYTES = 64 << 20

NoteLevel = Literal["info", "warning", "bad"]


@dataclass(frozen=True, slots=True)
class Device:
    """Where the figures come from.

    Args:
        cpu: the processor's name as the system gives it.
        cores: logical processors that this process may use.
        threads: threads that PyTorch uses.
        accelerator: name of the GPU, or ``None``.
        system: operating system and machine type.
        python: version of Python.
        details: whatever else is known: instruction sets, governor, memory, load.
    """

    cpu: str
    cores: int
    threads: int
    accelerator: str | None
    system: str
    python: str
    details: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = [self.cpu, _plural(self.cores, "core"), _plural(self.threads, "thread")]
        if self.accelerator:
            parts.insert(1, self.accelerator)
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class ModelRow:
    """What is known about one model.

    Args:
        key: ``"original"``, ``"compressed"``, or ``"step-1"``.
        label: what the table calls it.
        metrics: figures on the validation data, by name.
        params: parameters.
        macs: multiply-accumulates of one sample; one multiply-accumulate counts as one.
        checkpoint_bytes: size of its ``.safetensors`` file.
        export_bytes: size of the exported file, or ``None``.
        peak_activation_bytes: the most activation memory of one sample, or ``None``.
    """

    key: str
    label: str
    metrics: Mapping[str, float]
    params: int | None
    macs: int | None
    checkpoint_bytes: int | None
    export_bytes: int | None = None
    peak_activation_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class MetricInfo:
    """How to read a metric: which direction is better, and whether decisions are made on it."""

    name: str
    higher_is_better: bool
    primary: bool


@dataclass(frozen=True, slots=True)
class LatencyRow:
    """One backend at one batch size: original and compressed, timed in alternation in the same minutes.

    Args:
        backend: registered name of the runtime.
        runtime: name and version of the runtime.
        batch: batch size.
        threads: threads of the runtime, or ``None`` when it is not known.
        original_ms: median latency of the original, in milliseconds per batch.
        original_iqr_ms: distance between the quartiles.
        compressed_ms: median latency of the compressed model.
        compressed_iqr_ms: distance between the quartiles.
        speedup: original over compressed: above 1 the compressed model is faster.
        speedup_low: lower end of the 95 % interval, or ``None``.
        speedup_high: upper end of the interval, or ``None``.
        rounds: timed rounds per model.
        settings: what else the runtime was told.
    """

    backend: str
    runtime: str
    batch: int
    threads: int | None
    original_ms: float
    original_iqr_ms: float
    compressed_ms: float
    compressed_iqr_ms: float
    speedup: float
    speedup_low: float | None = None
    speedup_high: float | None = None
    rounds: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> Literal["faster", "slower", "even"]:
        """Return which of the two is faster, as far as the interval can tell."""
        low = self.speedup if self.speedup_low is None else self.speedup_low
        high = self.speedup if self.speedup_high is None else self.speedup_high
        if low > 1:
            return "faster"
        return "slower" if high < 1 else "even"


@dataclass(frozen=True, slots=True)
class ChannelRow:
    """How many channels of a group were kept."""

    name: str
    kept: int
    total: int


@dataclass(frozen=True, slots=True)
class StepRow:
    """One step of the recipe.

    Args:
        index: position, from 1; 0 is the base model.
        kind: the technique.
        name: what the recipe calls the step.
        seconds: how long it took.
        before: figures before the step.
        after: figures after it.
        channels: kept channels by group.
        history: one mapping per epoch: ``epoch``, ``loss``, ``lr`` and metrics.
        layers: one mapping per layer: ``name`` and figures.
        details: everything else that the technique told.
        notes: what was left alone, degraded or skipped.
        curves: one mapping per chart: ``title``, ``x_label``, ``y_label`` and ``series``, each ``{name, x, y}``.
        plots: bars, histograms and scatter plots, as ``plots.read_plots`` reads them.
    """

    index: int
    kind: str
    name: str
    seconds: float
    before: ModelRow | None
    after: ModelRow
    channels: tuple[ChannelRow, ...] = ()
    history: tuple[Mapping[str, Any], ...] = ()
    layers: tuple[Mapping[str, Any], ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    curves: tuple[Mapping[str, Any], ...] = ()
    plots: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Note:
    """Something that the reader should know.

    Args:
        level: ``"info"``; ``"warning"`` for what degraded or was skipped; ``"bad"`` for a result that is worse than
            the original where it should be better.
        text: one sentence.
        where: the step or measurement that it is about.
        hint: what to change.
    """

    level: NoteLevel
    text: str
    where: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that a run found out.

    Args:
        title: the recipe's name.
        description: the recipe's own words, or ``None``.
        created: when the run finished, ISO 8601 with the zone.
        seconds: time spent computing, over all attempts.
        seed: the recipe's seed.
        recipe: the recipe with all defaults.
        recipe_hash: identity of recipe and weights.
        versions: package -> version.
        device: where the figures come from.
        metrics: how to read the metrics; the first one is what is judged.
        original: the model that the others are compared with.
        compressed: the result.
        steps: base and steps, in order.
        latency: original against compressed, by backend and batch size.
        notes: everything that the reader should know.
        files: role -> file name, relative to the report.
        reproduce: commands that give this result again.
        dataset: registered name and size of the data, as text.
        schema_version: version of this layout.
    """

    title: str
    description: str | None
    created: str
    seconds: float
    seed: int
    recipe: Mapping[str, Any]
    recipe_hash: str
    versions: Mapping[str, str]
    device: Device
    metrics: tuple[MetricInfo, ...]
    original: ModelRow
    compressed: ModelRow
    steps: tuple[StepRow, ...]
    latency: tuple[LatencyRow, ...] = ()
    notes: tuple[Note, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    reproduce: tuple[str, ...] = ()
    dataset: str = ""
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        data: dict[str, Any] = json.loads(json.dumps(asdict(self), allow_nan=False))
        return data

    @classmethod
    def from_json(cls, data: Any) -> Report:
        """Read what :meth:`to_json` gave.

        Raises:
            SlimError: it is not a report, or one of a later layout.
        """
        if not isinstance(data, dict) or not isinstance(data.get("schema_version"), int):
            raise SlimError("this is not a report of Slim: it has no schema_version")
        if data["schema_version"] > SCHEMA_VERSION:
            raise SlimError(
                f"the report has layout {data['schema_version']}; this Slim reads up to {SCHEMA_VERSION}",
                hint="pip install -U slim-core",
            )
        try:
            return cls(
                **{
                    **data,
                    "device": Device(**data["device"]),
                    "metrics": tuple(MetricInfo(**item) for item in data["metrics"]),
                    "original": ModelRow(**data["original"]),
                    "compressed": ModelRow(**data["compressed"]),
                    "steps": tuple(step_from_json(item) for item in data["steps"]),
                    "latency": tuple(LatencyRow(**item) for item in data["latency"]),
                    "notes": tuple(Note(**item) for item in data["notes"]),
                    "reproduce": tuple(data["reproduce"]),
                }
            )
        except (KeyError, TypeError) as error:
            raise SlimError(f"the report is damaged: {error}", hint="run the recipe again") from None


def step_from_json(data: Mapping[str, Any]) -> StepRow:
    """Read one step of a report."""
    return StepRow(
        **{
            **data,
            "before": None if data["before"] is None else ModelRow(**data["before"]),
            "after": ModelRow(**data["after"]),
            "channels": tuple(ChannelRow(**item) for item in data["channels"]),
            "history": tuple(data["history"]),
            "layers": tuple(data["layers"]),
            "notes": tuple(data["notes"]),
            "curves": tuple(data.get("curves", ())),
            "plots": tuple(data.get("plots", ())),
        }
    )


def _plural(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def write_report(report: Report, path: str | os.PathLike[str]) -> None:
    """Write ``report.json``."""
    write_json(path, report.to_json())


def read_report(path: str | os.PathLike[str]) -> Report:
    """Read ``report.json``.

    Raises:
        SlimError: it is not there, or not a report.
    """
    file = Path(path)
    try:
        if file.stat().st_size > MAX_BYTES:
            raise SlimError(f"the report is larger than {MAX_BYTES} bytes", where=str(file))
        data = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SlimError(
            "there is no report", where=str(file), hint="`slim run RECIPE -o FOLDER` writes one when it has finished"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise SlimError(f"the report cannot be read: {error}", where=str(file)) from None
    try:
        return Report.from_json(data)
    except SlimError as error:
        raise SlimError(error.what, where=str(file), hint=error.hint) from None
