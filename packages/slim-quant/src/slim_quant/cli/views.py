"""How the commands print what was quantized: tables for people; the same values are the JSON of programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

#: what onnxruntime calls operators that compute in integers, beside those that begin with QLinear
INTEGER = ("QGemm", "QAttention", "QMoE", "ConvInteger", "MatMulInteger", "MatMulNBits", "DynamicQuantizeLSTM")
#: what turns float into integers and back
CASTS = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")


def overview(data: Mapping[str, Any]) -> RenderableType:
    """Return layers, what stayed in float, figures before and after, files and speed, for ``rich`` to print."""
    from rich.console import Group
    from rich.text import Text

    blocks: list[RenderableType] = []
    chosen = [
        *(choice(data["choice"]) if "choice" in data else []),
        *(faster(data["faster"]) if "faster" in data else []),
    ]
    if chosen:
        blocks.append(Text("\n".join(chosen) + "\n"))
    if data.get("layers"):
        blocks.append(layer_table(data["layers"]))
    notes = data.get("notes", [])
    if notes:
        blocks.append(Text("\n".join(["left in float, or changed:", *(f"  {note}" for note in notes)]) + "\n"))
    figures = figure_table(data)
    if figures.row_count:
        blocks.append(figures)
    blocks.append(Text("\n".join(closing(data))))
    return Group(*blocks)


def layer_table(layers: Sequence[Mapping[str, Any]]) -> Table:
    """Return one row per layer that computes in integers."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    columns = list(dict.fromkeys(key for row in layers for key in row if key != "name"))
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("in integers", overflow="fold")
    for column in columns:
        numbers = all(isinstance(row.get(column), int | float | None) for row in layers)
        table.add_column(_HEADS.get(column, column), justify="right" if numbers else "left")
    for row in layers:
        table.add_row(Text(str(row["name"])), *(Text(_cell(row.get(column))) for column in columns))
    return table


_HEADS = {"sqnr_db": "SQNR dB", "op": "operator"}


def figure_table(data: Mapping[str, Any]) -> Table:
    """Return metrics, bytes and times before and after."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("")
    for column in ("float", "quantized", "change"):
        table.add_column(column, justify="right")
    for row in figure_rows(data):
        table.add_row(*row)
    return table


def figure_rows(data: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """Yield what was measured before and after, as text: name, before, after, change."""
    for name, values in data.get("metrics", {}).items():
        change = values["after"] - values["before"]
        yield name, f"{values['before']:.4f}", f"{values['after']:.4f}", f"{change:+.4f}"
    before = data.get("float_bytes")
    if "checkpoint" in data:
        first, after = data.get("float_checkpoint_bytes"), data["checkpoint"]["bytes"]
        yield "checkpoint", _bytes(first), _bytes(after), _share(first, after)
    if "onnx" in data:
        before, after = data.get("float_onnx_bytes", before), data["onnx"]["bytes"]
        yield "ONNX file", _bytes(before), _bytes(after), _share(before, after)
    for timing in data.get("timings", []):
        first, second = timing["timings"]
        name = f"{timing['runtime']}, batch {timing['batch']}"
        change = f"{1 / second['ratio']:.2f}x ({1 / second['ratio_high']:.2f} to {1 / second['ratio_low']:.2f})"
        yield name, f"{first['median_ms']:.3f} ms", f"{second['median_ms']:.3f} ms", change


def choice(found: Mapping[str, Any]) -> list[str]:
    """Return the lines about a chosen mix of bits."""
    by_bits: dict[str, list[str]] = {}
    for unit, bits in found["assignment"].items():
        by_bits.setdefault(bits, []).append(unit)
    parts = [f"{len(units)} at {bits}" for bits, units in sorted(by_bits.items()) if bits != "float"]
    parts.append(f"{len(by_bits.get('float', ()))} in float")
    lines = [f"chosen: {', '.join(parts)}, after {len(found['trials'])} trials"]
    least = min(by_bits, key=lambda bits: len(by_bits[bits])) if len(by_bits) > 1 else None
    if least is not None:
        lines.append(f"{least}: {', '.join(by_bits[least])}")
    lines.append(f"{found['cost']}: {found['cost_before']:,.6g} -> {found['cost_after']:,.6g}")
    return lines


def faster(found: Mapping[str, Any]) -> list[str]:
    """Return the lines about what was left in float so that the file is never slower."""
    return [f"never slower: {note}" for note in found["notes"]]


def closing(data: Mapping[str, Any]) -> list[str]:
    """Return the lines below the tables: how far simulation and file agree, and where everything is."""
    lines = []
    if data.get("sqnr_db") is not None:
        lines.append(f"outputs: SQNR {data['sqnr_db']:.1f} dB against float, on a few calibration samples")
    onnx = data.get("onnx", {})
    if onnx.get("deployment"):
        lines.append(agreement(onnx["deployment"]))
    if onnx.get("operators"):
        lines.append(operators(onnx["operators"]))
    for kind, name in (("checkpoint", "checkpoint"), ("onnx", "ONNX"), ("plot", "plot")):
        path = data.get(kind, {}).get("path")
        if path is not None:
            lines.append(f"{name}: {path}")
    return lines


def agreement(found: Mapping[str, Any]) -> str:
    """Return one line about simulated and deployed outputs."""
    noise = "equal" if found["sqnr_db"] >= 200 else f"SQNR {found['sqnr_db']:.1f} dB"
    return (
        f"file on {found['runtime']} against simulation: top-1 agreement {found['agreement']:.2f} % of "
        f"{found['samples']} samples, {noise}, largest difference {found['max_diff']:.2g}"
    )


def operators(counts: Mapping[str, int]) -> str:
    """Return one line about what the runtime made of the file."""
    integer = {name: count for name, count in counts.items() if name.startswith("QLinear") or name in INTEGER}
    casts = {name: count for name, count in counts.items() if name in CASTS}
    plain = {name: count for name, count in counts.items() if name not in integer and name not in casts}
    parts = (("in integers", integer), ("between", casts), ("other", plain))
    texts = (f"{name}: {', '.join(f'{count} {op}' for op, count in sorted(ops.items()))}" for name, ops in parts if ops)
    return "onnxruntime runs " + "; ".join(texts)


def slower(speedup: float) -> str:
    """Return the warning about a quantized file that is slower than float."""
    return (
        f"the quantized file is slower than the float one: {speedup:.2f}x; leave the layers that lose in float with "
        "--never-slower, or quantize for the runtime that you time"
    )


def line(data: Mapping[str, Any]) -> str:
    """Return the one line of the quiet format: the first metric, and the share of the bytes."""
    parts = [
        f"{name} {values['before']:.4f} -> {values['after']:.4f}" for name, values in data.get("metrics", {}).items()
    ][:1]
    for kind, before in (("checkpoint", "float_checkpoint_bytes"), ("onnx", "float_bytes")):
        if kind in data:
            parts.append(f"{kind} {_share(data.get(before), data[kind]['bytes'])}")
    return ", ".join(parts) or f"{len(data.get('layers', ()))} layers in integers"


def _share(before: int | None, after: int | None) -> str:
    return f"{after / before:.1%}" if before and after else ""


def _bytes(size: int | None) -> str:
    return "" if size is None else f"{size:,} B"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if isinstance(value, float) else str(value)
