"""Tables of other tools as device tables: PaddleSlim's text (operators) and Once-for-All's YAML (blocks).

Both are parsed as data: numbers and names, nothing that names code. A PaddleSlim table has convolutions, pools and
element-wise operators, so budgets can use it like one of Slim's own. An Once-for-All table has whole blocks, which
cannot be taken apart: it can be looked up, compared and merged, but no cost model is made of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from slim_latency.agent import kernel_key
from slim_latency.predict.fit import fit
from slim_latency.table import DeviceTable, KernelRow, TableError, with_model

_LARGEST = 64 * 2**20
_SIZES = re.compile(r"(\d+)x(\d+)x(\d+)")
_ACTIVATIONS = {"relu": "Relu", "relu6": "Clip", "sigmoid": "Sigmoid", "tanh": "Tanh", "prelu": "PRelu",
                "leaky_relu": "LeakyRelu", "hard_swish": "HardSwish", "swish": "Sigmoid"}  # fmt: skip


def read_foreign(path: Path, format: str, name: str) -> DeviceTable:
    """Read another tool's table.

    Args:
        path: the file.
        format: ``"paddleslim"`` or ``"ofa"``.
        name: of the device.

    Raises:
        TableError: the file is not there, or is no such table; says the line.
    """
    try:
        if path.stat().st_size > _LARGEST:
            raise TableError("too large for a table", where=str(path))
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TableError(f"cannot read the table: {error}", where=str(path)) from None
    return (paddleslim if format == "paddleslim" else once_for_all)(text, name, str(path))


def paddleslim(text: str, name: str, where: str = "") -> DeviceTable:
    """Read PaddleSlim's table of operators: a line of hardware, engine and time, then ``op,parameters<TAB>ms``.

    Raises:
        TableError: a line does not have the fields of its operator.
    """
    lines = text.splitlines()
    if not lines:
        raise TableError("the table is empty", where=where or None)
    hardware, engine, created = [*re.split(r"[,\t]", lines[0]), "", "", ""][:3]
    rows: dict[str, KernelRow] = {}
    for number, line in enumerate(lines[1:], 2):
        if not line.strip():
            continue
        try:
            left, _, right = line.rstrip().rpartition("\t")
            op, *fields = left.split(",")
            key = _paddle_key(op.strip(), [field.strip() for field in fields])
            _add(rows, key, float(right) * 1e3, 1)
        except (ValueError, IndexError, KeyError, ZeroDivisionError):
            raise TableError(
                f"line {number} is no operator of a PaddleSlim table: {line[:80]!r}", where=where or None
            ) from None
    return _table(name, rows, {"name": "paddleslim", "version": engine}, hardware, created)


def once_for_all(text: str, name: str, where: str = "") -> DeviceTable:
    """Read Once-for-All's (and ProxylessNAS') table of blocks: YAML of names to ``count``, ``mean`` and ``var`` in ms.

    Raises:
        TableError: it is no such YAML.
    """
    import yaml

    try:
        data = yaml.safe_load(text)
        if not isinstance(data, Mapping):
            raise ValueError("it is no mapping of blocks")
        rows: dict[str, KernelRow] = {}
        for block, found in data.items():
            _add(rows, _block_key(str(block)), float(found["mean"]) * 1e3, int(found.get("count", 1)),
                 float(found.get("var", 0.0)) ** 0.5 * 1e3)  # fmt: skip
    except (yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        first = next(iter(str(error).splitlines()), "")
        raise TableError(f"no Once-for-All table: {first}", where=where or None) from None
    return _table(name, rows, {"name": "ofa", "version": ""}, "unknown", "")


def _add(rows: dict[str, KernelRow], key: str, micros: float, count: int, deviation: float = 0.0) -> None:
    if not 0 <= micros < 1e12 or not 0 <= deviation < 1e12 or count < 1:
        raise ValueError(f"{micros} (deviation {deviation}) is no time")
    half = 0.6745 * deviation  # quartiles of a normal distribution
    rows[key] = KernelRow(key, count, micros, max(micros - half, 0.0), micros + half)


def _table(name: str, rows: dict[str, KernelRow], runtime: dict[str, str], cpu: str, created: str) -> DeviceTable:
    header: dict[str, Any] = {
        "device": {"cpu": cpu.strip()},
        "runtime": runtime,
        "settings": {},
        "precision": "fp32",
        "layout_block": 0,
        "profiler_overhead_us": 0.0,
        "protocol": {"order": "not told"},
        "notes": ["imported from another tool's table: how it was measured is not told"],
        "created": created.strip(),
    }
    table = DeviceTable(name, header, rows, {})
    return with_model(table, fit(table))


def _paddle_key(op: str, fields: list[str]) -> str:
    makers: dict[str, Callable[[list[str]], str]] = {
        "conv": _conv, "conv2d": _conv, "depthwise_conv2d": _conv, "fc": _conv, "mul": _conv, "pooling": _pool,
        "pool2d": _pool, "eltwise": _eltwise, "elementwise_add": _eltwise, "softmax": _softmax,
        "batch_norm": _batch_norm,
    }  # fmt: skip
    maker = makers.get(op)
    return maker(fields) if maker is not None else _activation(op, fields)


def _conv(fields: list[str]) -> str:
    _, relu, n, c, h, w, made, groups, kernel, padding, stride, dilation = (int(field) for field in fields)
    high, wide = (_slid(size, kernel, padding, stride, dilation) for size in (h, w))
    attributes: dict[str, Any] = {"group": groups, "strides": [stride] * 2, "dilations": [dilation] * 2}
    if relu:
        attributes["activation"] = "Relu"
    inputs = [("f32", (n, c, h, w)), ("f32", (made, c // groups, kernel, kernel))]
    op, domain = ("FusedConv", "com.microsoft") if relu else ("Conv", "")
    return kernel_key(op, domain, inputs, [("f32", (n, made, high, wide))], attributes)


def _pool(fields: list[str]) -> str:
    whole, n, c, h, w, kernel, padding, stride, ceil, kind = (int(field) for field in fields)
    source = ("f32", (n, c, h, w))
    if whole:
        op = "GlobalMaxPool" if kind == 1 else "GlobalAveragePool"
        return kernel_key(op, "", [source], [("f32", (n, c, 1, 1))], {})
    high, wide = (_slid(size, kernel, padding, stride, 1, bool(ceil)) for size in (h, w))
    attributes = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2}
    op = "MaxPool" if kind == 1 else "AveragePool"
    return kernel_key(op, "", [source], [("f32", (n, c, high, wide))], attributes)


def _eltwise(fields: list[str]) -> str:
    shape = ("f32", tuple(int(field) for field in fields[-4:]))
    return kernel_key("Add", "", [shape, shape], [shape], {})


def _softmax(fields: list[str]) -> str:
    shape = ("f32", tuple(int(field) for field in fields[-4:]))
    return kernel_key("Softmax", "", [shape], [shape], {"axis": int(fields[0])})


def _batch_norm(fields: list[str]) -> str:
    shape = ("f32", tuple(int(field) for field in fields[-4:]))
    return kernel_key("BatchNormalization", "", [shape], [shape], {})


def _activation(op: str, fields: list[str]) -> str:
    shape = ("f32", tuple(int(field) for field in fields[-4:]))
    if len(shape[1]) != 4 or not re.fullmatch(r"\w+", op):
        raise ValueError(op)
    return kernel_key(_ACTIVATIONS.get(op, op), "", [shape], [shape], {})


def _slid(size: int, kernel: int, padding: int, stride: int, dilation: int, ceil: bool = False) -> int:
    room = size + 2 * padding - dilation * (kernel - 1) - 1
    return (-(-room // stride) if ceil else room // stride) + 1


def _block_key(block: str) -> str:
    """Return a key for a name such as ``expanded_conv-input:7x7x192-output:7x7x320-expand:6-kernel:5-stride:1``."""
    op, *parts = block.split("-")
    attributes: dict[str, str] = {}
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {}
    for part in parts:
        name, colon, value = part.partition(":")
        match = _SIZES.fullmatch(value)
        if not colon or not name:
            raise ValueError(f"{block!r} is no block")
        if match:
            high, wide, channels = (int(text) for text in match.groups())
            shapes[name] = ("f32", (1, channels, high, wide))
        elif value.isdigit() and name in ("input", "output"):
            shapes[name] = ("f32", (1, int(value)))
        else:
            attributes[name] = value
    inputs = [shapes["input"]] if "input" in shapes else []
    outputs = [shapes["output"]] if "output" in shapes else []
    if not re.fullmatch(r"\w+", op):
        raise ValueError(f"{block!r} is no block")
    return kernel_key(op, "ofa", inputs, outputs, attributes)
