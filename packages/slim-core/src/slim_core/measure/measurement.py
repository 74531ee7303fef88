"""``measure``: several models on several runtimes, checked against each other, then timed interleaved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, cast

import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils import _pytree as pytree

from slim_core.errors import MeasureError
from slim_core.measure import agree, stats
from slim_core.measure.backend import Artifact, Backend, Session
from slim_core.measure.device import DeviceInfo, Others, Watch, this_device, versions
from slim_core.measure.eager import TorchSession
from slim_core.measure.rounds import Candidate, Samples, take_samples
from slim_core.progress import Progress, SilentProgress
from slim_core.workload import Inputs, tensors_of

SCHEMA_VERSION = 1
#: packages whose versions decide figures
LIBRARIES = ("slim-core", "slim-latency", "torch", "numpy", "onnxruntime", "openvino", "ncnn")
#: later half slower or faster than the earlier one by more than this: said in a note
DRIFT = 0.05
#: others that used more than this many cores during the measurement are mentioned
CROWDED = 0.1

What = Session | tuple[Backend, Artifact]


@dataclass(frozen=True, slots=True)
class Timing:
    """One candidate.

    Args:
        name: the candidate.
        median_ms: median over the rounds of the time of one call.
        q1_ms: lower quartile.
        q3_ms: upper quartile.
        min_ms: shortest sample.
        ratio: median over the rounds of this candidate's time over the first candidate's in the same round; below 1
            it is faster. It need not equal the ratio of the medians, which disturbances do not cancel from.
        ratio_low: lower end of the interval for ``ratio``.
        ratio_high: upper end.
        noise: how much the medians of two halves of the samples differ, relative; smaller differences mean nothing.
        drift: by how much the later half was slower than the earlier one, relative.
        inner: calls per sample.
        warmup: calls before the first sample.
        info: what the session says about runtime, device, threads and settings.
        agreement: how close its outputs are to the reference, or ``None`` when there was none.
        samples_ms: every sample, in order of the rounds.
    """

    name: str
    median_ms: float
    q1_ms: float
    q3_ms: float
    min_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float
    noise: float | None
    drift: float | None
    inner: int
    warmup: int
    info: Mapping[str, Any]
    agreement: agree.Agreement | None
    samples_ms: tuple[float, ...] = field(repr=False)

    @property
    def iqr_ms(self) -> float:
        """Distance between the quartiles."""
        return self.q3_ms - self.q1_ms

    @property
    def speedup(self) -> float:
        """How many times as fast as the first candidate."""
        return 1 / self.ratio

    @property
    def speedup_interval(self) -> tuple[float, float]:
        return 1 / self.ratio_high, 1 / self.ratio_low

    @property
    def verdict(self) -> Literal["faster", "slower", "even"]:
        """Against the first candidate, as far as the interval can tell."""
        return "faster" if self.ratio_high < 1 else "slower" if self.ratio_low > 1 else "even"

    def to_json(self) -> dict[str, Any]:
        names = ("name", "median_ms", "q1_ms", "q3_ms", "min_ms", "iqr_ms", "ratio", "ratio_low", "ratio_high",
                 "noise", "drift", "inner", "warmup", "verdict")  # fmt: skip
        return {
            **{name: getattr(self, name) for name in names},
            "info": dict(self.info),
            "agreement": self.agreement.to_json() if self.agreement else None,
            "samples_ms": list(self.samples_ms),
        }


@dataclass(frozen=True, slots=True)
class Measurement:
    """What was measured, on what, and how.

    Args:
        timings: one per candidate, in the order given.
        device: the machine.
        versions: of the packages that decide figures.
        protocol: rounds, seed and limits.
        confidence: what the ratio intervals have, 0.95 from six rounds on.
        notes: what the reader of the figures should know.
        created: when, in ISO 8601.
    """

    timings: tuple[Timing, ...]
    device: DeviceInfo
    versions: Mapping[str, str]
    protocol: Mapping[str, Any]
    confidence: float
    notes: tuple[str, ...]
    created: str

    def __getitem__(self, name: str) -> Timing:
        for timing in self.timings:
            if timing.name == name:
                return timing
        raise KeyError(name)

    def to_json(self) -> dict[str, Any]:
        """Return everything, samples included, as JSON values."""
        return {
            "schema_version": SCHEMA_VERSION,
            "created": self.created,
            "device": self.device.to_json(),
            "versions": dict(self.versions),
            "protocol": dict(self.protocol),
            "confidence": self.confidence,
            "notes": list(self.notes),
            "timings": [timing.to_json() for timing in self.timings],
        }


def measure(
    candidates: Mapping[str, What],
    inputs: Inputs,
    *,
    rounds: int = 30,
    warmup: int = 10,
    threads: int | None = None,
    seed: int = 0,
    min_sample_ms: float = 5.0,
    budget_s: float = 60.0,
    references: Mapping[str, nn.Module | Sequence[NDArray[Any]]] | None = None,
    tolerance: float = agree.TOLERANCE,
    progress: Progress | None = None,
) -> Measurement:
    """Check that every candidate computes what it should, then time all of them, interleaved.

    In every round each candidate gives one sample, in a new random order: the mean of as many calls as fill
    ``min_sample_ms``. What disturbs the machine disturbs all candidates, and the ratio within a round cancels it.

    Args:
        candidates: sessions, or backends with the artifact to prepare; the first one is what the others are
            compared with.
        inputs: what every candidate runs on.
        rounds: samples per candidate.
        warmup: calls per candidate before anything is timed.
        threads: threads of the runtimes, for candidates given with their backend; ``None``: the runtimes' own.
        seed: of the order inside rounds.
        min_sample_ms: shortest sample, in milliseconds.
        budget_s: stop after this many seconds, preparation not counted; six rounds are made in any case.
        references: what to check a candidate against: a model, or its outputs. An artifact with a model is checked
            against that in any case.
        tolerance: largest difference from the reference, as a share of its largest output (or of 1). Quantized
            artifacts are only reported.
        progress: where to report to.

    Raises:
        MeasureError: a candidate computes something else than its reference, or cannot be prepared.
        MissingExtraError: a runtime is not installed.
    """
    if not candidates:
        raise MeasureError("there is nothing to measure")
    if rounds < 1:
        raise MeasureError(f"rounds must be at least 1, not {rounds}")
    progress = progress or SilentProgress()
    references, started = references or {}, datetime.now(UTC)
    for name in references:
        if name not in candidates:
            raise MeasureError(f"reference '{name}' belongs to no candidate")
    device = this_device()  # before the work: its own load is not what disturbs it
    with ExitStack() as stack:
        sessions: dict[str, Session] = {}
        for name, what in candidates.items():
            sessions[name] = _prepared(name, what, inputs, threads)
            if not isinstance(what, Session):
                stack.callback(sessions[name].close)
        agreements = {
            name: _check(name, sessions[name], candidates[name], inputs, references.get(name), tolerance)
            for name in sessions
        }
        watch = Watch()
        with progress.track("time", rounds) as track:
            samples = take_samples(
                {name: Candidate(session.bind(inputs), session.active) for name, session in sessions.items()},
                rounds=rounds,
                warmup=warmup,
                min_sample_s=min_sample_ms / 1e3,
                budget_s=budget_s,
                seed=seed,
                on_round=lambda: track.advance(1),
            )
        others = watch.read()
        infos = {name: dict(session.info) for name, session in sessions.items()}
    timings = _timings(samples, infos, agreements, seed)
    return Measurement(
        timings=timings,
        device=device,
        versions=versions(LIBRARIES),
        protocol={
            "rounds": len(next(iter(samples.seconds.values()))),
            "order": "interleaved, shuffled in each round",
            "seed": seed,
            "min_sample_ms": min_sample_ms,
            "budget_s": budget_s,
            "tolerance": tolerance,
            "others_busy_cores": others.busy if others else None,
            "stolen_cores": others.stolen if others else None,
        },
        confidence=stats.median_interval(timings[0].samples_ms)[2],
        notes=tuple(_notes(samples, timings, device, others, rounds)),
        created=started.astimezone().isoformat(timespec="seconds"),
    )


def batched(inputs: Inputs, size: int) -> Inputs:
    """Return inputs with ``size`` samples: those of ``inputs``, repeated or cut. Dimension 0 is the batch.

    Tensors that do not share the first tensor's dimension 0 stay as they are.
    """
    batch = next((tensor.shape[0] for tensor in tensors_of(inputs) if tensor.dim()), 1)
    index = torch.arange(size) % batch

    def change(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.dim() and value.shape[0] == batch:
            return value[index.to(value.device)]
        return value

    plain = dict(inputs.items()) if isinstance(inputs, Mapping) else inputs
    return cast(Inputs, pytree.tree_map(change, plain))


def _prepared(name: str, what: What, inputs: Inputs, threads: int | None) -> Session:
    if isinstance(what, Session):
        return what
    backend, artifact = what
    backend.available()
    try:
        return backend.prepare(artifact, inputs, threads=threads)
    except MeasureError as error:
        error.where = error.where or f"candidate '{name}'"
        raise


def _check(
    name: str, session: Session, what: What, inputs: Inputs, reference: Any, tolerance: float
) -> agree.Agreement | None:
    artifact = None if isinstance(what, Session) else what[1]
    model = artifact.model if artifact else None
    if reference is None:
        reference = model
    if reference is None:
        session.run(inputs)
        return None
    if isinstance(reference, nn.Module):
        expected = TorchSession(reference, None, "eager").run(inputs)
    else:
        expected = list(reference)
    quantized = artifact.quantized if artifact else None
    if quantized is None:
        quantized = any(isinstance(item, nn.Module) and quantizes(item) for item in (reference, model))
    found = agree.compare(expected, session.run(inputs), None if quantized else tolerance, name)
    if not found.ok:
        raise MeasureError(
            f"'{name}' does not compute what its reference computes: {found}",
            where=str(session.info.get("runtime", "")) or None,
            hint="its time would mean nothing; pass quantized=True for a quantized model, or a larger tolerance",
        )
    return found


def quantizes(model: nn.Module) -> bool:
    """Return whether a model simulates integer arithmetic: its graph or one of its modules fake-quantizes."""
    for module in model.modules():
        if "fakequant" in type(module).__name__.lower():
            return True
        nodes = module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ()
        if any(node.op == "call_function" and "quantize" in str(node.target) for node in nodes):
            return True
    return False


def _timings(
    samples: Samples, infos: Mapping[str, Any], agreements: Mapping[str, agree.Agreement | None], seed: int
) -> tuple[Timing, ...]:
    first = next(iter(samples.seconds.values()))
    rows = []
    for name, seconds in samples.seconds.items():
        milliseconds = tuple(value * 1e3 for value in seconds)
        ratios = [mine / base for mine, base in zip(seconds, first, strict=True)]
        low, high, _ = stats.median_interval(ratios)
        q1, median, q3 = stats.quartiles(milliseconds)
        rows.append(
            Timing(
                name=name,
                median_ms=median,
                q1_ms=q1,
                q3_ms=q3,
                min_ms=min(milliseconds),
                ratio=stats.quartiles(ratios)[1],
                ratio_low=low,
                ratio_high=high,
                noise=stats.noise_floor(milliseconds, seed),
                drift=stats.drift(milliseconds),
                inner=samples.inner[name],
                warmup=samples.warmup[name],
                info=infos[name],
                agreement=agreements[name],
                samples_ms=milliseconds,
            )
        )
    return tuple(rows)


def _notes(
    samples: Samples, timings: Sequence[Timing], device: DeviceInfo, others: Others | None, rounds: int
) -> list[str]:
    notes = [f"{timing.name}: {line}" for timing in timings for line in timing.info.get("notes", ())]
    done = len(timings[0].samples_ms)
    if samples.out_of_time:
        notes.append(f"{done} of {rounds} rounds: the time was up")
    if done < 6:
        notes.append(f"{done} rounds give no 95 % interval for a ratio; make at least 6")
    for timing in timings:
        if timing.drift is not None and abs(timing.drift) > max(DRIFT, 2 * (timing.noise or 0)):
            word = "slower" if timing.drift > 0 else "faster"
            notes.append(
                f"{timing.name} became {abs(timing.drift):.0%} {word} during the measurement: the clock changed, or "
                "something else ran"
            )
    if others is not None and others.busy > CROWDED:
        notes.append(f"other processes used {others.busy:.1f} of the machine's cores during the measurement")
    if others is not None and others.stolen > CROWDED:
        notes.append(f"the hypervisor took {others.stolen:.1f} cores for other guests during the measurement")
    if device.governor not in (None, "performance"):
        notes.append(f"the frequency governor is '{device.governor}': the clock may change while timing")
    unlike = {timing.info.get("threads") for timing in timings}
    if len(unlike) > 1:
        notes.append(f"candidates use different thread counts: {', '.join(map(str, unlike))}")
    return notes
