"""Which kernels an ONNX file becomes: read from the graph that the runtime itself makes of it, by running it once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from slim_core.errors import MeasureError
from slim_core.extras import require
from slim_latency import agent

EXTRA = "slim-latency[onnxruntime]"


def kernels_of_file(
    path: Path, *, level: str = "all", batch: int = 1, shapes: Mapping[str, Sequence[int]] | None = None
) -> list[str]:
    """Return the keys of the kernels, in the order in which they run.

    The memory layout is that of this machine; a device that packs other numbers of channels together runs others.

    Args:
        path: the file.
        level: how far the runtime rewrites the graph.
        batch: size of a first dimension of any size.
        shapes: whole shapes of inputs with other dimensions of any size.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        MeasureError: there is no such file, or the runtime refuses it.
    """
    require("onnxruntime", EXTRA)
    if not Path(path).is_file():
        raise MeasureError(f"there is no file {path}")
    try:
        session = agent.open_session(str(path), 1, level)
        feeds = agent.draw_inputs(session, dict(shapes or {}), batch, 0)
        kernels, _ = agent.profiled_calls(str(path), 1, level, feeds, 0, 1)
    except agent.Refused as error:
        raise MeasureError(str(error), where=str(path)) from error
    except Exception as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise MeasureError(f"onnxruntime does not run the file: {first}", where=str(path)) from error
    return [kernel.key for kernel in kernels]
