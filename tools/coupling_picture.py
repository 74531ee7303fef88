"""Draw ``docs/guide/coupling.svg``: the coupling of a small residual network, from its own analysis.

Upper row: every index of every parameter dimension has a label of its own. Lower row: the operators say which labels
are equal; equal ones have one number, and one of the units is filled in wherever it stands. ``--check`` fails where the
picture is not what would be drawn.
"""

from __future__ import annotations

import argparse
import sys
from html import escape
from pathlib import Path

import torch
from torch import Tensor, nn

from slim_core.graph import Coupling, analyse

PICTURE = Path(__file__).parent.parent / "docs" / "guide" / "coupling.svg"
UNITS, UNIT = 5, 2
CELL, TOP, LEFT = 20, 66, 46
_STYLE = """
  text { font: 13px sans-serif; fill: #333 } .small { font-size: 11px; fill: #555 } .title { font-weight: bold }
  .free { fill: #e8edf4; stroke: #8fa3bd } .kept { fill: #f3f3f3; stroke: #bbb }
  .unit { fill: #f2a33c; stroke: #b36b00 } .on { fill: #b36b00; font-weight: bold }
"""


class Residual(nn.Module):
    """The example of the page, narrower."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, UNITS, 1), nn.Conv2d(UNITS, UNITS, 1, bias=False)
        self.norm, self.head = nn.BatchNorm2d(UNITS), nn.Linear(UNITS, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.norm(self.conv(x)))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


#: what is drawn: parameter, its title, where it stands
TENSORS = (
    ("stem.weight", "stem.weight", 0), ("conv.weight", "conv.weight", 170), ("norm.weight", "norm", 360),
    ("head.weight", "head.weight", 480),
)  # fmt: skip


def places(coupling: Coupling, name: str, dim: int) -> dict[int, int]:
    """Return the unit that each index of a dimension belongs to."""
    (group,) = coupling.groups
    return {
        int(index): unit
        for member in group.members
        if (member.name, member.dim) == (name, dim)
        for unit, indices in enumerate(member.indices)
        for index in indices
    }


def tensor(model: nn.Module, coupling: Coupling, name: str, title: str, x: int, y: int, first: int, tied: bool) -> str:
    """Draw a parameter as a table, with the labels (or the classes) of its rows and columns."""
    shape = tuple(model.get_parameter(name).shape[:2])
    rows, columns = shape if len(shape) == 2 else (shape[0], 1)
    in_rows, in_columns = places(coupling, name, 0), places(coupling, name, 1)
    parts = [f'<text class="title" x="{x}" y="{y - 28}">{escape(title)}</text>']
    for row in range(rows):
        for column in range(columns):
            units = (in_rows.get(row), in_columns.get(column))
            kind = "unit" if tied and UNIT in units else "free" if units != (None, None) else "kept"
            parts.append(f'<rect class="{kind}" x="{x + column * CELL}" y="{y + row * CELL}" width="{CELL}" '
                         f'height="{CELL}"/>')  # fmt: skip
        parts.append(label(in_rows.get(row), first + row, tied, x - 8, y + row * CELL + 14, "end"))
    if len(shape) == 2:
        for column in range(columns):
            middle = x + column * CELL + CELL // 2
            parts.append(label(in_columns.get(column), first + rows + column, tied, middle, y - 6, "middle"))
    return "\n".join(parts)


def label(unit: int | None, number: int, tied: bool, x: int, y: int, anchor: str) -> str:
    text = "·" if unit is None else str(unit) if tied else str(number)
    kind = "small on" if tied and unit == UNIT else "small"
    return f'<text class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}">{text}</text>'


def draw() -> str:
    model = Residual().eval()
    coupling = analyse(model, (torch.zeros(1, 3, 4, 4),))
    height = 2 * TOP + 2 * UNITS * CELL + 150
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 680 {height}" role="img">',
        "<title>How channels are coupled</title>",
        f"<desc>Four parameters of a residual network as tables. Above, every row and column has a number of its own. "
        f"Below, rows and columns that the operators tie have the same number, from 0 to {UNITS - 1}, and everything "
        f"that belongs to unit {UNIT} is filled in.</desc>",
        f"<style>{_STYLE}</style>",
        '<rect width="100%" height="100%" fill="#fff"/>',
    ]
    lines = {
        TOP + UNITS * CELL + 32: (
            "conv: its columns are the rows of stem",
            "norm: its entries are the rows of conv",
            "x + …: the rows of stem are the entries of norm",
            "head: its columns are the rows of stem",
        )
    }
    for y, tied in ((TOP, False), (2 * TOP + UNITS * CELL + 84, True)):
        head = "2. classes: equal labels are one unit" if tied else "1. labels: each index has its own"
        parts.append(f'<text class="title" x="{LEFT - 24}" y="{y - 46}">{head}</text>')
        first = 0
        for name, title, x in TENSORS:
            parts.append(tensor(model, coupling, name, title, LEFT + x, y, first, tied))
            first += sum(model.get_parameter(name).shape[:2])
    for y, texts in lines.items():
        for number, text in enumerate(texts):
            x, line = LEFT - 24 + 330 * (number % 2), y + 18 * (number // 2)
            parts.append(f'<text class="small" x="{x}" y="{line}">{escape(text)}</text>')
    below = (
        f"Removing unit {UNIT} removes everything that is filled in: one row of stem, a row and a column of conv, …",
        "A dot stays: the colours of the input have no owner here, and the classes are the model's output.",
    )
    for number, text in enumerate(below):
        line = height - 32 + 18 * number
        parts.append(f'<text class="small" x="{LEFT - 24}" y="{line}">{escape(text)}</text>')
    parts += ["</svg>", ""]
    return "\n".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail where the picture is stale")
    arguments = parser.parse_args()
    picture = draw()
    if arguments.check:
        return int(not PICTURE.exists() or PICTURE.read_text(encoding="utf-8") != picture)
    PICTURE.write_text(picture, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
