"""While a model is traced for ONNX: modules ask here, and give operators of ONNX in place of arithmetic.

A module that keeps its weights as integers, or that computes in integers, calls :func:`exporting` in its forward. What
runtimes make of its operators is decided in ``compressed.py``, on the finished graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

#: domain and name of the operator that stands for a weight of packed integers until the graph is finished
DOMAIN = "slim"
WEIGHT = "DequantizeWeight"
#: the operator that stands for int8 weights, which an integer product reads
INTEGERS = "IntegerWeight"


@dataclass(slots=True)
class Exporting:
    """What the modules of a model that is being exported have said of themselves.

    Args:
        packed_weights: weights are packed integers.
        integer_arithmetic: activations are rounded, so that runtimes may differ by a step.
    """

    packed_weights: bool = False
    integer_arithmetic: bool = False


_EXPORTING: ContextVar[Exporting | None] = ContextVar("slim_exporting_onnx", default=None)


def exporting() -> Exporting | None:
    """Return a record to write on where the forward runs in order to be written as ONNX, else ``None``."""
    return _EXPORTING.get()


@contextmanager
def as_onnx() -> Iterator[Exporting]:
    """Let :func:`exporting` give a record while the block runs."""
    record = Exporting()
    token = _EXPORTING.set(record)
    try:
        yield record
    finally:
        _EXPORTING.reset(token)


def dequantized_weight(
    packed: Tensor, scale: Tensor, zero_point: Tensor | None, *, bits: int, columns: int, block: int, axis: int = 1,
    order: Sequence[int] = (),
) -> Tensor:  # fmt: skip
    """Return, in a forward that is being exported, a weight whose integers go into the file.

    Args:
        packed: uint8, ``(rows, bytes)``: each row a little-endian stream of values of ``bits`` bits.
        scale: floating point, ``(rows, groups)`` or ``(1, 1)``.
        zero_point: uint8, of the shape of ``scale``; ``None``: ``2**(bits - 1)`` everywhere.
        bits: 2 to 8.
        columns: values in a row.
        block: values of a row that share a scale.
        axis: the axis of the weight that rows run along: 1 gives ``(rows, columns)``, 0 ``(columns, rows)``.
        order: the rows are that many equal parts, which come in this order; none: as they are.
    """
    record = exporting()
    if record is not None:
        record.packed_weights = True
    rows = packed.shape[0]
    attributes: dict[str, Any] = {"bits": bits, "columns": columns, "block": block, "axis": axis}
    if order:
        attributes["order"] = list(order)
    result: Tensor = torch.onnx.ops.symbolic(
        f"{DOMAIN}::{WEIGHT}", (packed, scale, zero_point), attributes, dtype=scale.dtype,
        shape=(rows, columns) if axis == 1 else (columns, rows), version=1,
    )  # fmt: skip
    return result


def integer_weight(packed: Sequence[Tensor], *, columns: int, order: Sequence[int] = (), stack: bool = False) -> Tensor:
    """Return, in a forward that is being exported, weights of 8 bits as int8, turned round: ``(columns, rows)``.

    Args:
        packed: one uint8 tensor ``(rows, columns)`` or, to be stacked, several; 128 stands for 0.
        columns: values in a row.
        order: the rows are that many equal parts, which come in this order; none: as they are.
        stack: put a dimension in front, of the length of ``packed``.
    """
    record = exporting()
    if record is not None:
        record.integer_arithmetic = True
    attributes: dict[str, Any] = {"stack": int(stack)}
    if order:
        attributes["order"] = list(order)
    shape = (columns, packed[0].shape[0])
    result: Tensor = torch.onnx.ops.symbolic(
        f"{DOMAIN}::{INTEGERS}", tuple(packed), attributes, dtype=torch.int8,
        shape=(len(packed), *shape) if stack else shape, version=1,
    )  # fmt: skip
    return result
