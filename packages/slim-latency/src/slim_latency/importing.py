"""From an agent's results, or from tables of other tools, to device tables with what is fitted to them."""

from __future__ import annotations

import json
from pathlib import Path

from slim_core.errors import MeasureError
from slim_core.progress import Progress
from slim_latency.predict import fit
from slim_latency.results import read_results, table_of
from slim_latency.table import DeviceTable, TableError, with_model


def import_results(
    path: Path, name: str, *, note: str | None = None, trees: bool = True, progress: Progress | None = None
) -> DeviceTable:
    """Make a device table of a bundle's folder, or of the ``results.jsonl`` in it.

    Args:
        path: the folder or the file. The manifest beside it tells the baseline's multiply-accumulates.
        name: of the device.
        note: a line of provenance.
        trees: refine what is fitted with boosted trees, where scikit-learn is installed.
        progress: where to report to.

    Raises:
        TableError: results are missing, were changed, or do not belong to the manifest.
    """
    folder = path if path.is_dir() else path.parent
    rows = read_results(path / "results.jsonl" if path.is_dir() else path)
    macs: dict[str, int] = {}
    manifest = folder / "manifest.json"
    if manifest.is_file():
        try:
            data = json.loads(manifest.read_text(encoding="utf-8"))
            fits = data["hash"] == rows[0].get("manifest")
            macs = {entry["name"]: int(entry["macs"]) for entry in data["models"] if "macs" in entry}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise TableError(f"not a manifest: {error}", where=str(manifest)) from None
        if not fits:
            raise TableError(
                "the results belong to another bundle than the manifest beside them",
                where=str(path), hint="put results.jsonl back into the folder that was copied to the device",
            )  # fmt: skip
    table = table_of(name, rows, macs, note)
    return with_model(table, fit(table, trees=trees, progress=progress))


__all__ = ["MeasureError", "import_results"]
