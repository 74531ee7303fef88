"""Drawings as SVG files of their own: with a title, lines of text, colours, and several drawings below each other.

Not here: the drawings (``svg.py``), whose colours a page's style sheet gives.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

from slim_core.report import format as fmt

_COLOURS = (
    "svg{--paper:#fff;--ground:#eceef2;--ink:#16191f;--soft:#59616e;--line:#e2e5ea;--before:#9aa3b2;--after:#2f6fdb;"
    "--series-1:#2f6fdb;--series-2:#d9730d;--series-3:#0b8a7a;--series-4:#8b46c9}"
    "@media (prefers-color-scheme:dark){svg{--paper:#171a21;--ground:#2a2f3a;--ink:#e8eaf0;--soft:#9aa3b2;"
    "--line:#2a2f3a;--before:#6d7688;--after:#6ea2ff;--series-1:#6ea2ff;--series-2:#f2a14a;--series-3:#4fc4b3;"
    "--series-4:#bd93f0}}"
    "text{fill:var(--soft);font:12px system-ui,-apple-system,'Segoe UI',Roboto,Arial,sans-serif}"
    "text.ink{fill:var(--ink)}text.title{fill:var(--ink);font-size:16px;font-weight:600}"
    ".paper{fill:var(--paper)}.grid{stroke:var(--line);stroke-width:1}"
    ".curve{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round;stroke:var(--series-1)}"
    ".dot{fill:var(--series-1)}"
    ".curve.s2{stroke:var(--series-2)}.curve.s3{stroke:var(--series-3)}.curve.s4{stroke:var(--series-4)}"
    ".dot.s2{fill:var(--series-2)}.dot.s3{fill:var(--series-3)}.dot.s4{fill:var(--series-4)}"
    ".whole{fill:var(--ground)}.kept{fill:var(--after)}.orig{fill:var(--before)}"
    ".whisker{stroke:var(--ink);stroke-width:1.25;opacity:.65}"
)
_VIEW = re.compile(r'<svg viewBox="0 0 (\d+) (\d+)"')
_MARGIN, _LINE, _GAP = 20, 18, 18


def standalone(drawings: Sequence[str], *, title: str, lines: Sequence[str] = ()) -> str:
    """Return an SVG document with ``drawings`` of ``svg.py`` below each other, in light or dark colours.

    Args:
        drawings: what the functions of ``svg.py`` return.
        title: stands above them.
        lines: text between title and drawings.
    """
    sizes = []
    for drawing in drawings:
        match = _VIEW.match(drawing)
        if match is None:
            raise ValueError("this is no drawing of slim_core.report.svg")
        sizes.append((int(match[1]), int(match[2])))
    width = max([wide for wide, _ in sizes] + [600]) + 2 * _MARGIN
    top = _MARGIN + 16
    parts = [f'<text class="title" x="{_MARGIN}" y="{top}">{_text(title)}</text>']
    for line in lines:
        top += _LINE
        parts.append(f'<text x="{_MARGIN}" y="{top}">{_text(line)}</text>')
    for drawing, (wide, high) in zip(drawings, sizes, strict=True):
        top += _GAP
        parts.append(drawing.replace("<svg ", f'<svg x="{_MARGIN}" y="{top}" width="{wide}" height="{high}" ', 1))
        top += high
    height = top + _MARGIN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
        f"<title>{_text(title)}</title><style>{_COLOURS}</style>"
        f'<rect class="paper" width="{width}" height="{height}"/>{"".join(parts)}</svg>\n'
    )


def _text(value: str) -> str:
    return escape(fmt.clean(value), quote=True)
