"""The backend ``openvino``: ONNX files on the CPU plugin of OpenVINO, at the precision that is asked for.

Threads are not pinned to cores: the plugin would pin those of every candidate to the same ones, whoever else runs
there.
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

EXTRA = "slim-latency[openvino]"
Precision = Literal["f32", "bf16", "f16", "default"]
_TYPES = {"f32": "float32", "f64": "float64", "f16": "float16", "i64": "int64", "i32": "int32", "i16": "int16",
          "i8": "int8", "u8": "uint8", "boolean": "bool"}  # fmt: skip


class OpenVinoBackend:
    """OpenVINO on the CPU, one request at a time.

    Args:
        precision: what floating-point kernels compute in. ``"f32"`` gives the figures of the file as it is;
            ``"default"`` leaves the choice to the plugin, which takes bfloat16 where the processor is made for it.
    """

    name: ClassVar[str] = "openvino"
    #: what has to be installed: module and the extra that brings it
    requires: ClassVar[tuple[tuple[str, str], ...]] = (("openvino", EXTRA),)

    def __init__(self, precision: Precision = "f32") -> None:
        if precision not in ("f32", "bf16", "f16", "default"):
            raise MeasureError(f"unknown precision {precision!r}", hint="openvino has: f32, bf16, f16, default")
        self.precision = precision

    def available(self) -> None:
        """Return if OpenVINO is installed.

        Raises:
            MissingExtraError: it is not.
        """
        require("openvino", EXTRA)

    def prepare(
        self, artifact: Artifact, example_inputs: Inputs | None = None, *, threads: int | None = None
    ) -> OpenVinoSession:
        """Compile the artifact's ONNX file for inputs of the given shapes.

        Raises:
            MissingExtraError: OpenVINO is not installed.
            MeasureError: there is no file, or OpenVINO refuses it.
        """
        if threads is not None and threads < 1:
            raise MeasureError(f"threads must be at least 1, not {threads}")
        return OpenVinoSession(artifact.onnx_for(self.name), example_inputs, threads, self.precision)


class OpenVinoSession(Session):
    """A compiled ONNX file.

    Args:
        path: the file.
        inputs: inputs whose shapes it is compiled for; empty: the file's own, sizes that it leaves open stay open.
        threads: threads of the one request, or ``None`` for the plugin's default, all cores.
        precision: see :class:`OpenVinoBackend`.
    """

    def __init__(self, path: Path, inputs: Inputs | None, threads: int | None, precision: Precision) -> None:
        ov = require("openvino", EXTRA)
        self._path = path
        options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False}
        if threads is not None:
            options["INFERENCE_NUM_THREADS"] = threads
        if precision != "default":
            options["INFERENCE_PRECISION_HINT"] = precision
        try:
            core = ov.Core()
            model = core.read_model(str(path))
            names = [item.get_any_name() for item in model.inputs]
            self.inputs = tuple(_spec(item) for item in model.inputs)
            if inputs:
                given = feeds(names, inputs, str(path))
                model.reshape({name: list(array.shape) for name, array in given.items()})
            self._compiled = core.compile_model(model, "CPU", options)
            self._request = self._compiled.create_infer_request()
            found = self._compiled.get_property("INFERENCE_PRECISION_HINT")
        except MeasureError:
            raise
        except Exception as error:
            raise MeasureError(f"openvino does not load the file: {first_line(error)}", where=str(path)) from error
        self.info: dict[str, Any] = {
            "runtime": f"openvino {ov.__version__.split('-')[0]}",
            "device": "cpu",
            "threads": threads,
            "settings": {
                "precision": getattr(found, "get_type_name", lambda: str(found))(),
                "precision_hint": precision,
                "performance_hint": "latency",
                "streams": 1,
                "pinning": False,
            },
            "notes": [],
        }

    def run(self, inputs: Inputs) -> list[NDArray[Any]]:
        given = feeds([spec.name for spec in self.inputs], inputs, str(self._path))
        try:
            outputs = self._request.infer(given)
        except Exception as error:
            raise MeasureError(
                f"openvino cannot run the file on these inputs: {first_line(error)}", where=str(self._path)
            ) from error
        return [np.array(outputs[position]) for position in range(len(self._compiled.outputs))]

    def bind(self, inputs: Inputs) -> Callable[[], object]:
        given = feeds([spec.name for spec in self.inputs], inputs, str(self._path))
        self._request.infer(given)
        request = self._request
        for name, array in given.items():
            request.get_tensor(name).data[:] = array
        return lambda: request.infer()

    def close(self) -> None:
        """Free what the plugin holds."""
        self._request = self._compiled = None


def _spec(item: Any) -> TensorSpec:
    name, kind = item.get_any_name(), item.get_element_type().get_type_name()
    if kind not in _TYPES:
        raise MeasureError(f"input '{name}' has the type {kind}, which is not a plain tensor")
    shape = tuple(None if size.is_dynamic else int(size.get_length()) for size in item.get_partial_shape())
    return TensorSpec(name, shape, _TYPES[kind], "input")
