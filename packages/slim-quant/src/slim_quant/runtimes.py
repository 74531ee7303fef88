"""Exported files on the runtimes that they are for: run, timed, and profiled kernel by kernel.

What slim-latency offers beyond that (device tables, other runtimes, agents) is not needed to quantize.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slim_core.errors import MeasureError, SlimError, UnknownNameError, close_match
from slim_core.extras import require
from slim_core.measure import Session
from slim_core.workload import Inputs, tensors_of

RUNTIMES = ("onnxruntime", "openvino")
#: calls that a profile is the median of
CALLS = 20

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel of a profile.

    Args:
        name: of the node in the runtime's graph.
        op: what the runtime calls it.
        us: median time in microseconds.
        shape: of its result, where the runtime tells.
    """

    name: str
    op: str
    us: float
    shape: tuple[int, ...] | None = None


class Runner(Session):
    """A file on a runtime.

    Args:
        path: the file.
        threads: threads inside operators; ``None``: the runtime's own choice.
    """

    name: str

    def __init__(self, path: str | os.PathLike[str], threads: int | None = None) -> None:
        self._path, self._threads = Path(path), threads

    @property
    @abstractmethod
    def inputs(self) -> list[str]:
        """Names of the file's inputs, in order."""

    def run(self, inputs: Inputs) -> list[NDArray[Any]]:
        """Run once and return every output.

        Raises:
            MeasureError: the runtime refuses these inputs.
        """
        try:
            return self._run(feeds(self.inputs, inputs))
        except Exception as error:
            raise MeasureError(
                f"{self.name} cannot run the file on these inputs: {_first_line(error)}", where=str(self._path)
            ) from error

    @abstractmethod
    def _run(self, given: Arrays) -> list[NDArray[Any]]:
        """Run on arrays by name."""

    @abstractmethod
    def profile(self, inputs: Inputs, calls: int = CALLS) -> tuple[Kernel, ...]:
        """Return the kernels in the order in which they ran, with their median time over some calls."""


class OnnxRuntime(Runner):
    """The CPU provider of ONNX Runtime, at the graph level that is deployed.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        MeasureError: it does not load the file.
    """

    name = "onnxruntime"

    def __init__(self, path: str | os.PathLike[str], threads: int | None = None) -> None:
        super().__init__(path, threads)
        ort = require("onnxruntime", "slim-quant[onnxruntime]")
        self._session: Any = self._open(ort, None)
        self.info = {
            "runtime": f"onnxruntime {ort.__version__}", "device": "cpu", "threads": threads,
            "settings": {"graph_level": "all", "provider": "CPUExecutionProvider", "spinning": "inside a run"},
        }  # fmt: skip

    @property
    def inputs(self) -> list[str]:
        return [item.name for item in self._session.get_inputs()]

    def bind(self, inputs: Inputs) -> Callable[[], object]:
        given, run = feeds(self.inputs, inputs), self._session.run
        return lambda: run(None, given)

    def close(self) -> None:
        self._session = None

    def profile(self, inputs: Inputs, calls: int = CALLS) -> tuple[Kernel, ...]:
        ort = require("onnxruntime", "slim-quant[onnxruntime]")
        with tempfile.TemporaryDirectory() as folder:
            session = self._open(ort, os.path.join(folder, "profile"))
            given = feeds(self.inputs, inputs)
            for _ in range(calls + max(3, calls // 4)):
                session.run(None, given)
            with open(session.end_profiling(), encoding="utf-8") as file:
                events = json.load(file)
        return _kernels(events, calls)

    def _run(self, given: Arrays) -> list[NDArray[Any]]:
        return [np.asarray(output) for output in self._session.run(None, given)]

    def _open(self, ort: Any, profile: str | None) -> Any:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = self._threads or 0
        # worker threads that spin on after a run take cores from what is timed next
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, profile
        try:
            return ort.InferenceSession(str(self._path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise MeasureError(
                f"onnxruntime does not load the file: {_first_line(error)}", where=str(self._path)
            ) from error


class OpenVino(Runner):
    """The CPU plugin of OpenVINO, one request at a time, what stays in float in float32.

    Left alone the plugin computes it in bfloat16 where the processor is made for that.

    Args:
        path: the file.
        threads: threads of the request.
        precision: ``"f32"``, ``"bf16"``, or ``"default"`` for the plugin's own choice.

    Raises:
        MissingExtraError: OpenVINO is not installed.
        MeasureError: it does not load the file.
    """

    name = "openvino"

    def __init__(self, path: str | os.PathLike[str], threads: int | None = None, *, precision: str = "f32") -> None:
        super().__init__(path, threads)
        ov = require("openvino", "slim-quant[openvino]")
        self._core, self._precision = ov.Core(), precision
        try:
            self._model = self._core.read_model(str(path))
        except Exception as error:
            raise MeasureError(f"openvino does not load the file: {_first_line(error)}", where=str(path)) from error
        self._names = [item.get_any_name() for item in self._model.inputs]
        self._compiled: dict[tuple[Any, ...], Any] = {}
        self.info = {
            "runtime": f"openvino {ov.__version__.split('-')[0]}", "device": "cpu", "threads": threads,
            "settings": {"precision": precision, "performance_hint": "latency", "streams": 1, "pinning": False},
        }  # fmt: skip

    @property
    def inputs(self) -> list[str]:
        return list(self._names)

    def bind(self, inputs: Inputs) -> Callable[[], object]:
        given = feeds(self._names, inputs)
        request = self._request(given)
        request.infer(given)
        for name, array in given.items():
            request.get_tensor(name).data[:] = array
        return lambda: request.infer()

    def close(self) -> None:
        self._compiled.clear()

    def profile(self, inputs: Inputs, calls: int = CALLS) -> tuple[Kernel, ...]:
        given = feeds(self._names, inputs)
        request = self._request(given, profiled=True)
        runs: list[list[Any]] = []
        for number in range(calls + 3):
            request.infer(given)
            if number >= 3:
                runs.append([item for item in request.get_profiling_info() if int(item.status.value) == 2])
        return tuple(
            Kernel(rows[0].node_name, f"{rows[0].node_type} {rows[0].exec_type}",
                   statistics.median(row.real_time.total_seconds() * 1e6 for row in rows))
            for rows in zip(*runs, strict=True)
        )  # fmt: skip

    def _run(self, given: Arrays) -> list[NDArray[Any]]:
        request = self._request(given)
        outputs = request.infer(given)
        return [np.array(outputs[number]) for number in range(len(self._model.outputs))]

    def _request(self, given: Arrays, *, profiled: bool = False) -> Any:
        """Return a request of the file compiled for the shapes at hand."""
        key = (profiled, *(array.shape for array in given.values()))
        if key not in self._compiled:
            options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False}
            if self._threads is not None:
                options["INFERENCE_NUM_THREADS"] = self._threads
            if self._precision != "default":
                options["INFERENCE_PRECISION_HINT"] = self._precision
                options["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 0  # nor round what packed weights are multiplied with
            if profiled:
                options["PERF_COUNT"] = True
            model = self._model.clone()
            model.reshape({name: list(array.shape) for name, array in given.items()})
            self._compiled[key] = self._core.compile_model(model, "CPU", options).create_infer_request()
        return self._compiled[key]


def open_file(path: str | os.PathLike[str], runtime: str = "onnxruntime", threads: int | None = None) -> Runner:
    """Return the file at ``path``, loaded on a runtime.

    Raises:
        UnknownNameError: there is no such runtime here.
        MissingExtraError: it is not installed.
        MeasureError: it does not load the file.
    """
    if runtime == "onnxruntime":
        return OnnxRuntime(path, threads)
    if runtime == "openvino":
        return OpenVino(path, threads)
    hint = f"{close_match(runtime, RUNTIMES)} known: {', '.join(RUNTIMES)}".strip()
    raise UnknownNameError(f"unknown runtime '{runtime}'", hint=hint)


def require_runtime(name: str) -> None:
    """Look for a runtime, and for what files are written with, before long work begins.

    Raises:
        SlimError: there is no such runtime here.
        MissingExtraError: something is not installed.
    """
    if name not in RUNTIMES:
        raise SlimError(
            f"target '{name}' has no runtime here to time files on",
            hint=f"never_slower works for {', '.join(RUNTIMES)}",
        )
    onnx = [(module, "slim-core[onnx]") for module in ("onnx", "onnxscript")]
    for module, extra in ((name, f"slim-quant[{name}]"), *onnx):
        require(module, extra)


def feeds(names: list[str], inputs: Any) -> Arrays:
    """Return inputs as arrays by the names that the file gives them.

    Raises:
        MeasureError: there are more or fewer.
    """
    if isinstance(inputs, Mapping) and all(name in inputs for name in names):
        return {name: inputs[name].detach().cpu().numpy() for name in names}
    tensors = tensors_of(inputs)
    if len(tensors) != len(names):
        raise MeasureError(f"the file takes {len(names)} inputs ({', '.join(names)}), and {len(tensors)} were given")
    return {name: tensor.detach().cpu().numpy() for name, tensor in zip(names, tensors, strict=True)}


def _kernels(events: list[dict[str, Any]], calls: int) -> tuple[Kernel, ...]:
    """Return the kernels of onnxruntime's profile; calls to warm up come first and are left out."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for event in events:
        if event.get("cat") == "Node" and str(event.get("name", "")).endswith("_kernel_time"):
            rows.setdefault(event["name"].removesuffix("_kernel_time"), []).append(event)
    found = []
    for name, items in sorted(rows.items(), key=lambda item: item[1][-1]["ts"]):
        last = items[-1]["args"]
        shapes = last.get("output_type_shape") or []
        shape = tuple(int(size) for size in next(iter(shapes[0].values()), ())) if shapes else None
        found.append(Kernel(name, last["op_name"], statistics.median(item["dur"] for item in items[-calls:]), shape))
    return tuple(found)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
