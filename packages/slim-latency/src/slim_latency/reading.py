"""Which kernels an ONNX file becomes: read from the graph that the runtime itself makes of it, by running it once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from slim_core.errors import MeasureError
from slim_core.extras import require
from slim_latency import agent
from slim_latency.feeds import first_line


def kernels_of_file(
    path: Path,
    *,
    runtime: str = "onnxruntime",
    level: str = "all",
    precision: str = "f32",
    batch: int = 1,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> list[str]:
    """Return the keys of the kernels, in the order in which they run.

    The memory layout is that of this machine; a device that packs other numbers of channels together runs others.

    Args:
        path: the file.
        runtime: ``"onnxruntime"`` or ``"openvino"``.
        level: how far onnxruntime rewrites the graph.
        precision: what OpenVINO computes in.
        batch: size of a first dimension of any size.
        shapes: whole shapes of inputs with other dimensions of any size.

    Raises:
        MissingExtraError: the runtime is not installed.
        MeasureError: there is no such file, or the runtime refuses it.
    """
    if runtime not in agent.RUNTIMES:
        raise MeasureError(f"kernels cannot be read from {runtime}", hint=f"they can from {', '.join(agent.RUNTIMES)}")
    require(runtime, f"slim-latency[{runtime}]")
    if not Path(path).is_file():
        raise MeasureError(f"there is no file {path}")
    settings = {**agent.SETTINGS, "level": level, "precision": precision, "batch": batch, "shapes": dict(shapes or {})}
    try:
        kernels, _ = agent.RUNTIMES[runtime](str(path), settings).profile(0, 1)
    except agent.Refused as error:
        raise MeasureError(str(error), where=str(path)) from error
    except Exception as error:
        raise MeasureError(f"{runtime} does not run the file: {first_line(error)}", where=str(path)) from error
    return [kernel.key for kernel in kernels]
