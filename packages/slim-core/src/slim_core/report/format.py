"""Numbers as people read them. Every view of a report writes them in the same way."""

from __future__ import annotations

import math
from typing import Literal

Unit = Literal["share", "number", "bytes", "count", "ms"]

#: what stands where there is no figure
ABSENT = "–"
MINUS = "\N{MINUS SIGN}"


def clean(text: object) -> str:
    """Return ``text`` without the control characters that could steer a terminal or break a page."""
    return "".join(c for c in str(text) if c in "\n\t" or (ord(c) >= 32 and not 0x7F <= ord(c) < 0xA0))


def significant(value: float, digits: int = 3) -> str:
    """Return ``value`` with ``digits`` significant digits, without an exponent where that is readable."""
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    magnitude = int(f"{value:.{digits - 1}e}".rpartition("e")[2])  # after rounding: 99.96 counts as 100
    if not -4 <= magnitude < 7:
        return f"{value:.{digits - 1}e}".replace("-", MINUS)
    text = f"{value:.{max(digits - 1 - magnitude, 0)}f}"
    return text.replace("-", MINUS)


def count(value: float) -> str:
    """Return ``12.3 M`` for 12,345,678."""
    for limit, suffix in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= limit:
            return significant(value / limit) + suffix
    return significant(value) if value != int(value) else str(int(value))


def size(value: float) -> str:
    """Return ``1.23 MB`` for 1,234,567 bytes (1 kB is 1000 bytes)."""
    for limit, suffix in ((1e9, " GB"), (1e6, " MB"), (1e3, " kB")):
        if abs(value) >= limit:
            return significant(value / limit) + suffix
    return f"{int(value)} B"


def milliseconds(value: float) -> str:
    """Return ``1.23 ms``, or seconds or microseconds where those are more readable."""
    if value >= 1000:
        return significant(value / 1000) + " s"
    if value < 0.1:
        return significant(value * 1000) + " µs"
    return significant(value) + " ms"


def spread(value: float, beside: float) -> str:
    """Return ``± 0.04 ms``: a half-width, in the unit and to the digits of the median beside it."""
    scale, unit = (1e-3, "s") if beside >= 1000 else (1e3, "µs") if beside < 0.1 else (1.0, "ms")
    median = beside * scale
    digits = max(0, 2 - int(f"{median:.2e}".rpartition("e")[2])) if median else 2
    return f"± {value * scale:.{digits}f} {unit}"


def percent(share: float, digits: int = 2) -> str:
    """Return ``97.25 %`` for 0.9725."""
    return f"{share * 100:.{digits}f} %".replace("-", MINUS)


def signed(text: str, value: float) -> str:
    """Put a plus sign before a positive figure."""
    return f"+{text}" if value > 0 else text


def duration(seconds: float) -> str:
    """Return ``3 min 20 s`` for 200 seconds."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def value(figure: float | None, unit: Unit) -> str:
    """Return a figure with its unit, or a dash."""
    if figure is None:
        return ABSENT
    if unit == "share":
        return percent(figure)
    if unit == "bytes":
        return size(figure)
    if unit == "count":
        return count(figure)
    if unit == "ms":
        return milliseconds(figure)
    return significant(figure, 4)


def change(original: float | None, compressed: float | None, unit: Unit) -> str:
    """Return the difference: points for a share, and per cent of the original for everything else."""
    if original is None or compressed is None:
        return ABSENT
    difference = compressed - original
    if unit == "share":
        text = f"{difference * 100:.2f}".replace("-", MINUS)
        return f"{signed(text, round(difference, 4))} points" if round(difference, 4) else "no change"
    if difference == 0:
        return "no change"
    if original == 0:
        return signed(value(difference, unit), difference)
    share = difference / abs(original)
    if abs(share) >= 2:
        return f"×{significant(compressed / original)}"
    digits = 1 if abs(share) >= 0.001 else 3
    return signed(percent(share, digits), share)
