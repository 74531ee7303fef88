"""A sparsity plan as one safetensors file: JSON in its metadata, masks and orders as tensors. Read as hostile.

    metadata  slim_sparsity: JSON with the keys of ``FileData``
mask/NAME a bit per element of the weight in row-major order, the first in the lowest bit (uint8, ceil(n / 8))
order/i   the i-th order (int32)
"""

from __future__ import annotations

import json
import math
import os
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from slim_core import files
from slim_core.technique import StrictConfig
from slim_prune.errors import PlanError
from slim_prune.schema import read as read_schema
from slim_prune.sparsity.errors import SparsityError
from slim_prune.sparsity.masks import SparsityMasks
from slim_prune.sparsity.orders import Order
from slim_prune.sparsity.schemes import resolve
from slim_prune.sparsity.sparsity_plan import SparsityPlan

KEY = "slim_sparsity"
FORMAT = "slim.prune.sparsity"
VERSION = 1
MAX_BYTES = 2**32  # of the file: masks of 2^35 weights

Count = Annotated[int, Field(ge=0, lt=2**48)]
Name = Annotated[str, Field(min_length=1, max_length=512)]


class WeightData(StrictConfig):
    """One weight; its mask is the tensor ``mask/NAME``."""

    name: Name
    shape: Annotated[list[Count], Field(min_length=2, max_length=16)]
    kept: Count
    axis: Annotated[int, Field(ge=0, le=1)]


class OrderData(StrictConfig):
    """One order; its indices are the tensor ``order/i``."""

    group: Annotated[str, Field(max_length=512)]
    name: Name
    dim: Annotated[int, Field(ge=0, lt=16)]
    size: Count


class FileData(StrictConfig):
    """The JSON of the file."""

    format: Literal["slim.prune.sparsity"]
    version: Literal[1]
    model_class: Name
    scheme: dict[str, Any]
    importance: str
    asked: dict[str, Any]
    params: Count
    weights: list[WeightData]
    orders: list[OrderData]
    notes: list[str]


def write(plan: SparsityPlan, path: str | os.PathLike[str]) -> None:
    """Write a plan; a kill leaves the old file or the new one.

    Raises:
        SparsityError: the folder is not there, or the file cannot be written.
    """
    data = {key: value for key, value in plan.to_json().items() if key in FileData.model_fields}
    weights = [{key: row[key] for key in ("name", "shape", "kept", "axis")} for row in data["weights"]]
    orders = [{key: row[key] for key in ("group", "name", "dim", "size")} for row in data["orders"]]
    text = json.dumps(
        {**data, "format": FORMAT, "version": VERSION, "weights": weights, "orders": orders},
        sort_keys=True, allow_nan=False,
    )  # fmt: skip
    tensors = {
        f"mask/{name}": np.packbits(mask.cpu().numpy().reshape(-1), bitorder="little")
        for name, mask in plan.masks.items()
    }
    tensors |= {f"order/{index}": order.order.astype(np.int32) for index, order in enumerate(plan.orders)}
    files.require_folder(path, SparsityError)
    try:
        with files.atomic_path(path) as staging:
            save_file(tensors, staging, {KEY: text})
    except (OSError, SafetensorError) as error:
        raise SparsityError(f"the plan cannot be written: {error}", where=str(path)) from error


def read(path: str | os.PathLike[str]) -> SparsityPlan:
    """Read a plan.

    Raises:
        SparsityError: the file is not there, too large, not such a file, or contradicts itself.
    """
    where = str(path)
    try:
        if os.path.getsize(path) > MAX_BYTES:
            raise SparsityError(f"the plan is larger than {MAX_BYTES >> 20} MB", where=where)
        with safe_open(path, "np") as file:
            text = (file.metadata() or {}).get(KEY)
            if text is None:
                raise SparsityError("this is not a sparsity plan: its metadata has no key 'slim_sparsity'", where=where)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        data = read_schema(FileData, json.loads(text), where)
    except SparsityError:
        raise
    except (OSError, SafetensorError, ValueError, RecursionError, PlanError, TypeError, AttributeError) as error:
        what = error.what if isinstance(error, PlanError) else str(error)
        raise SparsityError(f"the plan cannot be read: {what}", where=where) from None
    masks = {row.name: _mask(row, tensors.pop(f"mask/{row.name}", None)) for row in data.weights}
    if len(masks) != len(data.weights):
        raise SparsityError("a weight stands there twice", where=where)
    orders = tuple(
        Order(row.group, row.name, row.dim, _order(index, row.size, tensors.pop(f"order/{index}", None)))
        for index, row in enumerate(data.orders)
    )
    if tensors:
        raise SparsityError(f"nothing names the tensor '{min(tensors)[:100]}'", where=where)
    if data.params < sum(mask.size for mask in masks.values()):
        raise SparsityError("it masks more weights than the model has parameters", where=where)
    try:
        scheme = resolve(data.scheme)
    except TypeError as error:
        raise SparsityError(f"the scheme cannot be read: {error}", where=where) from None
    return SparsityPlan(
        model_class=data.model_class,
        scheme=scheme,
        masks=SparsityMasks(masks),
        axes={row.name: row.axis for row in data.weights},
        importance=data.importance,
        asked=data.asked,
        params=data.params,
        orders=orders,
        notes=tuple(data.notes),
    )


def _mask(row: WeightData, stored: Any) -> np.ndarray[Any, np.dtype[np.bool_]]:
    count = math.prod(row.shape)
    if stored is None or stored.dtype != np.uint8 or stored.shape != (-(-count // 8),):
        raise SparsityError(f"its mask is not {-(-count // 8)} bytes", where=row.name)
    bits = np.unpackbits(stored, bitorder="little")
    if bits[count:].any():
        raise SparsityError("the unused bits behind its mask are not zero", where=row.name)
    if int(bits.sum()) != row.kept:
        raise SparsityError(f"its mask keeps {int(bits.sum())} elements, and {row.kept} are named", where=row.name)
    return bits[:count].astype(bool).reshape(row.shape)


def _order(index: int, size: int, stored: Any) -> Any:
    if stored is None or stored.dtype != np.int32 or stored.shape != (size,):
        raise SparsityError(f"order {index} is no list of {size} indices")
    order = stored.astype(np.int64)
    if not np.array_equal(np.sort(order), np.arange(len(order))):
        raise SparsityError(f"order {index} does not hold each index once")
    return order
