"""Bundles: a folder with models, their hashes and the agent, to be copied to a device by any means."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from slim_core.errors import MeasureError
from slim_core.files import write_bytes, write_json, write_text
from slim_latency import agent

MANIFEST = "manifest.json"
_HOW = """Measure this folder on the device that it is for:

    python3 agent.py .

It needs Python 3.8 or later, numpy and onnxruntime (or openvino, where the bundle says so), and nothing else. It may be
stopped and started again at any time.
Copy results.jsonl back, and there:

    slim latency import FOLDER --name my-device

For steady figures let nothing else run, keep the device cool, and fix the clock if you can. `--cpus 4,5` keeps it on
the cores that you mean (big or little ones), `--threads 2` uses two of them.
"""


def write_bundle(
    folder: Path,
    files: Mapping[str, Path],
    *,
    macs: Mapping[str, int] | None = None,
    shapes: Mapping[str, Mapping[str, Iterable[int]]] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """Write models, manifest, agent and a note on how to run it; return the folder.

    Args:
        folder: is made; files of an earlier bundle in it are replaced, results are left.
        files: ONNX files by name.
        macs: multiply-accumulates by name, for the baseline.
        shapes: shapes of inputs with dimensions of any size, by model and input.
        settings: what differs from ``agent.SETTINGS``: rounds, threads, level, batch, …

    Raises:
        MeasureError: a name or a setting cannot be used, or a file is missing or keeps its weights elsewhere.
    """
    unknown = set(settings or {}) - {*agent.SETTINGS, "batch"}
    if unknown:
        raise MeasureError(f"a bundle has no setting '{min(unknown)}'", hint=f"it has: {', '.join(agent.SETTINGS)}")
    runtime = (settings or {}).get("runtime", "onnxruntime")
    if runtime not in agent.RUNTIMES:
        raise MeasureError(f"the agent has no runtime '{runtime}'", hint=f"it has: {', '.join(agent.RUNTIMES)}")
    if not files:
        raise MeasureError("a bundle needs at least one model")
    for name, path in files.items():
        if not re.fullmatch(r"[A-Za-z0-9][\w.+-]{0,99}", name):
            raise MeasureError(f"'{name}' cannot name a model of a bundle", hint="use letters, digits, . _ + -")
        if not Path(path).is_file():
            raise MeasureError(f"there is no file {path}")
        if list(Path(path).parent.glob(f"{Path(path).name}.*.data")):
            raise MeasureError(f"{path} keeps its weights in a second file, which bundles do not take")
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for name, path in sorted(files.items()):
        data = Path(path).read_bytes()
        if (folder / f"{name}.onnx") != Path(path):
            write_bytes(folder / f"{name}.onnx", data)
        entry: dict[str, Any] = {"name": name, "file": f"{name}.onnx", "sha256": hashlib.sha256(data).hexdigest()}
        if macs and name in macs:
            entry["macs"] = int(macs[name])
        if shapes and name in shapes:
            entry["shapes"] = {key: list(shape) for key, shape in shapes[name].items()}
        entries.append(entry)
    manifest: dict[str, Any] = {"schema": agent.SCHEMA, "models": entries, "settings": dict(settings or {})}
    manifest["hash"] = agent._digest(manifest)
    write_json(folder / MANIFEST, manifest)
    write_text(folder / "README.txt", _HOW)
    write_bytes(folder / "agent.py", Path(agent.__file__).read_bytes())
    return folder
