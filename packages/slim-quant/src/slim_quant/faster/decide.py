"""``never_slower()``: keeps a quantized model only where its file beats the float one, leaving what loses in float.

The clock and the profiler are passed in, so that what is decided can be tested without them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from slim_core.errors import SlimError
from slim_core.export import to_onnx
from slim_core.graph.export import ExportedModel
from slim_core.measure import batched
from slim_core.progress import Progress, SilentProgress
from slim_core.workload import Inputs
from slim_quant.calibration import CalibrationData
from slim_quant.faster import segments as parts
from slim_quant.faster.timing import Profiler, Ratio, Timer, describe, profiler, timer
from slim_quant.placement import quantizable
from slim_quant.preparation import prepare
from slim_quant.ptq.static import quantize
from slim_quant.result import QuantResult
from slim_quant.runtimes import RUNTIMES
from slim_quant.targets import Target, get_target
from slim_quant.units import word_of

#: batch sizes at which the quantized file must win: one sample, and a full batch
BATCHES = (1, 32)
#: a file must be faster by this much: less is a tie, and ties go to float
MARGIN = 0.02
#: doubts with which segments are chosen, the boldest choice first
DOUBTS = (1.0, 1.25, 1.6)
#: activations that some runtimes compute in float between two conversions
SLOW = ("hardswish", "hardsigmoid", "silu", "gelu", "sigmoid", "mul", "pool", "softmax", "add", "concat")
FLOAT, INTEGERS = "float", "integers"

Build = Callable[[Sequence[str]], QuantResult]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file that was timed.

    Args:
        name: what it is.
        skip: patterns of what stays in float.
        ratios: its time over the float file's, by batch size.
        confirmed: timed again by itself, or ``None`` where that was not needed.
    """

    name: str
    skip: tuple[str, ...]
    ratios: Mapping[int, Ratio]
    confirmed: Mapping[int, Ratio] | None = None

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {"name": self.name, "skip": list(self.skip)}
        for key, ratios in (("ratios", self.ratios), ("confirmed", self.confirmed)):
            found[key] = None if ratios is None else {str(size): item.to_json() for size, item in ratios.items()}
        return found


@dataclass(frozen=True, slots=True)
class Faster:
    """What is never slower.

    Args:
        result: the quantized model, or ``None`` where nothing beats float: use the float model.
        skip: patterns of what stays in float.
        left: the layers and operators that they mean.
        ratios: time over that of the float file, by batch size; empty where the result is float.
        candidates: everything that was timed.
        notes: what was decided, and why.
    """

    result: QuantResult | None
    skip: tuple[str, ...]
    left: tuple[str, ...]
    ratios: Mapping[int, Ratio]
    candidates: tuple[Candidate, ...]
    notes: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        return {
            "quantized": self.result is not None,
            "left_in_float": list(self.left),
            "ratios": {str(size): item.to_json() for size, item in self.ratios.items()},
            "candidates": [item.to_json() for item in self.candidates],
            "notes": list(self.notes),
        }


def never_slower(
    model: nn.Module,
    example_inputs: Inputs,
    target: str | Target = "onnxruntime",
    *,
    batches: Iterable[Any] | None = None,
    build: Build | None = None,
    result: QuantResult | None = None,
    batch_sizes: Sequence[int] = BATCHES,
    margin: float = MARGIN,
    threads: int | None = None,
    rounds: int = 21,
    budget_s: float = 20.0,
    clock: Timer | None = None,
    profile: Profiler | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    **options: Any,
) -> Faster:
    """Quantize, export, time against float on the target's runtime; leave what loses in float until the whole wins.

    First the wholly quantized file is timed. Where it does not win at every batch size, both files are profiled, and
    models that leave losing segments or kinds of operators in float are built and timed, all interleaved. The fastest
    that wins everywhere is timed once more by itself: chance picks among many, not twice. If nothing wins, the result
    is the float model, and the notes say so.

    Args:
        model: the float model; it is not changed.
        example_inputs: inputs to export with; their sizes are those that are timed.
        target: ``"onnxruntime"`` or ``"openvino"``: what is quantized for, and timed on.
        batches: batches of what the forward takes, to calibrate on; needed where there is no ``build``.
        build: quantizes with a skip list; ``None``: ``quantize`` with ``options``.
        result: what ``build([])`` would give, where it is there already.
        batch_sizes: a file must win at each of them.
        margin: by how much; less is a tie, and ties go to float.
        threads: threads of the runtime; ``None``: its own choice.
        rounds: samples per file and batch size.
        budget_s: seconds for each comparison, at the most (six rounds are made in any case).
        clock: times files; ``None``: on the runtime.
        profile: profiles a file; ``None``: on the runtime.
        seed: of the order in rounds.
        progress: where to report to.
        options: for :func:`slim_quant.quantize`.

    Raises:
        SlimError: neither ``batches`` nor ``build``, or a target without a runtime here.
        MissingExtraError: the runtime is not installed.
        ModelError: the model cannot be exported.
    """
    progress = progress or SilentProgress()
    chosen = get_target(target)
    if chosen.name not in RUNTIMES and (clock is None or profile is None):
        raise SlimError(
            f"target '{chosen.name}' has no runtime here to time files on",
            hint=f"never slower works for {', '.join(RUNTIMES)}; for others pass clock= and profile=",
        )
    if not batch_sizes or any(size < 1 for size in batch_sizes):
        raise SlimError(f"batch sizes must be at least 1: {list(batch_sizes)}")
    if build is None:
        build = _builder(model, example_inputs, chosen, batches, options, progress)
    work = _Work(
        model, example_inputs, chosen, build, tuple(dict.fromkeys(batch_sizes)), margin,
        clock or timer(chosen.name, threads=threads, rounds=rounds, budget_s=budget_s, progress=progress),
        profile or profiler(chosen.name, threads=threads), seed, progress, options.get("overrides", ()),
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="slim-faster-") as folder:
        return work.decide(Path(folder), result)


def _builder(
    model: nn.Module, example_inputs: Inputs, target: Target, batches: Iterable[Any] | None,
    options: Mapping[str, Any], progress: Progress,
) -> Build:  # fmt: skip
    if batches is None:
        raise SlimError("there is nothing to calibrate on", hint="pass batches=, or build=")
    data = CalibrationData(batches, options.get("samples", 256))
    settings = {key: value for key, value in options.items() if key not in ("skip", "samples")}
    always = tuple(options.get("skip", ()))

    def build(skip: Sequence[str]) -> QuantResult:
        return quantize(
            model, data, example_inputs=example_inputs, target=target, skip=[*always, *skip], samples=len(data),
            progress=progress, **settings,
        )  # fmt: skip

    return build


class _Work:
    def __init__(
        self, model: nn.Module, example_inputs: Inputs, target: Target, build: Build, sizes: tuple[int, ...],
        margin: float, clock: Timer, profile: Profiler, seed: int, progress: Progress, overrides: Any,
    ) -> None:  # fmt: skip
        self.model, self.inputs, self.target, self.build, self.sizes = model, example_inputs, target, build, sizes
        self.margin, self.clock, self.profile, self.seed, self.progress = margin, clock, profile, seed, progress
        self.graph: ExportedModel = prepare(model, example_inputs, target=target).graph
        self.results: dict[str, QuantResult] = {}
        self.files: dict[str, Path] = {}
        self.skips: dict[str, tuple[str, ...]] = {INTEGERS: ()}
        self.timed: dict[str, Candidate] = {}

    def decide(self, folder: Path, result: QuantResult | None) -> Faster:
        self.files[FLOAT] = self._export(self.model, folder / "float.onnx")
        self._add(folder, INTEGERS, (), result)
        whole = self._time([INTEGERS])[0]
        if self._wins(whole.ratios):
            return self._keep(whole, [f"the quantized file wins: {describe(whole.ratios)}"])
        notes = [
            f"wholly quantized the file does not win for certain ({describe(whole.ratios)}): parts are left in float"
        ]
        for name, skip in self._guesses().items():
            self._add(folder, name, skip)
        names = [name for name in self.files if name != FLOAT]
        if len(names) > 1:
            found = self._time(names)
            for candidate in sorted((item for item in found if self._wins(item.ratios)), key=self._worst):
                again = self._time([candidate.name], self.seed + 1)[0].ratios
                kept = Candidate(candidate.name, candidate.skip, candidate.ratios, again)
                self.timed[candidate.name] = kept
                if self._wins(again):
                    notes.append(f"with {candidate.name} the quantized file wins: {describe(again)}")
                    return self._keep(kept, notes)
        best = min(self.timed.values(), key=self._worst)
        notes.append(
            f"nothing beats the float file on {self.target.name}: the best is {best.name}, {describe(best.ratios)}; "
            "the model stays in float"
        )
        for line in notes:
            self.progress.note(line)
        return Faster(None, (), (), {}, tuple(self.timed.values()), tuple(notes))

    def _keep(self, candidate: Candidate, notes: list[str]) -> Faster:
        left = self._meant(candidate.skip)
        if left:
            notes.append(f"left in float because they lose time in integers: {', '.join(left)}")
        for line in notes:
            self.progress.note(line)
        ratios = candidate.confirmed or candidate.ratios
        return Faster(
            self.results[candidate.name], candidate.skip, left, ratios, tuple(self.timed.values()), tuple(notes)
        )

    def _guesses(self) -> dict[str, tuple[str, ...]]:
        """Return skip lists to try, by what they are called; none twice."""
        found: dict[str, tuple[str, ...]] = {}
        seen: set[frozenset[str]] = {frozenset()}
        able = quantizable(self.graph, self.target)
        everything = frozenset(node.name for node in able)

        def add(name: str, nodes: Iterable[str]) -> None:
            skip = frozenset(nodes)
            if skip not in seen and skip != everything:
                seen.add(skip)
                found[name] = tuple(node.name for node in able if node.name in skip)

        for doubt, inside in self._by_profile():
            count = sum(not item for item in inside)
            nodes = [
                name for part, item in zip(self._segments(), inside, strict=True) if not item for name in part.nodes
            ]
            add(f"{count} of {len(inside)} segments in float" + (f" (doubt {doubt:g})" if doubt > 1 else ""), nodes)
        words: dict[str, list[str]] = {}
        for node in able:
            words.setdefault(word_of(node), []).append(node.name)
        slow = [word for word in SLOW if word in words]
        for word in slow:
            add(f"{word} in float", words[word])
        add(f"{', '.join(slow)} in float", [name for word in slow for name in words[word]])
        return found

    def _by_profile(self) -> list[tuple[float, list[bool]]]:
        segments = self._segments()
        plain, integers, casts = [0.0] * len(segments), [0.0] * len(segments), [0.0] * len(segments)
        for size in self.sizes:
            inputs = batched(self.inputs, size)
            kernels = [self.profile(self.files[name], inputs) for name in (FLOAT, INTEGERS)]
            times = [parts.times_of(item, len(segments)) for item in kernels]
            if times[0] is None or times[1] is None:
                self.progress.note(
                    "the profiles do not show the layers of the graph one by one: segments are not compared"
                )
                return []
            whole, cast = sum(times[0]) or 1.0, parts.cast_us(kernels[1])  # each batch size counts the same
            typical = max(sum(part.values for part in segments) / len(segments), 1.0)
            for place, part in enumerate(segments):
                plain[place] += times[0][place] / whole
                integers[place] += times[1][place] / whole
                casts[place] += cast * max(part.values / typical, 0.25) / whole
        return [(doubt, parts.cheapest(plain, integers, casts, doubt)) for doubt in DOUBTS]

    def _segments(self) -> tuple[parts.Segment, ...]:
        return parts.segments_of(self.graph, self.target)

    def _meant(self, skip: Sequence[str]) -> tuple[str, ...]:
        from slim_quant.graph import layer_name

        nodes = {node.name: node for node in self.graph.graph.nodes}
        return tuple(dict.fromkeys(layer_name(nodes[name]) for name in skip))

    def _add(self, folder: Path, name: str, skip: tuple[str, ...], result: QuantResult | None = None) -> None:
        made = result if result is not None else self.build(list(skip))
        self.results[name], self.skips[name] = made, skip
        self.files[name] = self._export(made.model, folder / f"{len(self.files)}.onnx")

    def _export(self, model: nn.Module, path: Path) -> Path:
        runtime = self.target.name if self.target.name in RUNTIMES else "generic"
        return to_onnx(model, self.inputs, path, check=False, runtime=runtime).path

    def _time(self, names: Sequence[str], seed: int | None = None) -> list[Candidate]:
        """Time files beside the float one, at each batch size."""
        files = {name: self.files[name] for name in (FLOAT, *names)}
        rows: dict[str, dict[int, Ratio]] = {name: {} for name in names}
        for size in self.sizes:
            found = self.clock(files, batched(self.inputs, size), self.seed if seed is None else seed)
            for name in names:
                rows[name][size] = found[name]
        candidates = [Candidate(name, self.skips[name], rows[name]) for name in names]
        self.timed.update({item.name: item for item in candidates})
        return candidates

    def _wins(self, ratios: Mapping[int, Ratio]) -> bool:
        return all(item.wins(self.margin) for item in ratios.values())

    @staticmethod
    def _worst(candidate: Candidate) -> float:
        return max(item.ratio for item in candidate.ratios.values())
