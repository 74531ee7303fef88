"""``slim inspect``, ``slim verify``, ``slim diff``: what a checkpoint says, whether its bytes are right, what changed.

Only ``slim verify --model`` imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slim_core.cli.app import App

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from slim_core.checkpoint import Difference, Header
    from slim_core.checkpoint.header import TensorRecord

FILE = click.Path(path_type=Path)


@click.command("inspect")
@click.argument("file", type=FILE)
@click.option("--tensors", is_flag=True, help="List every tensor too.")
@click.pass_obj
def inspect(app: App, file: Path, tensors: bool) -> None:
    """Say what a checkpoint is and what was done to the model. Reads the header only.

    The JSON format prints the whole header, and where each tensor lies in the file.
    """
    from slim_core.checkpoint import inspect as read

    header = read(file)
    app.output.emit(_data(header), lambda: _overview(file, header, tensors), _line(header))


@click.command("verify")
@click.argument("file", type=FILE)
@click.option("--model", is_flag=True, help="Rebuild the model too, and compare its output with the stored one.")
@click.pass_obj
def verify(app: App, file: Path, model: bool) -> None:
    """Check layout and hashes of a checkpoint; exits with 2 where its bytes are not the ones that were written."""
    from slim_core.checkpoint import verify as check

    with app.output.progress.track(f"verify {file.name}"):
        result = check(file)
        data: dict[str, Any] = {"valid": True, "tensors": result.tensors, "bytes": result.bytes, "parity": None}
        lines = [f"{file}: {result.tensors} tensors, {_bytes(result.bytes)}: every SHA-256 is right"]
        if model:
            data["parity"] = _parity(app, file, result.header)
            lines.append(
                "the model was rebuilt; its output differs from the stored one by "
                f"{data['parity']['error']:.2g} of its largest value ({data['parity']['tolerance']:.2g} is tolerated)"
            )
    app.output.emit(data, lambda: "\n".join(lines), "valid")


@click.command("diff")
@click.argument("before", type=FILE)
@click.argument("after", type=FILE)
@click.pass_obj
def diff(app: App, before: Path, after: Path) -> None:
    """Say what differs between two checkpoints: tensors (by hash), transforms, metrics.

    Exits with 1 where they differ, and with 0 where they do not.
    """
    from slim_core.checkpoint import diff as compare

    found = compare(before, after)
    app.output.emit(
        found.to_json(), lambda: _difference(before, after, found), "identical" if found.identical else "different"
    )
    if not found.identical:
        raise click.exceptions.Exit(1)


def _parity(app: App, file: Path, header: Header) -> dict[str, float]:
    from slim_core.checkpoint import load, parity_error
    from slim_core.errors import CheckpointError

    if header.parity is None:
        raise CheckpointError("the file holds no output to compare with", field="parity", where=str(file))
    error = parity_error(file, load(file, registry=app.registry).model)
    if not error <= header.parity.tolerance:
        raise CheckpointError(
            f"the rebuilt model's output differs from the stored one by {error:.3g} of its largest value; "
            f"{header.parity.tolerance:.3g} is tolerated",
            field="parity",
            where=str(file),
            hint="compare the installed versions with those that `slim inspect` shows",
        )
    return {"error": error, "tolerance": header.parity.tolerance}


def _data(header: Header) -> dict[str, Any]:
    return {
        **header.to_json(),
        "stored": {
            name: {"dtype": item.dtype, "shape": list(item.shape), "offset": header.data_start + item.start,
                   "bytes": item.nbytes}
            for name, item in header.stored.items()
        },
        "file_bytes": header.file_bytes,
    }  # fmt: skip


def _line(header: Header) -> str:
    name = header.builder.name if header.builder else "unnamed model"
    kinds = ", ".join(item.kind for item in header.transforms) or "as built"
    return f"{name}: {kinds}; {_parameters(header)} parameters; {_bytes(header.file_bytes)}"


def _parameters(header: Header) -> int:
    return sum(_count(record.shape) for record in header.tensors.values() if record.role == "parameter")


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _bytes(count: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} bytes"


def _overview(file: Path, header: Header, tensors: bool) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    blocks: list[RenderableType] = [Text(str(file), style="bold"), _facts(header)]
    for index, item in enumerate(header.transforms):
        blocks.append(Text(f"\ntransform {index + 1}: {item.kind} (schema {item.schema})", style="bold"))
        blocks.extend(_transform(header, index, item.data))
    if tensors:
        blocks.append(Text("\ntensors", style="bold"))
        blocks.append(_tensors(header))
    return Group(*blocks)


def _facts(header: Header) -> Table:
    builder = "not named: loading needs a factory"
    if header.builder is not None:
        kwargs = ", ".join(f"{key}={value!r}" for key, value in header.builder.kwargs.items())
        builder = f"{header.builder.name}({kwargs})"
    sizes: dict[str, int] = {}
    for name, record in header.tensors.items():
        sizes[record.role] = sizes.get(record.role, 0) + header.stored[name].nbytes
    sizes["header"] = header.data_start
    inputs = ", ".join(
        f"{item.spec.name}: {item.spec.dtype} ({', '.join(str(size or 'N') for size in item.spec.shape)})"
        for item in header.inputs.tensors
    )
    rows = {
        "builder": builder,
        "transforms": ", ".join(item.kind for item in header.transforms) or "none: the uncompressed model",
        "parameters": f"{_parameters(header):,}",
        "stored as": _dtypes(header),
        "file": f"{_bytes(header.file_bytes)} ("
        + ", ".join(f"{role} {_bytes(size)}" for role, size in sorted(sizes.items(), key=lambda item: -item[1]))
        + ")",
        "inputs": inputs or "no tensors",
        "parity": "no output stored"
        if header.parity is None
        else f"{len(header.parity.outputs)} output(s), tolerance {header.parity.tolerance:g}",
        "metrics": _figures(header.metrics),
        "recipe": "none" if header.recipe is None else str(header.recipe.get("name") or "yes (see --format json)"),
        "written by": ", ".join(f"{name} {version}" for name, version in header.producers.items()),
        "format": f"version {header.format_version}",
    }
    return _pairs(rows)


def _dtypes(header: Header) -> str:
    counts: dict[str, int] = {}
    for record in header.tensors.values():
        if record.role == "parameter":
            word = record.dtype if record.packing is None else f"{record.packing.packing} ({record.packing.bits} bits)"
            counts[word] = counts.get(word, 0) + _count(record.shape)
    total = sum(counts.values()) or 1
    parts = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"{word} {100 * count / total:.1f} %" for word, count in parts) or "no parameters"


def _figures(figures: Mapping[str, float | None] | None) -> str:
    if not figures:
        return "none"
    return ", ".join(f"{name} {'not finite' if value is None else f'{value:.5g}'}" for name, value in figures.items())


def _pairs(rows: Mapping[str, str]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(Text(name), Text(value))
    return table


def _transform(header: Header, index: int, data: Mapping[str, Any]) -> list[RenderableType]:
    """Return what a person wants to know of a transform: kept channels, bits; then what is short enough to show."""
    from rich.text import Text

    blocks: list[RenderableType] = []
    facts = {key: str(value) for key, value in data.items() if isinstance(value, str | int | float) and value != ""}
    if facts:
        blocks.append(_pairs(facts))
    channels = _channels(data.get("groups"))
    if channels is not None:
        blocks.append(channels)
    packed = header.packed_by(index)
    if packed:
        blocks.append(_packed(packed))
    hints = data.get("sparse")
    if isinstance(hints, dict):
        blocks.append(_sparse(header, hints))
    return blocks or [Text("  nothing that can be shown in a line; --format json prints all of it")]


def _channels(groups: Any) -> RenderableType | None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    if not isinstance(groups, list):
        return None
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("channels of", overflow="fold")
    for name in ("kept", "of", "share"):
        table.add_column(name, justify="right")
    table.add_column("")
    for row in groups:
        if not isinstance(row, dict) or type(row.get("kept")) is not int or type(row.get("total")) is not int:
            return None
        kept, total = row["kept"], row["total"]
        share = kept / total if total > 0 else 0.0
        bar = "█" * round(20 * min(max(share, 0.0), 1.0))
        table.add_row(Text(str(row.get("name", "?"))), str(kept), str(total), f"{100 * share:.0f} %", Text(bar))
    return table


def _packed(packed: Mapping[str, Any]) -> RenderableType:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    for name in ("quantized tensor", "shape", "bits", "scales", "stored as"):
        table.add_column(name, overflow="fold")
    for name, record in packed.items():
        packing = record.packing
        scales = packing.granularity.replace("_", " ")
        if packing.axis is not None:
            scales += f", axis {packing.axis}"
        if packing.group_size is not None:
            scales += f", groups of {packing.group_size}"
        zero = "" if packing.zero_point is None else ", zero point"
        table.add_row(Text(name), _shape(record.shape), str(packing.bits), f"{scales}{zero}", packing.packing)
    return table


def _sparse(header: Header, hints: Mapping[str, Any]) -> RenderableType:
    """Return how the weights that a transform made sparse are stored, and what that saves."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from slim_core.checkpoint.header import element_bits

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("sparse tensor", overflow="fold")
    table.add_column("shape")
    table.add_column("stored as")
    for name in ("bytes", "of dense", "share"):
        table.add_column(name, justify="right")
    state = header.state()
    for name in hints:
        if name not in state:
            continue
        record, stored = header.tensors[state[name]], header.stored[state[name]].nbytes
        bits = element_bits(record.dtype, record.packing)
        dense = -(-_count(record.shape) * bits // 8)
        form = "dense" if record.sparse is None else _form(record.sparse.to_json())
        share = f"{100 * stored / dense:.0f} %" if dense else ""
        table.add_row(Text(name), _shape(record.shape), form, f"{stored:,}", f"{dense:,}", share)
    return table


def _form(sparse: Mapping[str, Any]) -> str:
    if sparse["packing"] == "n_m":
        return f"{sparse['n']}:{sparse['m']}"
    if sparse["packing"] == "blocks":
        return f"blocks of {sparse['block'][0]} x {sparse['block'][1]}"
    return str(sparse["packing"])


def _tensors(header: Header) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    for name in ("name", "role", "shape", "dtype", "stored"):
        table.add_column(name, overflow="fold")
    table.add_column("bytes", justify="right")
    table.add_column("sha256", no_wrap=True)
    for name, record in header.tensors.items():
        kind = header.stored[name].dtype if record.packing is None else record.packing.packing
        if record.sparse is not None:
            kind = f"{record.dtype if record.packing is None else kind}, {record.sparse.packing}"
        table.add_row(
            Text(name), record.role + (" (frozen)" if record.frozen else ""), _shape(record.shape), record.dtype, kind,
            f"{header.stored[name].nbytes:,}", record.sha256[:12],
        )  # fmt: skip
    return table


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(str(size) for size in shape) or "scalar"


def _difference(before: Path, after: Path, found: Difference) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    if found.identical:
        return Text(f"{before} and {after} hold the same ({found.same} tensors)")
    a, b = found.file_bytes
    lines = [
        f"{before} -> {after}",
        f"  file       {_bytes(a)} -> {_bytes(b)} ({100 * b / a:.1f} %)",
        f"  tensors    {found.same} same, {len(found.changed)} changed, {len(found.added)} added, "
        f"{len(found.removed)} removed",
    ]
    for name, (left, right) in found.metrics.items():
        lines.append(f"  metric     {name}: {_figure(left)} -> {_figure(right)}")
    for index, left, right in found.transforms:
        if left is None or right is None or left["kind"] != right["kind"]:
            kinds = [item["kind"] if item else "none" for item in (left, right)]
            lines.append(f"  transform  {index + 1}: {kinds[0]} -> {kinds[1]}")
        else:
            lines.append(f"  transform  {index + 1}: {left['kind']} with other data")
    for name, (left, right) in found.fields.items():
        lines.append(f"  {name:<10} {_keys(left, right)}")
    blocks: list[RenderableType] = [Text("\n".join(lines))]
    if found.changed or found.added or found.removed:
        blocks.append(_changes(found))
    return Group(*blocks)


def _changes(found: Difference) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    for name in ("tensor", "what", "before", "after"):
        table.add_column(name, overflow="fold")
    for change in found.changed:
        table.add_row(Text(change.name), ", ".join(change.what), _kind(change.before), _kind(change.after))
    for name in found.added:
        table.add_row(Text(name), "added", "", "")
    for name in found.removed:
        table.add_row(Text(name), "removed", "", "")
    return table


def _kind(record: TensorRecord) -> str:
    dtype = record.dtype if record.packing is None else record.packing.packing
    return f"{dtype} {_shape(record.shape)}"


def _figure(value: Any) -> str:
    return "none" if value is None else f"{value:.5g}"


def _keys(before: Any, after: Any) -> str:
    """Return which keys differ between two parts of a header, with their values where these are short."""
    if not isinstance(before, dict) or not isinstance(after, dict):
        return f"{_brief(before)} -> {_brief(after)}"
    names = [name for name in sorted(before.keys() | after.keys()) if before.get(name) != after.get(name)]
    return ", ".join(f"{name}: {_brief(before.get(name))} -> {_brief(after.get(name))}" for name in names)


def _brief(value: Any) -> str:
    from slim_core.checkpoint.strict_json import canonical

    text = "none" if value is None else canonical(value)
    return text if len(text) <= 32 else "…"
