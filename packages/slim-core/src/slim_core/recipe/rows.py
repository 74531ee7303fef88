"""Figures about one model for the report: parameters, MACs, bytes, metrics. Timing is in ``latency``."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slim_core.errors import SlimError
from slim_core.report.data import ChannelRow, ModelRow
from slim_core.workload import Workload

#: the absolute path of a Python file
_SOURCE = re.compile(r"(?<![\w.~-])/[^\s:'\"()]+\.py\b")


def model_row(
    key: str, label: str, workload: Workload, metrics: Mapping[str, float], file: Path, like: ModelRow | None
) -> tuple[ModelRow, list[str]]:
    """Describe a model.

    Args:
        key: the row's key.
        label: what tables call it.
        workload: the model and its example inputs.
        metrics: its figures on the validation data.
        file: its checkpoint.
        like: the row before it, whose MACs stand where this model cannot be recorded.

    Returns:
        The row, and what the report should tell.
    """
    notes: list[str] = []
    finite: dict[str, float] = {}
    for name, figure in metrics.items():
        if math.isfinite(figure):
            finite[name] = float(figure)
        else:
            notes.append(f"metric '{name}' of {label} is {figure}: it is left out of the tables")
    macs, peak = None, None
    try:
        from slim_core.graph import record
        from slim_core.graph.cost import cost
        from slim_core.measure.measurement import quantizes

        report = cost(record(workload.model, workload.example_inputs))
        batch = _batch_of(workload.example_inputs)
        macs, peak = round(report.macs / batch), round(report.peak_activation_bytes / batch)
        if quantizes(workload.model):
            peak = None  # the simulation's float tensors say nothing about the integers of a runtime
        if report.uncounted:
            names = sorted({str(getattr(item, "op", item)) for item in report.uncounted})
            shown = ", ".join(names[:6]) + (", …" if len(names) > 6 else "")
            notes.append(f"the MACs of {label} leave out operators that have no count: {shown}")
    except SlimError as error:
        if like is not None:
            macs, peak = like.macs, None
            notes.append(f"{label} cannot be recorded; its MACs are those of the model before: {error.what}")
        else:
            notes.append(f"{label} cannot be recorded, so its MACs are unknown: {error.what}")
    params = sum(parameter.numel() for parameter in workload.model.parameters())
    return ModelRow(key, label, finite, params, macs, file.stat().st_size, None, peak), notes


def channel_rows(value: Any) -> tuple[ChannelRow, ...]:
    """Read a technique's ``details["channels"]``."""
    return tuple(ChannelRow(str(row["name"]), int(row["kept"]), int(row["total"])) for row in _mappings(value))


def table_rows(value: Any) -> tuple[Mapping[str, Any], ...]:
    """Read a technique's ``details["history"]``, ``["layers"]``, ``["curves"]`` or ``["plots"]``."""
    return tuple({str(key): json_value(item) for key, item in row.items()} for row in _mappings(value))


def without_folders(text: str) -> str:
    """Return ``text`` with the files that it names relative to their package, to where one works, or to one's home.

    A report is passed on; where its maker's folders lie is nobody's business.
    """
    text = re.sub(r"[^\s('\"]*/site-packages/", "", text)
    text = _SOURCE.sub(lambda match: _in_package(match[0]), text)
    for folder, sign in ((f"{Path.cwd()}{os.sep}", ""), (f"{Path.home()}{os.sep}", f"~{os.sep}")):
        if len(folder) > 2:  # not the root folder
            text = text.replace(folder, sign)
    return text


def _in_package(name: str) -> str:
    """Return the path of a module's file as seen from its outermost package, wherever that is installed from."""
    path = Path(name)
    folder = path.parent
    while (folder / "__init__.py").is_file():
        folder = folder.parent
    return name if folder == path.parent else path.relative_to(folder).as_posix()


def json_value(value: Any) -> Any:
    """Return ``value`` as JSON values; figures that are not finite become ``None``, other objects their text."""
    if isinstance(value, bool) or value is None or isinstance(value, int):
        return value
    if isinstance(value, str):
        return without_folders(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): json_value(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [json_value(item) for item in value]
    if hasattr(value, "tolist"):
        return json_value(value.tolist())
    return str(value)


def _mappings(value: Any) -> list[Mapping[str, Any]]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        return []
    return [row for row in value if isinstance(row, Mapping)]


def _batch_of(inputs: Any) -> int:
    from slim_core.data import batch_size

    return max(batch_size(inputs), 1)
