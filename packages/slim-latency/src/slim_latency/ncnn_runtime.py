"""The backend ``ncnn``: ONNX files that ``pnnx`` converts, run by ncnn on the CPU.

ncnn knows no batch: a batch is run one sample after the other, and a note says so.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
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

EXTRA = "slim-latency[ncnn]"
Precision = Literal["fp32", "fp16"]
#: converting takes seconds; a converter that hangs is stopped
_LIMIT_S = 600
_TYPES = {"float32": "f32", "float64": "f64", "float16": "f16", "int64": "i64", "int32": "i32", "int8": "i8",
          "uint8": "u8", "bool": "i32"}  # fmt: skip
_HALF = ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic")


class NcnnBackend:
    """ncnn on the CPU.

    Args:
        precision: ``"fp32"``, or ``"fp16"``: weights and activations in half precision where the processor can.
    """

    name: ClassVar[str] = "ncnn"
    #: what has to be installed: modules and the extra that brings them
    requires: ClassVar[tuple[tuple[str, str], ...]] = (("ncnn", EXTRA), ("pnnx", EXTRA))

    def __init__(self, precision: Precision = "fp32") -> None:
        if precision not in ("fp32", "fp16"):
            raise MeasureError(f"unknown precision {precision!r}", hint="ncnn has: fp32, fp16")
        self.precision = precision

    def available(self) -> None:
        """Return if ncnn and its converter are installed.

        Raises:
            MissingExtraError: one is not.
        """
        require("ncnn", EXTRA)
        require("pnnx", EXTRA)

    def prepare(self, artifact: Artifact, example_inputs: Inputs, *, threads: int | None = None) -> NcnnSession:
        """Convert the artifact's ONNX file for one sample of the given inputs, and load it.

        Raises:
            MissingExtraError: ncnn or pnnx is not installed.
            MeasureError: there is no file, there are no inputs, or pnnx or ncnn refuses the file.
        """
        if threads is not None and threads < 1:
            raise MeasureError(f"threads must be at least 1, not {threads}")
        self.available()
        return NcnnSession(artifact.onnx_for(self.name), example_inputs, threads, self.precision)


class NcnnSession(Session):
    """A converted and loaded file.

    Args:
        path: the ONNX file.
        inputs: what it is converted for: all sizes but the batch's are fixed.
        threads: threads inside operators; ``None``: one per core.
        precision: see :class:`NcnnBackend`.
    """

    def __init__(self, path: Path, inputs: Inputs, threads: int | None, precision: Precision) -> None:
        ncnn = require("ncnn", EXTRA)
        self._path = path
        self.inputs = _signature(path)
        given = feeds([spec.name for spec in self.inputs], inputs, str(path))
        self._net = ncnn.Net()
        options = self._net.opt
        options.use_vulkan_compute = False
        options.num_threads = threads or os.cpu_count() or 1
        for name in _HALF:
            setattr(options, name, precision == "fp16")
        options.use_bf16_storage = False
        with tempfile.TemporaryDirectory() as folder:
            unknown = _convert(path, given, Path(folder), precision)
            parameters, weights = Path(folder) / "model.ncnn.param", Path(folder) / "model.ncnn.bin"
            if unknown or self._net.load_param(str(parameters)) or self._net.load_model(str(weights)):
                raise MeasureError(
                    "ncnn cannot run the file" + (f": it has no {', '.join(unknown)}" if unknown else ""),
                    where=str(path), hint="choose another backend: `slim latency backends`",
                )  # fmt: skip
        self._into, self._out_of = list(self._net.input_names()), list(self._net.output_names())
        if len(self._into) != len(self.inputs):
            raise MeasureError(f"pnnx made {len(self._into)} inputs of {len(self.inputs)}", where=str(path))
        self.info: dict[str, Any] = {
            "runtime": f"ncnn {ncnn.__version__}",
            "device": "cpu",
            "threads": threads,
            "settings": {"precision": precision, "vulkan": False},
            "notes": [],
        }

    def run(self, inputs: Inputs) -> list[NDArray[Any]]:
        call = self._call(inputs)
        samples = call()
        return [np.stack(arrays) for arrays in zip(*samples, strict=True)]

    def bind(self, inputs: Inputs) -> Callable[[], object]:
        return self._call(inputs)

    def close(self) -> None:
        """Free the network."""
        self._net.clear()

    def _call(self, inputs: Inputs) -> Callable[[], list[list[NDArray[Any]]]]:
        """Return a call that runs every sample and gives arrays of one sample each."""
        ncnn = require("ncnn", EXTRA)
        arrays = list(feeds([spec.name for spec in self.inputs], inputs, str(self._path)).values())
        sizes = {len(array) for array in arrays if array.ndim}
        if len(sizes) != 1:
            raise MeasureError("ncnn runs inputs of one batch size, the batch first", where=str(self._path))
        batch = sizes.pop()
        if batch > 1 and not self.info["notes"]:
            self.info["notes"].append(f"ncnn knows no batch: {batch} samples are run one after the other")
        samples = [[ncnn.Mat(_plain(array[number])).clone() for array in arrays] for number in range(batch)]
        net, into, out_of = self._net, self._into, self._out_of

        def call() -> list[list[NDArray[Any]]]:
            made = []
            for sample in samples:
                with net.create_extractor() as extractor:
                    for name, matrix in zip(into, sample, strict=True):
                        extractor.input(name, matrix)
                    found = []
                    for name in out_of:
                        code, matrix = extractor.extract(name)
                        if code:
                            raise MeasureError("ncnn cannot run the file on these inputs", where=str(self._path))
                        found.append(np.array(matrix))
                made.append(found)
            return made

        return call


def _plain(array: NDArray[Any]) -> NDArray[Any]:
    wide = np.int32 if array.dtype.kind in "iub" else np.float32
    return np.ascontiguousarray(array.astype(wide, copy=False))


def _signature(path: Path) -> tuple[TensorSpec, ...]:
    """Read names, shapes and types of a file's inputs; weights that old files list among them are none."""
    onnx = require("onnx", EXTRA)
    try:
        graph = onnx.load(str(path), load_external_data=False).graph
        weights = {tensor.name for tensor in graph.initializer}
        specs = []
        for item in graph.input:
            if item.name in weights:
                continue
            kind = item.type.tensor_type
            shape = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim)
            dtype = str(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
            specs.append(TensorSpec(item.name, shape, dtype, "input"))
    except Exception as error:
        raise MeasureError(f"ncnn does not load the file: {first_line(error)}", where=str(path)) from error
    return tuple(specs)


def _convert(path: Path, given: dict[str, NDArray[Any]], folder: Path, precision: Precision) -> list[str]:
    """Convert a file for one sample; return the operators that ncnn does not have."""
    program = require("pnnx", EXTRA).EXEC_PATH
    source = folder / "model.onnx"
    shutil.copyfile(path, source)
    for extra in path.parent.glob(f"{path.name}.*.data"):
        shutil.copyfile(extra, folder / extra.name)
    shapes = ",".join(
        f"[{','.join(map(str, (1, *array.shape[1:])))}]{_TYPES.get(str(array.dtype), 'f32')}"
        for array in given.values()
    )
    command = [program, source.name, f"inputshape={shapes}", f"fp16={int(precision == 'fp16')}"]
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=_LIMIT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MeasureError(f"pnnx cannot be run: {first_line(error)}", where=str(path)) from error
    made = folder / "model.ncnn.param"
    if done.returncode or not made.is_file():
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise MeasureError(
            f"pnnx does not convert the file: {lines[-1] if lines else done.returncode}", where=str(path)
        )
    kinds = {line.split()[0] for line in made.read_text(encoding="utf-8").splitlines()[2:] if line.split()}
    return sorted(kind for kind in kinds if re.match(r"(pnnx|aten|nn|F|torch|prim|onnx)\.|pnnx", kind))
