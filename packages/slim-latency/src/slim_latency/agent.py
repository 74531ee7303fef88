#!/usr/bin/env python3
"""The agent: measures ONNX files on a device that has only Python, numpy and onnxruntime (or OpenVINO).

One file that needs nothing of Slim, so it can be copied to a phone, a board or a server together with the models:
``python agent.py BUNDLE``. It reads ``manifest.json`` in that folder, makes shuffled rounds over all models, and
appends one line per model and round to ``results.jsonl``. A killed agent goes on where it stopped. Every line carries
the hash of the line before it, so a changed, lost or reordered line is found when the results are imported.

Slim itself measures with the same functions, so that figures from here and from there are of one kind. What is made of
the lines (tables, predictions) is not here. Works with Python 3.8 and later.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import platform
import random
import re
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

#: of the lines that the agent writes; readers refuse others
SCHEMA = 1
#: what decides a figure and is the same for all lines of a run
SETTINGS = {
    "runtime": "onnxruntime",
    "precision": "f32",
    "rounds": 7,
    "threads": 1,
    "level": "all",
    "seed": 0,
    "warmup": 3,
    "sample_ms": 30.0,
    "most_calls": 50,
}

_FLAGS = (
    "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16",
    "amx_tile", "amx_int8", "amx_bf16", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme",
)  # fmt: skip
_LEVELS = {
    "disabled": "ORT_DISABLE_ALL", "basic": "ORT_ENABLE_BASIC", "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}  # fmt: skip
_DTYPES = {
    "float": "f32", "double": "f64", "float16": "f16", "bfloat16": "bf16", "int64": "i64", "int32": "i32",
    "int16": "i16", "int8": "i8", "uint8": "u8", "uint16": "u16", "uint32": "u32", "uint64": "u64", "bool": "bool",
    "string": "str",
}  # fmt: skip
#: attributes that say nothing about the work that a kernel does
_IDLE_ATTRIBUTES = {
    "auto_pad", "pads", "kernel_shape", "storage_order", "activation_params", "epsilon", "momentum", "training_mode",
    "spatial", "min", "max", "alpha", "beta", "to", "channels_last", "channels", "count_include_pad", "allowzero",
    "noop_with_empty_axes", "ceil_mode", "stash_type", "value", "saturate",
}  # fmt: skip
_WINDOWS = ("MaxPool", "AveragePool", "LpPool", "NhwcMaxPool", "QLinearAveragePool")


class Refused(Exception):
    """The bundle or the results are not what they should be."""


class NodeFacts(NamedTuple):
    """One node of an ONNX graph, as far as it decides which kernel runs."""

    name: str
    op: str
    domain: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any]


class Profiled(NamedTuple):
    """One kernel of one session: where it stands, its key, and its time in each call, in microseconds."""

    name: str
    key: str
    micros: list[float]


# -- the device


def device_facts() -> dict[str, Any]:
    """Return what this process runs on; what cannot be read is ``None``."""
    info = _cpuinfo()
    flags = set((info.get("flags") or info.get("Features") or "").split())
    cpu = "/sys/devices/system/cpu/cpu0/cpufreq/"
    affinity = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return {
        "cpu": info.get("model name") or info.get("Hardware") or platform.processor() or "unknown",
        "architecture": platform.machine(),
        "flags": [flag for flag in _FLAGS if flag in flags],
        "cores": os.cpu_count() or 1,
        "usable": len(affinity) if affinity else os.cpu_count() or 1,
        "affinity": affinity,
        "governor": _line(cpu + "scaling_governor"),
        "mhz": clock_mhz(),
        "max_mhz": _number(_line(cpu + "cpuinfo_max_freq"), 1e-3),
        "celsius": temperature(),
        "virtual": "hypervisor" in flags if flags else None,
        "memory_bytes": _memory(),
        "system": platform.system() + " " + platform.release(),
        "python": platform.python_version(),
    }


def clock_mhz() -> float | None:
    """Return the clock of the first core now, in MHz."""
    now = _number(_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq"), 1e-3)
    return now if now is not None else _number(_cpuinfo().get("cpu MHz"), 1.0)


def temperature() -> float | None:
    """Return the highest temperature that the kernel reports, in degrees Celsius."""
    found = [_number(_line(str(path)), 1e-3) for path in sorted(Path("/sys/class/thermal").glob("thermal_zone*/temp"))]
    return max((value for value in found if value is not None), default=None)


def _cpuinfo() -> dict[str, str]:
    fields: dict[str, str] = {}
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return fields
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip(), value.strip())
    return fields


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def _line(path: str) -> str | None:
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return None
    return lines[0].strip() or None


def _number(text: str | None, factor: float) -> float | None:
    try:
        return None if text is None else float(text) * factor
    except ValueError:
        return None


# -- the runtime


def open_session(path: str, threads: int, level: str, profile: str | None = None, optimized: str | None = None) -> Any:
    """Load an ONNX file on the CPU.

    Args:
        path: the file.
        threads: threads inside operators.
        level: how far the runtime rewrites the graph: disabled, basic, extended or all.
        profile: prefix of the file that the runtime's profiler writes; ``None`` leaves it off.
        optimized: where the runtime writes the graph that it made.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4 if optimized else 3  # a graph of level "all" fits this machine only: that is meant
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, _LEVELS[level])
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = profile
    if optimized is not None:
        options.optimized_model_filepath = optimized
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def draw_inputs(session: Any, shapes: dict[str, Sequence[int]] | None, batch: int, seed: int) -> dict[str, Any]:
    """Return inputs for a session: floats in [0, 1), integers 0 or 1. Dimensions of any size are taken from ``shapes``,
    the first one else from ``batch``.
    """
    generator = np.random.RandomState(seed)
    feeds = {}
    for item in session.get_inputs():
        shape = list((shapes or {}).get(item.name, item.shape))
        for position, size in enumerate(shape):
            if not isinstance(size, int):
                if position:
                    raise Refused(f"input '{item.name}' has the shape {item.shape}: give it in the manifest")
                shape[position] = batch
        kind = item.type[len("tensor(") : -1]
        if kind in ("float", "float16", "double"):
            feeds[item.name] = generator.random_sample(shape).astype(
                {"float": np.float32, "float16": np.float16, "double": np.float64}[kind]
            )
        else:
            feeds[item.name] = generator.randint(0, 2, shape).astype(np.bool_ if kind == "bool" else kind)
    return feeds


def call_times(call: Callable[[], Any], warmup: int, sample_ms: float, most: int) -> list[float]:
    """Return the milliseconds of single calls: at least 3 of them, and no more than fill ``sample_ms``."""
    shortest = float("inf")
    for _ in range(max(warmup, 1)):
        start = time.perf_counter()
        call()
        shortest = min(shortest, time.perf_counter() - start)
    count = int(min(max(3, sample_ms / 1e3 / max(shortest, 1e-9)), most))
    taken = []
    was_on = gc.isenabled()
    gc.disable()
    try:
        for _ in range(count):
            start = time.perf_counter()
            call()
            taken.append((time.perf_counter() - start) * 1e3)
    finally:
        if was_on:
            gc.enable()
    return taken


def trimmed(values: Sequence[float]) -> float:
    """Return the mean of the lower three quarters: finer than a median of whole microseconds, and as deaf to bursts."""
    ordered = sorted(values)
    kept = ordered[: max(1, (3 * len(ordered) + 3) // 4)]
    return float(sum(kept) / len(kept))


def profiled_calls(
    path: str, threads: int, level: str, feeds: dict[str, Any], warmup: int, calls: int
) -> tuple[list[Profiled], list[float]]:
    """Run a file under the runtime's own profiler.

    Returns the kernels of the optimised graph in the order in which they ran, and the milliseconds of each whole call.
    """
    with tempfile.TemporaryDirectory() as folder:
        optimized = os.path.join(folder, "optimized.onnx")
        session = open_session(path, threads, level, os.path.join(folder, "profile"), optimized)
        for _ in range(warmup + calls):
            session.run(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        nodes = {node.name: node for node in read_nodes(Path(optimized).read_bytes())}
    return fold_events(events, nodes, warmup)


def fold_events(
    events: Sequence[dict[str, Any]], nodes: dict[str, NodeFacts], warmup: int
) -> tuple[list[Profiled], list[float]]:
    """Bring the profiler's events and the nodes of the optimised graph together, without the first ``warmup`` calls."""
    runs: list[float] = []
    found: dict[str, Profiled] = {}
    pending: list[dict[str, Any]] = []
    calls = 0
    for event in events:
        name = event.get("name", "")
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            pending.append(event)
        elif event.get("cat") == "Session" and name == "model_run":
            calls += 1
            if calls > warmup:
                runs.append(event["dur"] / 1e3)
                for item in pending:
                    key = item["name"][: -len("_kernel_time")]
                    if key not in found:
                        found[key] = Profiled(key, event_key(item, nodes.get(key)), [])
                    found[key].micros.append(float(item["dur"]))
            pending = []
    return list(found.values()), runs


# -- kernel keys


def event_key(event: dict[str, Any], node: NodeFacts | None) -> str:
    """Return the key of the kernel that a profiler's event belongs to."""
    args = event["args"]
    shapes = [_typed(item) for item in args.get("input_type_shape", ())]
    outputs = [_typed(item) for item in args.get("output_type_shape", ())]
    attributes = node.attributes if node is not None else {}
    return kernel_key(args["op_name"], node.domain if node is not None else "", shapes, outputs, attributes)


def kernel_key(
    op: str,
    domain: str,
    inputs: Sequence[tuple[str, Sequence[int]]],
    outputs: Sequence[tuple[str, Sequence[int]]],
    attributes: dict[str, Any],
) -> str:
    """Return one line that names a kernel: operator, tensors of two dimensions or more, and what else decides its work.

    Vectors and scalars (biases, scales) are left out when there is a larger tensor: they cost nothing, and whether a
    bias is there at all depends on the weights' values. So is padding, which the sizes imply.
    """
    title = op + ("." + domain.rpartition(".")[2] if domain not in ("", "ai.onnx") else "")
    large = [item for item in inputs if len(item[1]) > 1] or list(inputs)
    left = " ".join(_tensor(*item) for item in large)
    right = " ".join(_tensor(*item) for item in outputs)
    # weights that were packed when the file was loaded are not shown: then the window has to be told
    hidden = "Conv" in op and len(large) < 2
    told = {}
    for name, value in sorted(attributes.items()):
        if name in _IDLE_ATTRIBUTES and not (name == "kernel_shape" and (hidden or op in _WINDOWS)):
            continue
        if name in ("strides", "dilations") and all(item == 1 for item in value):
            continue
        if value in (0, 1, "", "NOTSET", []) and name not in ("axis", "keepdims", "perm", "axes"):
            continue
        told[name] = ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    extra = " {{{}}}".format(" ".join("{}={}".format(*item) for item in told.items())) if told else ""
    return f"{title} {left} -> {right}{extra}"


def _typed(item: dict[str, Sequence[int]]) -> tuple[str, tuple[int, ...]]:
    kind, shape = next(iter(item.items()))
    return _DTYPES.get(kind, kind), tuple(shape)


def _tensor(dtype: str, shape: Sequence[int]) -> str:
    return "{}[{}]".format(dtype, ",".join(map(str, shape)))


# -- the ONNX file, read without onnx


def read_nodes(data: bytes) -> list[NodeFacts]:
    """Return the nodes of a serialized ONNX model, in order.

    Raises:
        Refused: these bytes are no ONNX model.
    """
    try:
        nodes = []
        for field, graph in _fields(memoryview(data)):
            if field == 7:  # ModelProto.graph
                nodes += [_node(value) for number, value in _fields(graph) if number == 1]
        return nodes
    except (IndexError, ValueError, struct.error, UnicodeDecodeError, TypeError) as error:
        raise Refused(f"not an ONNX model: {error}") from None


def _node(data: Any) -> NodeFacts:
    texts: dict[int, list[str]] = {1: [], 2: [], 3: [], 4: [], 7: []}
    attributes = {}
    for field, value in _fields(data):
        if field in texts:
            texts[field].append(bytes(value).decode())
        elif field == 5:
            name, found = _attribute(value)
            if found is not None:
                attributes[name] = found
    one = {field: values[-1] if values else "" for field, values in texts.items()}
    return NodeFacts(one[3], one[4], one[7], texts[1], texts[2], attributes)


def _attribute(data: Any) -> tuple[str, Any]:
    name, value = "", None
    many: list[Any] = []
    for field, item in _fields(data):
        if field == 1:
            name = bytes(item).decode()
        elif field == 2:
            value = round(struct.unpack("<f", item)[0], 6)
        elif field == 3:
            value = _signed(item)
        elif field == 4:
            value = bytes(item).decode(errors="replace")
        elif field == 7:
            many += [round(number, 6) for number in struct.unpack(f"<{len(item) // 4}f", item)]
        elif field == 8:
            many += [_signed(item)] if isinstance(item, int) else _packed(item)
        elif field == 9:
            many.append(bytes(item).decode(errors="replace"))
    return name, many or value


def _fields(data: Any) -> Iterator[tuple[int, Any]]:
    """Yield the fields of a protobuf message: numbers for varints, memory for everything else."""
    position, end = 0, len(data)
    while position < end:
        tag, position = _varint(data, position)
        kind, value = tag & 7, None
        if kind == 0:
            value, position = _varint(data, position)
        else:
            if kind == 2:
                size, position = _varint(data, position)
            elif kind in (1, 5):
                size = 8 if kind == 1 else 4
            else:
                raise ValueError(f"unknown wire type {kind}")
            if position + size > end:
                raise ValueError("cut short")
            value, position = data[position : position + size], position + size
        yield tag >> 3, value


def _varint(data: Any, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError("a number without end")


def _packed(data: Any) -> list[int]:
    found, position = [], 0
    while position < len(data):
        value, position = _varint(data, position)
        found.append(_signed(value))
    return found


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


# -- a run


class OnnxRuntime:
    """A file on onnxruntime: how it is called, and what its kernels take."""

    def __init__(self, path: str, settings: dict[str, Any]) -> None:
        self.path, self.threads, self.level = path, settings["threads"], settings["level"]
        session = open_session(path, self.threads, self.level)
        feeds = draw_inputs(session, settings.get("shapes"), settings.get("batch", 1), settings["seed"])
        self.feeds, self.call = feeds, lambda: session.run(None, feeds)

    def profile(self, warmup: int, calls: int) -> tuple[list[Profiled], list[float]]:
        return profiled_calls(self.path, self.threads, self.level, self.feeds, warmup, calls)

    @staticmethod
    def facts() -> dict[str, Any]:
        import onnxruntime as ort

        return {"name": "onnxruntime", "version": ort.__version__, "provider": "CPUExecutionProvider"}


class OpenVino:
    """A file on OpenVINO's CPU plugin. Its kernels are read from the graph that the plugin made and runs."""

    def __init__(self, path: str, settings: dict[str, Any]) -> None:
        ov: Any = __import__("openvino")

        self.core, self.settings = ov.Core(), settings
        self.model = self.core.read_model(path)
        items = [_Input(item) for item in self.model.inputs]
        feeds = draw_inputs(_Inputs(items), settings.get("shapes"), settings.get("batch", 1), settings["seed"])
        self.feeds = feeds
        self.model.reshape({name: list(array.shape) for name, array in feeds.items()})
        self.request = self._compiled(False).create_infer_request()
        self._fill(self.request)
        self.call = self.request.infer

    def _compiled(self, profiled: bool) -> Any:
        options = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "PERF_COUNT": profiled}
        options["ENABLE_CPU_PINNING"] = False  # every model would be pinned to the same core, whoever else is there
        options["INFERENCE_NUM_THREADS"] = self.settings["threads"]
        if self.settings["precision"] != "default":
            options["INFERENCE_PRECISION_HINT"] = self.settings["precision"]
        return self.core.compile_model(self.model, "CPU", options)

    def _fill(self, request: Any) -> None:
        for name, array in self.feeds.items():
            request.get_tensor(name).data[:] = array

    def profile(self, warmup: int, calls: int) -> tuple[list[Profiled], list[float]]:
        compiled = self._compiled(True)
        request = compiled.create_infer_request()
        self._fill(request)
        for _ in range(max(warmup, 1)):
            request.infer()
        times: dict[str, list[float]] = {}
        runs = []
        for _ in range(calls):
            start = time.perf_counter()
            request.infer()
            runs.append((time.perf_counter() - start) * 1e3)
            for item in request.get_profiling_info():
                if item.status == type(item).Status.EXECUTED:
                    times.setdefault(item.node_name, []).append(item.real_time.total_seconds() * 1e6)
        found = []
        for op in compiled.get_runtime_model().get_ordered_ops():
            name = op.get_friendly_name()
            if len(times.get(name, ())) == calls:
                found.append(Profiled(name, openvino_key(op), times[name]))
        return found, runs

    @staticmethod
    def facts() -> dict[str, Any]:
        ov: Any = __import__("openvino")

        return {"name": "openvino", "version": ov.__version__.split("-")[0], "provider": "CPU"}


class _Input:
    """An input of OpenVINO's, as :func:`draw_inputs` knows them from onnxruntime."""

    def __init__(self, item: Any) -> None:
        self.name = item.get_any_name()
        self.shape = [None if size.is_dynamic else int(size.get_length()) for size in item.get_partial_shape()]
        kind = item.get_element_type().get_type_name()
        names = {"f32": "float", "f16": "float16", "f64": "double", "i64": "int64", "i32": "int32", "boolean": "bool"}
        names.update(i8="int8", u8="uint8")
        self.type = f"tensor({names.get(kind, kind)})"


class _Inputs(NamedTuple):
    items: list[Any]

    def get_inputs(self) -> list[Any]:
        return self.items


def openvino_key(op: Any) -> str:
    """Return the key of a node of the graph that OpenVINO runs."""
    info = op.get_rt_info()
    kind, precision = str(info["layerType"].value), str(info["runtimePrecision"].value).lower()
    title = {"Convolution": "Conv", "GroupConvolution": "Conv", "FullyConnected": "Gemm"}.get(kind, kind)
    shapes = [tuple(int(size) for size in op.input(n).get_shape()) for n in range(op.get_input_size())]
    made = [tuple(int(size) for size in op.output(n).get_shape()) for n in range(op.get_output_size())]
    attributes: dict[str, Any] = {}
    if title == "Conv" and len(shapes) > 1:
        weight = shapes[1]
        if len(weight) > len(shapes[0]):
            attributes["group"] = weight[0]
            shapes[1] = (weight[0] * weight[1], *weight[2:])
        strides = [max(round(a / b), 1) for a, b in zip(shapes[0][2:], made[0][2:]) if b]  # noqa: B905  Python 3.8
        attributes["strides"] = strides
    layers = str(info["originalLayersNames"].value).count(",") if "originalLayersNames" in info else 0
    if layers > 0:
        attributes["fused"] = layers + 1  # 1 would be left out
    return kernel_key(title, "openvino", [(precision, shape) for shape in shapes],
                      [(precision, shape) for shape in made], attributes)  # fmt: skip


RUNTIMES: dict[str, Any] = {"onnxruntime": OnnxRuntime, "openvino": OpenVino}


class Model:
    """One file to measure. It stays loaded between rounds when ``keep`` is set."""

    def __init__(self, name: str, path: str, settings: dict[str, Any], keep: bool = True) -> None:
        self.name, self.path, self.settings, self.keep = name, path, settings, keep
        self._loaded: Any = None

    def sample(self, profile: bool = True) -> dict[str, Any]:
        """Return one sample: milliseconds of a call, and microseconds of each kernel where ``profile`` is set."""
        given = self.settings
        loaded = self._loaded or RUNTIMES[given.get("runtime", "onnxruntime")](self.path, given)
        self._loaded = loaded if self.keep else None
        calls = call_times(loaded.call, given["warmup"], given["sample_ms"], given["most_calls"])
        row: dict[str, Any] = {"ms": trimmed(calls), "calls": len(calls)}
        if profile:
            kernels, runs = loaded.profile(given["warmup"], len(calls))
            row["profiled_ms"] = trimmed(runs)
            row["kernels"] = [[kernel.key, round(trimmed(kernel.micros), 3)] for kernel in kernels]
            row["nodes"] = [kernel.name for kernel in kernels]
        return row


def order_of(names: Sequence[str], seed: int, number: int) -> list[str]:
    """Return the models in the order of one round: shuffled, and the same for every agent."""
    ordered = list(names)
    random.Random(f"{seed}/{number}").shuffle(ordered)  # noqa: S311  an order, not a secret
    return ordered


def layout_block() -> int:
    """Return how many channels the runtime packs together at level "all" (8 or 16), or 0 when it packs none: read from
    the graph that it makes of one convolution from three channels to one.
    """
    weights = b"".join(_number_field(1, size) for size in (1, 3, 3, 3)) + _number_field(2, 1) + _message(8, b"w")
    weights += _message(9, np.ones(27, np.float32).tobytes())
    probe = _onnx([("Conv", [b"x", b"w"], b"y")], weights, (1, 3, 8, 8), (1, 1, 6, 6))
    with tempfile.TemporaryDirectory() as folder:
        source, target = os.path.join(folder, "probe.onnx"), os.path.join(folder, "made.onnx")
        Path(source).write_bytes(probe)
        open_session(source, 1, "all", optimized=target)
        data = Path(target).read_bytes()
    for field, graph in _fields(memoryview(data)):
        if field == 7 and any(_node(value).domain.endswith("nchwc") for number, value in _fields(graph) if number == 1):
            shapes = [_dims(value) for number, value in _fields(graph) if number == 5]
            return max((shape[0] for shape in shapes if len(shape) == 4), default=0)
    return 0


def profiler_overhead(threads: int, level: str) -> float:
    """Return the microseconds that the profiler adds to each kernel: what it says of the kernels of a chain of tiny
    operators, without what one more of them adds to the time of a whole call.
    """
    times, lengths = [], (20, 120)
    with tempfile.TemporaryDirectory() as folder:
        for length in lengths:
            names = [b"x"] + [b"v%d" % number for number in range(length - 1)] + [b"y"]
            nodes = [("Sqrt", [names[number]], names[number + 1]) for number in range(length)]
            path = os.path.join(folder, "chain.onnx")
            Path(path).write_bytes(_onnx(nodes, b"", (1, 16), (1, 16)))
            session = open_session(path, threads, level)
            feeds = draw_inputs(session, None, 1, 0)
            run = session.run
            times.append(min(call_times(lambda: run(None, feeds), 20, 50.0, 300)) * 1e3)  # noqa: B023  used at once
        kernels, _ = profiled_calls(path, threads, level, feeds, 10, 50)
    told = sum(trimmed(kernel.micros) for kernel in kernels) / max(len(kernels), 1)
    return round(max(told - max(times[1] - times[0], 0.0) / (lengths[1] - lengths[0]), 0.0), 3)


def _dims(tensor: Any) -> list[int]:
    found: list[int] = []
    for field, value in _fields(tensor):
        if field == 1:
            found += [value] if isinstance(value, int) else _packed(value)
    return found


def _onnx(nodes: Sequence[Any], weights: bytes, source: Sequence[int], target: Sequence[int]) -> bytes:
    """Return an ONNX file from ``x`` to ``y``, written by hand; nodes are (operator, inputs, output)."""

    def value_info(name: bytes, shape: Sequence[int]) -> bytes:
        dims = b"".join(_message(1, _number_field(1, size)) for size in shape)
        return _message(1, name) + _message(2, _message(1, _number_field(1, 1) + _message(2, dims)))

    graph = b""
    for op, inputs, output in nodes:
        node = b"".join(_message(1, name) for name in inputs) + _message(2, output)
        graph += _message(1, node + _message(3, b"make_" + output) + _message(4, op.encode()))
    graph += _message(2, b"probe") + (_message(5, weights) if weights else b"")
    graph += _message(11, value_info(b"x", source)) + _message(12, value_info(b"y", target))
    return _number_field(1, 8) + _message(8, _message(1, b"") + _number_field(2, 17)) + _message(7, graph)


def _message(field: int, data: bytes) -> bytes:
    return bytes([field << 3 | 2]) + _size(len(data)) + data


def _number_field(field: int, value: int) -> bytes:
    return bytes([field << 3]) + _size(value)


def _size(value: int) -> bytes:
    out = bytearray()
    while True:
        out.append(value & 127 | (128 if value > 127 else 0))
        value >>= 7
        if not value:
            return bytes(out)


class Log:
    """``results.jsonl``: lines that each carry the hash of what came before them.

    A line that a kill cut short is dropped when the file is opened again; anything else that does not fit is refused.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._lock = _locked(path + ".lock")
        self.rows: list[dict[str, Any]] = []
        self._last = "start"
        whole = 0
        if os.path.exists(path):
            data = Path(path).read_bytes()
            lines = data.split(b"\n")
            for number, line in enumerate(lines[:-1], 1):
                row = _checked(line, self._last, number)
                self._last = row["hash"]
                self.rows.append(row)
                whole += len(line) + 1
            if whole < len(data):
                with open(path, "rb+") as handle:
                    handle.truncate(whole)

    def close(self) -> None:
        self._lock.close()

    def append(self, row: dict[str, Any]) -> None:
        row = dict(row, previous=self._last)
        row["hash"] = self._last = _digest(row)
        with open(self.path, "ab") as handle:
            handle.write(_canonical(row) + b"\n")
            handle.flush()
            os.fsync(handle.fileno())
        self.rows.append(row)


def _locked(path: str) -> Any:
    """Return an open file that only one process holds; the lock ends with the process, however that ends.

    Raises:
        Refused: another process holds it.
    """
    handle = open(path, "ab")  # noqa: SIM115  it stays open as long as the log
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:  # no such locks on this system
        pass
    except OSError:
        handle.close()
        raise Refused("another agent is measuring this bundle") from None
    return handle


def _checked(line: bytes, previous: str, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8"))
        given = row.pop("hash")
        fits = row["previous"] == previous and _digest(row) == given
        row["hash"] = given
        fits = fits and _canonical(row) == line
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Refused(f"line {number} of the results is no line of the agent's") from None
    if not fits:
        raise Refused(f"line {number} of the results was changed, or one before it is gone")
    return dict(row)


def _digest(row: dict[str, Any]) -> str:
    return hashlib.sha256(_canonical(row)).hexdigest()


def _canonical(row: dict[str, Any]) -> bytes:
    return json.dumps(row, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("utf-8")


def read_manifest(folder: str) -> dict[str, Any]:
    """Read a bundle's manifest and check the hash of every model.

    Raises:
        Refused: it is not there, is no manifest, or a file is not the one that was bundled.
    """
    try:
        manifest = json.loads(Path(folder, "manifest.json").read_text(encoding="utf-8"))
        given = manifest.pop("hash")
        if manifest["schema"] != SCHEMA:
            raise Refused(f"the bundle has schema {manifest['schema']}, this agent knows {SCHEMA}")
        if _digest(manifest) != given:
            raise Refused("manifest.json was changed")
        manifest["hash"] = given
        for entry in manifest["models"]:
            if not re.match(r"^[\w.+-]+$", entry["file"]) or entry["file"].startswith("."):
                raise Refused("'{}' is no plain file name".format(entry["file"]))
            if hashlib.sha256(Path(folder, entry["file"]).read_bytes()).hexdigest() != entry["sha256"]:
                raise Refused("{} is not the file that was bundled".format(entry["file"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Refused(f"cannot read the bundle: {error}") from None
    return dict(manifest)


def run_bundle(
    folder: str, say: Callable[[str], object], settings: dict[str, Any] | None = None, results: str = "results.jsonl"
) -> int:
    """Measure everything in a bundle that is not measured yet; return how many lines were added.

    Raises:
        Refused: see :func:`read_manifest`; or earlier results are of another bundle, runtime or setting.
    """
    manifest = read_manifest(folder)
    given = dict(SETTINGS, **manifest.get("settings", {}))
    given.update(settings or {})
    log = Log(os.path.join(folder, results))
    try:
        _begin(log, manifest, given)
        return _measure(log, folder, manifest, given, say)
    finally:
        log.close()


def _begin(log: Log, manifest: dict[str, Any], given: dict[str, Any]) -> None:
    """Write the header, or check that the one that is there belongs to this run."""
    device = device_facts()
    header = {
        "kind": "header", "schema": SCHEMA, "manifest": manifest["hash"], "runtime": RUNTIMES[given["runtime"]].facts(),
        "settings": given,
    }  # fmt: skip
    if not log.rows:
        ort = given["runtime"] == "onnxruntime"
        block = layout_block() if ort and given["level"] == "all" else 0
        overhead = profiler_overhead(given["threads"], given["level"]) if ort else 0.0
        log.append(dict(header, device=device, layout_block=block, profiler_overhead_us=overhead))
        return
    first = log.rows[0]
    same = {key: first.get(key) for key in header}
    same["settings"] = dict(first.get("settings") or {}, rounds=given["rounds"])  # more rounds may be added
    where = ("cpu", "affinity", "architecture")
    if same != header or [first["device"].get(key) for key in where] != [device[key] for key in where]:
        raise Refused(
            "the results belong to another bundle, runtime, setting or set of cores: move them away to start anew"
        )


def _measure(
    log: Log, folder: str, manifest: dict[str, Any], given: dict[str, Any], say: Callable[[str], object]
) -> int:
    done = {(row["round"], row["model"]) for row in log.rows if row["kind"] == "sample"}
    total = sum(Path(folder, entry["file"]).stat().st_size for entry in manifest["models"])
    keep = total * 3 < (_memory() or 4e9) / 4  # sessions stay open where there is room for all of them
    models = {}
    for entry in manifest["models"]:
        settings = dict(given, shapes=entry.get("shapes"))
        models[entry["name"]] = Model(entry["name"], os.path.join(folder, entry["file"]), settings, keep)
    added = 0
    for number in range(given["rounds"]):
        for name in order_of(list(models), given["seed"], number):
            if (number, name) in done:
                continue
            row = models[name].sample()
            load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
            row.update(kind="sample", round=number, model=name, at=round(time.time(), 3), mhz=clock_mhz(),
                       celsius=temperature(), load=load)  # fmt: skip
            log.append(row)
            added += 1
        say(f"round {number + 1} of {given['rounds']}")
    return added


def main(arguments: Sequence[str] | None = None) -> int:
    """Run as a program: ``python agent.py BUNDLE [--threads N] [--cpus 0,1]``."""
    parser = argparse.ArgumentParser(description="Measure a bundle of ONNX models on this device.")
    parser.add_argument("bundle", nargs="?", default=os.path.dirname(os.path.abspath(__file__)))
    parser.add_argument("--threads", type=int, help="threads inside operators; default: what the bundle says")
    parser.add_argument("--rounds", type=int, help="rounds over all models; default: what the bundle says")
    parser.add_argument("--cpus", help="run on these cores only, for example 4,5")
    parser.add_argument("--runtime", choices=sorted(RUNTIMES), help="default: what the bundle says")
    parser.add_argument("--results", default="results.jsonl", help="file in the bundle's folder to append to")
    given = parser.parse_args(arguments)
    if given.cpus and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(core) for core in given.cpus.split(",")})
    changed = {name: getattr(given, name) for name in ("threads", "rounds", "runtime") if getattr(given, name)}
    try:
        added = run_bundle(given.bundle, lambda text: sys.stderr.write(text + "\n"), changed, given.results)
    except (Refused, ImportError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stderr.write(f"done: {added} lines added to {os.path.join(given.bundle, given.results)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
