"""What reports and commands draw of quantized layers, as data that ``slim_core.report.plots.read_plots`` reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

#: figures of a report's layers, and what their bars are called
TITLES = {"sqnr_db": "SQNR of each layer's output", "weight_sqnr_db": "SQNR of each weight"}


def sqnr_plots(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one plot of bars for each figure in dB that the layers have.

    Args:
        rows: layers of a :class:`slim_quant.result.QuantReport`: ``name``, ``bits`` and figures; rows without a figure
            have no bar.
    """
    layers = list(rows)
    plots = []
    for key, title in TITLES.items():
        bars = [
            {"name": str(row["name"]), "value": float(row[key]), "note": f"{row['bits']} bits"}
            for row in layers
            if row.get(key) is not None
        ]
        if bars:
            plots.append({"kind": "bars", "title": title, "unit": "dB", "rows": bars})
    return plots
