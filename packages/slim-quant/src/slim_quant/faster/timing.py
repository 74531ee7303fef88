"""Files timed side by side on a runtime. What is decided from that is in ``decide.py``, without a clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slim_core.measure import measure
from slim_core.progress import Progress
from slim_core.workload import Inputs
from slim_quant.runtimes import Kernel, open_file


@dataclass(frozen=True, slots=True)
class Ratio:
    """The time of one file over that of the first, measured in the same rounds.

    Args:
        ratio: median; below 1 it is faster than the first file.
        low: lower end of the 95 % interval.
        high: upper end.
        median_ms: median time of one call.
    """

    ratio: float
    low: float
    high: float
    median_ms: float

    def wins(self, margin: float) -> bool:
        """Tell whether the file is faster beyond doubt: by ``margin``, and at the upper end of the interval."""
        return self.ratio <= 1 - margin and self.high < 1

    def to_json(self) -> dict[str, float]:
        return asdict(self)


#: gets files by name, the float one first, inputs and a seed; returns the ratios of all
Timer = Callable[[Mapping[str, Path], Inputs, int], Mapping[str, Ratio]]
#: gets a file and inputs; returns its kernels in the order in which they ran
Profiler = Callable[[Path, Inputs], tuple[Kernel, ...]]


def timer(
    runtime: str, *, threads: int | None = None, rounds: int = 21, budget_s: float = 20.0,
    progress: Progress | None = None,
) -> Timer:  # fmt: skip
    """Return a timer that runs files on ``runtime``, interleaved in shuffled rounds.

    Args:
        runtime: ``"onnxruntime"`` or ``"openvino"``.
        threads: threads of the runtime; ``None``: its own choice.
        rounds: samples per file.
        budget_s: stop after so many seconds, but not before six rounds.
        progress: where to report to.
    """

    def time(files: Mapping[str, Path], inputs: Inputs, seed: int) -> Mapping[str, Ratio]:
        with ExitStack() as stack:
            sessions = {}
            for name, path in files.items():
                sessions[name] = open_file(path, runtime, threads)
                stack.callback(sessions[name].close)
            found = measure(sessions, inputs, rounds=rounds, budget_s=budget_s, seed=seed, progress=progress)
        return {item.name: Ratio(item.ratio, item.ratio_low, item.ratio_high, item.median_ms) for item in found.timings}

    return time


def profiler(runtime: str, *, threads: int | None = None) -> Profiler:
    """Return a profiler that runs a file on ``runtime``."""

    def profile(path: Path, inputs: Inputs) -> tuple[Kernel, ...]:
        runner = open_file(path, runtime, threads)
        try:
            return runner.profile(inputs)
        finally:
            runner.close()

    return profile


def describe(ratios: Mapping[int, Ratio]) -> str:
    """Return speeds by batch size as text: ``1.21x at batch 1``."""
    parts: list[Any] = [f"{1 / item.ratio:.2f}x at batch {size}" for size, item in ratios.items()]
    return ", ".join(parts)
