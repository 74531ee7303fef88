"""How profiles are shown: tables for the terminal, and a drawing of where the time goes. Data first, then drawing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from slim_latency.kernels import parse_key
from slim_latency.profile import KernelTime, Profile, Profiles

if TYPE_CHECKING:
    from rich.console import RenderableType

WIDTH, ROW, LABEL = 960.0, 22.0, 330.0
_MOST = 40
#: colours that are told apart by people who do not see red and green as different (Okabe and Ito, 2008)
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#999999")


@dataclass(frozen=True, slots=True)
class Bar:
    """One kernel of the drawing.

    Args:
        kernel: what it stands for.
        kind: kind of kernel, which decides the colour.
        start_us: when it begins, if kernels ran without pause.
        width_us: how long it takes.
    """

    kernel: KernelTime
    kind: str
    start_us: float
    width_us: float


def timeline(profile: Profile) -> tuple[Bar, ...]:
    """Return the kernels one after the other."""
    bars, at = [], 0.0
    for kernel in profile.kernels:
        bars.append(Bar(kernel, parse_key(kernel.key).family, at, kernel.median_us))
        at += kernel.median_us
    return tuple(bars)


def costliest(profile: Profile, most: int = _MOST) -> tuple[KernelTime, ...]:
    """Return the kernels that take longest, the longest first."""
    return tuple(sorted(profile.kernels, key=lambda kernel: -kernel.median_us)[:most])


def svg(profile: Profile, caption: str = "", most: int = _MOST) -> str:
    """Return a drawing: a strip of all kernels in the order in which they ran, and bars of the costliest ones."""
    kinds = [row[0] for row in profile.by_kind()]
    colour = {kind: _COLOURS[min(number, len(_COLOURS) - 1)] for number, kind in enumerate(kinds)}
    rows = costliest(profile, most)
    legend = 20.0 * ((len(colour) + 2) // 3)
    height = 104 + legend + ROW * len(rows) + 12
    total = sum(bar.width_us for bar in timeline(profile)) or 1.0
    title = f"{profile.name}: {profile.median_ms:.3g} ms, {len(profile.kernels)} kernels"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:.0f} {height:.0f}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="12" fill="#222">',
        f"<title>{escape(title)}</title>",
        f'<rect width="100%" height="100%" fill="#fff"/><text x="10" y="20" font-size="15">{escape(title)}</text>',
        f'<text x="10" y="38" fill="#666">{escape(caption)}</text>',
    ]
    scale = (WIDTH - 20) / total
    for bar in timeline(profile):
        parts.append(
            f'<rect x="{10 + bar.start_us * scale:.2f}" y="50" width="{max(bar.width_us * scale - 0.4, 0.3):.2f}" '
            f'height="34" fill="{colour[bar.kind]}"><title>{_tip(bar.kernel)}</title></rect>'
        )
    for number, (kind, count, _, share) in enumerate(profile.by_kind()):
        x, line = 10 + (number % 3) * 315, 104 + 20 * (number // 3)
        parts.append(f'<rect x="{x}" y="{line - 9}" width="11" height="11" fill="{colour[kind]}"/>')
        parts.append(f'<text x="{x + 17}" y="{line}">{escape(kind)}: {count}, {share:.1%}</text>')
    longest = rows[0].median_us if rows else 1.0
    top = 104 + legend
    for number, kernel in enumerate(rows):
        y = top + ROW * number
        width = (WIDTH - LABEL - 110) * kernel.median_us / (longest or 1.0)
        kind = parse_key(kernel.key).family
        parts.append(
            f'<text x="{LABEL - 8:.0f}" y="{y + 14:.0f}" text-anchor="end">{escape(_short(kernel.name))}</text>'
        )
        parts.append(
            f'<rect x="{LABEL:.0f}" y="{y + 3:.0f}" width="{max(width, 0.5):.1f}" height="{ROW - 7:.0f}" '
            f'fill="{colour[kind]}"><title>{_tip(kernel)}</title></rect>'
        )
        figure = f"{kernel.median_us:.3g} µs, {kernel.share:.1%}"
        parts.append(f'<text x="{LABEL + width + 6:.1f}" y="{y + 14:.0f}">{figure}</text>')
    return "".join([*parts, "</svg>\n"])


def show(found: Profiles, most: int = 15) -> RenderableType:
    """Return tables: one line for each network, and the kinds and costliest kernels of each."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    summary = Table(box=box.SIMPLE_HEAD)
    for column in ("model", "median", "quartiles", "noise", "sum of kernels", "kernels"):
        summary.add_column(column, justify="left" if column == "model" else "right", overflow="fold")
    parts: list[RenderableType] = [summary]
    for item in found.profiles:
        noise = "" if item.noise is None else f"{item.noise:.1%}"
        summary.add_row(
            item.name, _ms(item.median_ms), f"{_ms(item.q1_ms)} - {_ms(item.q3_ms)}", noise,
            f"{_ms(item.sum_ms)} ({item.sum_ms / item.median_ms - 1:+.1%})", str(len(item.kernels)),
        )  # fmt: skip
        parts += [Text(f"\n{item.name}", style="bold"), _kinds(item), _kernels(costliest(item, most))]
    settings = found.settings
    parts.append(Text(caption(found)))
    parts.append(Text(f"{settings['rounds']} shuffled rounds; {found.overhead_us:.2g} µs of the profiler taken off"))
    parts += [Text(f"note: {note}", style="yellow") for note in found.notes]
    return Group(*parts)


def caption(found: Profiles) -> str:
    """Return the machine and the settings in one line."""
    device, runtime, settings = found.device, found.runtime, found.settings
    threads = settings["threads"]
    parts = [
        str(device["cpu"]), f"{device['usable']} of {device['cores']} cores",
        f"governor {device['governor'] or 'unknown'}",
        f"{runtime['name']} {runtime['version']}", f"graph level {settings['level']}",
        f"{threads} thread{'s' if threads > 1 else ''}",
    ]  # fmt: skip
    return ", ".join(parts)


def _kinds(item: Profile) -> RenderableType:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE)
    for column in ("kind", "kernels", "time", "share"):
        table.add_column(column, justify="left" if column == "kind" else "right")
    for kind, count, micros, share in item.by_kind():
        table.add_row(kind, str(count), _ms(micros / 1e3), f"{share:.1%}")
    return table


def _kernels(rows: Sequence[KernelTime]) -> RenderableType:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE)
    for column in ("µs", "IQR", "share", "kernel"):
        table.add_column(column, justify="left" if column == "kernel" else "right", overflow="fold")
    for kernel in rows:
        table.add_row(
            f"{kernel.median_us:.1f}", f"{kernel.q3_us - kernel.q1_us:.1f}", f"{kernel.share:.1%}", Text(kernel.key)
        )
    return table


def _ms(value: float) -> str:
    return f"{value:.3g} ms" if value < 1000 else f"{value:.0f} ms"


def _tip(kernel: KernelTime) -> str:
    return escape(f"{kernel.name}: {kernel.median_us:.4g} µs ({kernel.share:.1%})\n{kernel.key}")


def _short(text: str, most: int = 46) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
