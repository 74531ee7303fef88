"""``slim latency table``: check, compare, put together and fit device tables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slim_core.cli.app import App

if TYPE_CHECKING:
    from rich.console import RenderableType

    from slim_latency.table import TableDiff


@click.group("table")
def table() -> None:
    """Check, compare, merge and fit device tables."""


@table.command("check")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.pass_obj
def check(app: App, files: tuple[Path, ...]) -> None:
    """Read tables, hash and all, and say what was measured."""
    from slim_latency.table import read_table

    rows: list[dict[str, Any]] = []
    for file in files:
        found = read_table(file)
        rows.append({"path": str(file), "name": found.name, "runtime": found.runtime, "kernels": len(found.kernels),
                     "networks": len(found.networks), "noise": found.noise, "fitted": found.model is not None,
                     "notes": list(found.header.get("notes", ()))})  # fmt: skip
    app.output.emit(
        rows,
        lambda: "\n".join(
            f"{row['path']}: {row['name']}, {row['runtime']}, {row['kernels']} kernels, {row['networks']} networks"
            + "".join(f"\n  {note}" for note in row["notes"])
            for row in rows
        ),
    )


@table.command("diff")
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path))
@click.option("--top", type=click.IntRange(min=1), default=20, show_default=True, help="Kernels to show.")
@click.pass_obj
def diff(app: App, first: Path, second: Path, top: int) -> None:
    """Say which kernels took another time, and what else differs."""
    from slim_latency.table import diff_tables, read_table

    found = diff_tables(read_table(first), read_table(second))
    data = {
        "header": {part: list(values) for part, values in found.header.items()},
        "same": found.same,
        "ratio": found.ratio,
        "changes": [
            {"key": item.key, "before_us": item.before_us, "after_us": item.after_us, "ratio": item.ratio}
            for item in found.changes
        ],
    }
    app.output.emit(
        data, lambda: _show(found, top), f"{len(found.changes)} of {len(found.changes) + found.same} differ"
    )


@table.command("merge")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", "target", required=True, type=click.Path(path_type=Path), help="Where to write it.")
@click.option("--name", help="Of the device.  [default: the first table's]")
@click.pass_obj
def merge(app: App, files: tuple[Path, ...], target: Path, name: str | None) -> None:
    """Put tables of one device, runtime and setting together, and fit the result."""
    from slim_latency.predict import fit
    from slim_latency.table import merge_tables, read_table, with_model, write_table

    found = merge_tables([read_table(file) for file in files], name)
    found = with_model(found, fit(found, progress=app.output.progress))
    write_table(found, target)
    app.output.emit(
        {"path": str(target), "kernels": len(found.kernels), "networks": len(found.networks)},
        lambda: f"{target}: {len(found.kernels)} kernels, {len(found.networks)} networks",
        str(target),
    )


@table.command("fit")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--trees/--no-trees", default=True, help="Refine with boosted trees (needs scikit-learn).  [default: yes]"
)
@click.pass_obj
def fit_(app: App, file: Path, trees: bool) -> None:
    """Fit a table anew, with this version of Slim."""
    from slim_latency.predict import fit
    from slim_latency.table import read_table, with_model, write_table

    found = read_table(file)
    model = fit(found, trees=trees, progress=app.output.progress)
    write_table(with_model(found, model), file)
    residuals = model["conformal"]["residuals"]
    middle = residuals[len(residuals) // 2] if residuals else None
    app.output.emit(
        {"path": str(file), "families": sorted(model["families"]), "scale": model["scale"], "median_error": middle},
        lambda: (
            f"{file}: {len(model['families'])} kinds of kernels"
            + ("" if middle is None else f"; half of the networks are predicted within {middle:.1%} by the others")
        ),
        str(file),
    )


def _show(found: TableDiff, top: int) -> RenderableType:
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    lines = [Text(f"{part}: {before} -> {after}") for part, (before, after) in found.header.items()]
    rows = Table(box=box.SIMPLE_HEAD)
    for column in ("before", "after", "ratio", "kernel"):
        rows.add_column(column, justify="left" if column == "kernel" else "right", overflow="fold")
    for item in found.changes[:top]:
        rows.add_row(
            "" if item.before_us is None else f"{item.before_us:.1f} µs",
            "" if item.after_us is None else f"{item.after_us:.1f} µs",
            "" if item.ratio is None else f"{item.ratio:.2f}", Text(item.key),
        )  # fmt: skip
    ratio = "" if found.ratio is None else f"; the common kernels take {found.ratio:.2f} times as long"
    end = Text(f"{len(found.changes)} kernels differ, {found.same} agree{ratio}")
    return Group(*lines, rows, end)
