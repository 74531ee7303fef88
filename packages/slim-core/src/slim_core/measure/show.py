"""A measurement for people: one table, the machine below it, and what to keep in mind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slim_core.measure.measurement import Measurement, Timing

if TYPE_CHECKING:
    from rich.console import RenderableType

_COLORS = {"faster": "green", "slower": "red", "even": "yellow"}


def show(measurement: Measurement) -> RenderableType:
    """Return medians, spread, speed-up over the first candidate, and the machine, for ``rich`` to print."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    runtimes = [_runtime(timing) for timing in measurement.timings]
    alike = len(set(runtimes)) == 1
    table = Table(box=box.SIMPLE_HEAD, expand=False)
    table.add_column("candidate", overflow="fold")
    for name in ("median", "IQR", "noise", "speed-up", f"{measurement.confidence:.0%} interval"):
        table.add_column(name, justify="right", no_wrap=True)
    if not alike:
        table.add_column("runtime", overflow="fold")
    for position, (timing, runtime) in enumerate(zip(measurement.timings, runtimes, strict=True)):
        table.add_row(
            Text(timing.name),
            milliseconds(timing.median_ms),
            milliseconds(timing.iqr_ms),
            "-" if timing.noise is None else f"{timing.noise:.1%}",
            *(("1", "") if position == 0 else _against_first(timing)),
            *([] if alike else [Text(runtime)]),
        )
    lines = [runtimes[0]] if alike else []
    lines += [f"{measurement.device}", f"{measurement.protocol['rounds']} interleaved rounds, {measurement.created}"]
    lines += [f"{timing.name}: {timing.agreement}" for timing in measurement.timings if timing.agreement]
    lines += [f"note: {note}" for note in measurement.notes]
    return Group(table, Text("\n".join(lines)))


def _runtime(timing: Timing) -> str:
    threads = timing.info.get("threads")
    count = "default threads" if threads is None else "1 thread" if threads == 1 else f"{threads} threads"
    return f"{timing.info.get('runtime', 'unknown runtime')}, {count}"


def milliseconds(value: float) -> str:
    """Return three digits and a unit."""
    if value < 0.1:
        return f"{value * 1e3:.3g} us"
    return f"{value:.3g} ms" if value < 1e3 else f"{value / 1e3:.3g} s"


def _against_first(timing: Timing) -> tuple[RenderableType, str]:
    from rich.text import Text

    low, high = timing.speedup_interval
    return Text(f"{timing.speedup:.2f}x", style=_COLORS[timing.verdict]), f"{low:.2f} to {high:.2f}"
