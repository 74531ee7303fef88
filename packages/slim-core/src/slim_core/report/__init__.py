"""Reports: ``data`` is what ``report.json`` holds, ``figures`` what is shown of it, the other modules draw.

Nothing here measures or runs anything.
"""

from __future__ import annotations

import os
from pathlib import Path

from slim_core.files import write_text
from slim_core.report.card import render_card
from slim_core.report.data import (
    ChannelRow,
    Device,
    LatencyRow,
    MetricInfo,
    ModelRow,
    Note,
    Report,
    StepRow,
    read_report,
    write_report,
)
from slim_core.report.html import render_html
from slim_core.report.terminal import render_terminal

__all__ = [
    "ChannelRow",
    "Device",
    "LatencyRow",
    "MetricInfo",
    "ModelRow",
    "Note",
    "Report",
    "StepRow",
    "read_report",
    "render_card",
    "render_html",
    "render_terminal",
    "write_report",
    "write_views",
]


def write_views(report: Report, folder: str | os.PathLike[str]) -> None:
    """Write ``report.html`` and ``README.md``, then ``report.json``, into ``folder``, each atomically."""
    path = Path(folder)
    write_text(path / "report.html", render_html(report))
    write_text(path / "README.md", render_card(report))
    write_report(report, path / "report.json")
