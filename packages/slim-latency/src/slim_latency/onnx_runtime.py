"""The backend ``onnxruntime``: ONNX files on the CPU provider, at the graph level that is deployed.

Worker threads spin inside a run, as they do in deployment, and stop when it ends. By default onnxruntime lets them
spin on after a run, and then they take cores from whatever is timed next, which in interleaved rounds is another
candidate.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from slim_core.errors import MeasureError
from slim_core.extras import require
from slim_core.measure import Artifact, Session
from slim_core.tensors import TensorSpec
from slim_core.workload import Inputs
from slim_latency.feeds import feeds, first_line

EXTRA = "slim-latency[onnxruntime]"
GraphLevel = Literal["disabled", "basic", "extended", "all"]

#: after a run, worker threads go to sleep at once
_STOP_SPINNING = "session.force_spinning_stop"
_TYPES = {
    "tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16", "tensor(int64)": "int64",
    "tensor(int32)": "int32", "tensor(int16)": "int16", "tensor(int8)": "int8", "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}  # fmt: skip


class OnnxRuntimeBackend:
    """ONNX Runtime on the CPU.

    Args:
        graph_level: how far the runtime rewrites the graph. ``"all"`` also changes the memory layout, and takes half
            the time of ``"extended"`` for some networks: figures of different levels cannot be compared.
        keep_spinning: let worker threads spin after a run, as the runtime does by default. Only for measuring one
            session alone.
    """

    name: ClassVar[str] = "onnxruntime"
    #: what has to be installed: module and the extra that brings it
    requires: ClassVar[tuple[tuple[str, str], ...]] = (("onnxruntime", EXTRA),)

    def __init__(self, graph_level: GraphLevel = "all", *, keep_spinning: bool = False) -> None:
        if graph_level not in ("disabled", "basic", "extended", "all"):
            raise MeasureError(
                f"unknown graph level {graph_level!r}", hint="onnxruntime has: disabled, basic, extended, all"
            )
        self.graph_level, self.keep_spinning = graph_level, keep_spinning

    def available(self) -> None:
        """Return if onnxruntime is installed.

        Raises:
            MissingExtraError: it is not.
        """
        require("onnxruntime", EXTRA)

    def prepare(
        self, artifact: Artifact, example_inputs: Inputs | None = None, *, threads: int | None = None
    ) -> OnnxRuntimeSession:
        """Load the artifact's ONNX file.

        Raises:
            MissingExtraError: onnxruntime is not installed.
            MeasureError: there is no file, or onnxruntime refuses it.
        """
        if threads is not None and threads < 1:
            raise MeasureError(f"threads must be at least 1, not {threads}")
        path = artifact.onnx_for(self.name)
        return OnnxRuntimeSession(path, self._options(threads), threads, self.graph_level, self.keep_spinning)

    def _options(self, threads: int | None) -> Any:
        ort = require("onnxruntime", EXTRA)
        options = ort.SessionOptions()
        options.log_severity_level = 3  # errors; what it warns about is of no use to the caller
        options.intra_op_num_threads = threads or 0
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        suffix = {"disabled": "DISABLE_ALL", "basic": "ENABLE_BASIC", "extended": "ENABLE_EXTENDED",
                  "all": "ENABLE_ALL"}[self.graph_level]  # fmt: skip
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_{suffix}")
        if not self.keep_spinning:
            options.add_session_config_entry(_STOP_SPINNING, "1")
        return options


class OnnxRuntimeSession(Session):
    """A loaded ONNX file.

    Args:
        path: the file.
        options: onnxruntime's session options.
        threads: threads inside operators, or ``None`` for the runtime's default, one per physical core.
        graph_level: what ``options`` say, for the record.
        keep_spinning: likewise.
    """

    def __init__(self, path: Path, options: Any, threads: int | None, graph_level: str, keep_spinning: bool) -> None:
        ort = require("onnxruntime", EXTRA)
        self._path = path
        try:
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise MeasureError(f"onnxruntime does not load the file: {first_line(error)}", where=str(path)) from error
        self.inputs: tuple[TensorSpec, ...] = tuple(_spec(item) for item in self._session.get_inputs())
        self.info: dict[str, Any] = {
            "runtime": f"onnxruntime {ort.__version__}",
            "device": "cpu",
            "threads": threads,
            "settings": {
                "graph_level": graph_level,
                "execution_mode": "sequential",
                "provider": self._session.get_providers()[0],
                "spinning": "also after a run" if keep_spinning else "inside a run",
            },
            "notes": [],
        }

    def run(self, inputs: Inputs) -> list[NDArray[Any]]:
        feeds = self._feeds(inputs)
        try:
            outputs = self._session.run(None, feeds)
        except Exception as error:
            raise MeasureError(
                f"onnxruntime cannot run the file on these inputs: {first_line(error)}", where=str(self._path)
            ) from error
        return [np.asarray(output) for output in outputs]

    def bind(self, inputs: Inputs) -> Callable[[], object]:
        feeds, run = self._feeds(inputs), self._session.run
        return lambda: run(None, feeds)

    def close(self) -> None:
        """Free the runtime's memory and threads."""
        self._session = None

    def _feeds(self, inputs: Inputs) -> dict[str, NDArray[Any]]:
        return feeds([spec.name for spec in self.inputs], inputs, str(self._path))


def _spec(item: Any) -> TensorSpec:
    if item.type not in _TYPES:
        raise MeasureError(f"input '{item.name}' has the type {item.type}, which is not a plain tensor")
    shape = tuple(size if isinstance(size, int) else None for size in item.shape)
    return TensorSpec(item.name, shape, _TYPES[item.type], "input")
