"""Markdown tables for the docs: what ``render.py`` and its parts share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table; columns after the first are right-aligned."""
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def where(data: dict[str, Any]) -> str:
    """Return machine, threads and versions of a result file, as a sentence."""
    device, threads = data["device"], data["threads"]
    versions = ", ".join(f"{name} {number}" for name, number in data["versions"].items())
    return f"{device['cpu']}, {device['usable']} cores, {threads} thread{'s' if threads > 1 else ''}; {versions}."
