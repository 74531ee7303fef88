"""The tables of ``slim graph``, and the same as JSON values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slim_core.report.format import clean, count, size

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from slim_core.graph import ChannelGroup, Coupling, Frozen, Graph, SourceLine
    from slim_core.graph.cost import CostReport

_FEW = 4  # members named in a table before the rest is counted


def summary(coupling: Coupling, report: CostReport) -> dict[str, Any]:
    """Return totals, inputs, and how much of the model can be pruned."""
    graph = coupling.graph
    return {
        "class": graph.model_class,
        "inputs": [
            {"name": value.names[0] if value.names else "", "shape": list(value.shape), "dtype": value.dtype}
            for value in (graph.values[index] for index in graph.inputs)
        ],
        "operators": len(graph.nodes),
        "recorded": graph.device_kind,
        "macs": report.macs,
        "params": report.params,
        "bytes": report.bytes,
        "buffer_bytes": report.buffer_bytes,
        "peak_activation_bytes": report.peak_activation_bytes,
        "uncounted": report.to_json()["uncounted"],
        "units": sum(group.units for group in coupling.groups),
        "prunable_params": prunable(coupling),
        "notes": list(graph.notes),
    }


def prunable(coupling: Coupling) -> int:
    """Return how many elements of parameters have an index that a channel group can remove."""
    shapes = {value.names[0]: value.shape for value in coupling.graph.values if value.kind == "parameter"}
    kept: dict[str, dict[int, int]] = {}
    for group in coupling.groups:
        for member in group.members:
            if member.name in shapes:
                free = kept.setdefault(member.name, {})
                free[member.dim] = free.get(member.dim, shapes[member.name][member.dim]) - member.indices.size
    total = 0
    for name, dims in kept.items():
        whole = rest = 1
        for dim, extent in enumerate(shapes[name]):
            whole *= extent
            rest *= dims.get(dim, extent)
        total += whole - rest
    return total


def group_json(group: ChannelGroup) -> dict[str, Any]:
    """Return a channel group and its members as JSON values."""
    members = [
        {
            "name": member.name,
            "dim": member.dim,
            "kind": member.kind,
            "module": member.module,
            "indices_per_unit": int(member.indices.shape[1]),
        }
        for member in group.members
    ]
    return {"name": group.name, "units": group.units, "exact": group.exact, "members": members}


def frozen_whole(coupling: Coupling, reason: str) -> Coupling:
    """Return the coupling with everything that has channels frozen for one reason."""
    from slim_core.graph import Frozen

    sizes = {(item.name, item.dim): item.count for item in coupling.frozen}
    for group in coupling.groups:
        for member in group.members:
            key = (member.name, member.dim)
            sizes[key] = sizes.get(key, 0) + int(member.indices.size)
    frozen = tuple(Frozen(name, dim, count, reason, None) for (name, dim), count in sorted(sizes.items()))
    return replace(coupling, groups=(), frozen=frozen)


def frozen_json(item: Frozen) -> dict[str, Any]:
    """Return a frozen dimension, with the reason and the line that froze it, as JSON values."""
    return {
        "name": item.name,
        "dim": item.dim,
        "count": item.count,
        "reason": item.reason,
        "source": str(item.source) if item.source else None,
    }


def page(
    name: str, coupling: Coupling, report: CostReport, views: Sequence[str], kinds: Mapping[str, str], depth: int
) -> RenderableType:
    """Return the views that were asked for, below the totals."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [Text(_headline(name, coupling, report))]
    if "modules" in views:
        parts.append(_modules(report, kinds, depth))
    if "nodes" in views:
        parts.append(_nodes(report))
    if "groups" in views:
        parts.append(_groups(coupling))
    if "frozen" in views:
        parts.append(_frozen(coupling))
    parts += [Text(f"note: {clean(note)}") for note in _notes(coupling.graph, report)]
    return Group(*parts)


def _headline(name: str, coupling: Coupling, report: CostReport) -> str:
    graph = coupling.graph
    shapes = ", ".join(_shape(graph.values[index].shape) for index in graph.inputs)
    share = prunable(coupling) / report.params if report.params else 0.0
    lines = [
        f"{name}: {graph.model_class} on {shapes}, {len(graph.nodes)} operators",
        f"{count(report.macs)} MACs, {count(report.params)} parameters ({size(report.bytes)}), "
        f"{size(report.peak_activation_bytes)} of activations at most",
        f"{len(coupling.groups)} channel groups with {sum(group.units for group in coupling.groups)} units; "
        f"{share:.0%} of the parameters lie in them",
    ]
    return "\n".join(lines)


def _notes(graph: Graph, report: CostReport) -> list[str]:
    notes = list(graph.notes)
    for item in report.uncounted:
        where = f" ({item.source})" if item.source else ""
        notes.append(f"the work of {item.op}, {item.count}x, is not counted{where}")
    return notes


def _modules(report: CostReport, kinds: Mapping[str, str], depth: int) -> Table:
    table = _table("module", "class", "operators", "output", "MACs", "share", "parameters", "peak")
    for row in report.modules:
        if row.depth > depth:
            continue
        label = "  " * max(row.depth - 1, 0) + (row.path.rpartition(".")[2] if row.depth > 1 else row.path or "(model)")
        _add(
            table,
            label,
            kinds.get(row.path, ""),
            str(row.ops) if row.ops else "-",
            _shape(row.shape) if row.ops else "-",
            count(row.macs) if row.macs else "-",
            f"{row.macs / report.macs:.1%}" if row.macs and report.macs else "-",
            count(row.params) if row.params else "-",
            size(row.peak_activation_bytes) if row.ops else "-",
        )
    return table


def _nodes(report: CostReport) -> Table:
    table = _table("#", "operator", "module", "output", "MACs", "parameters", "activations", "alive", "line")
    for row in report.nodes:
        _add(
            table,
            str(row.index),
            row.op.removeprefix("aten.").removesuffix(".default"),
            row.module or "(model)",
            _shape(row.shape),
            count(row.macs) if row.macs else "-",
            count(row.params) if row.params else "-",
            size(row.activation_bytes) if row.activation_bytes else "-",
            size(row.live_bytes),
            _place(row.source).partition("\n")[0],
        )
    return table


def _groups(coupling: Coupling) -> Table:
    table = _table("channel group", "units", "made by", "read by", "norms and gates")
    for group in coupling.groups:
        mark = "" if group.exact else " *"
        makers, readers, others = (_modules_of(group, kind) for kind in ("out", "in", "per_channel"))
        _add(
            table,
            group.name + mark,
            str(group.units),
            _listed(makers) or "-",
            _listed(readers) or "-",
            str(len(set(others) - set(makers))),  # biases stand with their weights
        )
    if not coupling.groups:
        _add(table, "none", "", "", "", "")
    if any(not group.exact for group in coupling.groups):
        table.caption = "* a norm takes statistics over these channels: removing some changes the others"
        table.caption_justify = "left"
    return table


def _modules_of(group: ChannelGroup, kind: str) -> list[str]:
    return list(dict.fromkeys(member.module or member.name for member in group.members if member.kind == kind))


def _frozen(coupling: Coupling) -> Table:
    table = _table("cannot be touched", "why", "line")
    reasons: dict[tuple[str, str], list[Frozen]] = {}
    for item in coupling.frozen:
        reasons.setdefault((item.reason, str(item.source or "")), []).append(item)
    for (reason, _), items in reasons.items():
        _add(table, _listed([f"{item.name}[{item.dim}]" for item in items]), reason, _place(items[0].source))
    if not coupling.frozen:
        _add(table, "nothing", "", "")
    return table


def _listed(names: Sequence[str]) -> str:
    more = [f"and {len(names) - _FEW} more"] if len(names) > _FEW + 1 else []
    return "\n".join([*(names[:_FEW] if more else names), *more])


def _place(source: SourceLine | None) -> str:
    """Return the end of the path, the line, and the code below it."""
    if source is None:
        return ""
    return f"{Path(*Path(source.file).parts[-2:])}:{source.line}\n{source.text}"


def _table(*columns: str) -> Table:
    from rich import box
    from rich.table import Table

    numbers = ("#", "operators", "MACs", "share", "parameters", "activations", "peak", "alive", "units",
               "norms and gates")  # fmt: skip
    table = Table(box=box.SIMPLE_HEAD, expand=False)
    for column in columns:
        table.add_column(
            column,
            justify="right" if column in numbers else "left",
            no_wrap=column in numbers or column in ("module", "class", "output", "channel group"),
            overflow="fold",
        )
    return table


def _add(table: Table, *cells: str) -> None:
    from rich.text import Text

    table.add_row(*(Text(clean(cell)) for cell in cells))


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"
