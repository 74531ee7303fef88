"""Weights of packed integers in an ONNX graph: ``slim::DequantizeWeight`` becomes what a runtime computes with them.

For onnxruntime that are ``MatMulNBits`` and ``GatherBlockQuantized`` (domain ``com.microsoft``), whose kernels read the
integers as they are. OpenVINO reads ``MatMulNBits`` as well and keeps the integers; rows of embeddings are unpacked
there by ordinary operators. ``generic`` is ONNX alone: ``DequantizeLinear`` with blocks (operator set 21).

A weight that is used in another way than by a product or a lookup is dequantized whole, by ``DequantizeLinear``. All of
them compute ``(q - zero_point) * scale`` in float, to the bit; products differ by the order of their sums.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slim_core.export.mode import DOMAIN, INTEGERS, WEIGHT
from slim_core.extras import require

CONTRIB = "com.microsoft"
#: sizes of blocks that the kernels of ``MatMulNBits`` take
BLOCKS = (256, 128, 64, 32, 16)
#: operator set from which ``DequantizeLinear`` has blocks and 4 bits
BLOCKED_OPSET = 21

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Weight:
    """A weight as the exporter left it.

    Args:
        name: of its value in the graph.
        integers: ``(rows, columns)``, from 0 to ``2**bits - 1``.
        scale: ``(rows, groups)``.
        zero_point: ``(rows, groups)``, or ``None`` for ``2**(bits - 1)``.
        bits: 2, 4 or 8: what the file stores.
        block: values of a row that share a scale.
        axis: 1 where the weight is ``(rows, columns)``, 0 where it is turned round.
    """

    name: str
    integers: Array
    scale: Array
    zero_point: Array | None
    bits: int
    block: int
    axis: int


def lower_weights(proto: Any, runtime: str = "onnxruntime") -> list[str]:
    """Replace every ``slim::DequantizeWeight`` of ``proto`` in place; return notes."""
    onnx = require("onnx", "slim-core[onnx]")
    graph = proto.graph
    nodes = [node for node in graph.node if node.domain == DOMAIN and node.op_type in (WEIGHT, INTEGERS)]
    if not nodes:
        return []
    constants = {tensor.name: tensor for tensor in graph.initializer}
    lowering = _Lowering(onnx, proto, runtime)
    for node in nodes:
        if node.op_type == INTEGERS:
            graph.initializer.append(onnx.numpy_helper.from_array(_integers(onnx, node, constants), node.output[0]))
            graph.node.remove(node)
        else:
            lowering.lower(node, _weight(onnx, node, constants))
    kept = [item for item in proto.opset_import if item.domain != DOMAIN]
    del proto.opset_import[:]
    proto.opset_import.extend(kept)
    if any(node.domain == CONTRIB for node in graph.node) and not any(item.domain == CONTRIB for item in kept):
        proto.opset_import.append(onnx.helper.make_opsetid(CONTRIB, 1))
    return [f"{len(nodes)} weights stored as packed integers", *lowering.notes]


def unpack_rows(packed: Array, bits: int, columns: int) -> Array:
    """Return the integers of rows that are little-endian streams of ``bits`` bits: ``(rows, columns)``, uint8."""
    stream = np.unpackbits(packed, axis=1, bitorder="little")[:, : columns * bits]
    parts = stream.reshape(len(packed), columns, bits)
    found: Array = np.packbits(parts, axis=2, bitorder="little")[:, :, 0]
    return found


def pack_rows(integers: Array, bits: int) -> Array:
    """Return rows of integers of 2, 4 or 8 bits as bytes, the first in the lowest bits; a rest is filled with zeros."""
    each = 8 // bits
    wide = np.pad(integers.astype(np.uint8), ((0, 0), (0, -integers.shape[1] % each)))
    packed = np.zeros((len(wide), wide.shape[1] // each), np.uint8)
    for position in range(each):
        packed |= wide[:, position::each] << np.uint8(bits * position)
    return packed


def kernel_block(block: int, columns: int) -> int | None:
    """Return the block size that ``MatMulNBits`` can have where groups are ``block`` long, or ``None``.

    A group that covers the row may be cut as one likes, another group into equal parts.
    """
    if block >= columns:
        return next((size for size in BLOCKS if columns % size == 0), 32 if columns >= 32 else 16)
    power = block & -block
    if power < BLOCKS[-1]:
        return None
    return min(power, BLOCKS[0]) if power != block else block


def _weight(onnx: Any, node: Any, constants: dict[str, Any]) -> Weight:
    values = [onnx.numpy_helper.to_array(constants[name]) if name else None for name in node.input]
    packed, scale, zero = [*values, None][:3]
    attributes = {item.name: item.i for item in node.attribute}
    bits, columns = attributes["bits"], attributes["columns"]
    order = _order(node)
    packed, scale, zero = (_reordered(value, order) for value in (packed, scale, zero))
    integers = unpack_rows(packed, bits, columns)
    groups = -(-columns // attributes["block"])
    stored = next(size for size in (2, 4, 8) if size >= bits)
    if zero is None and stored != bits:  # the implied zero point is the middle of what is stored
        integers = integers + np.uint8((1 << (stored - 1)) - (1 << (bits - 1)))
    form = (len(packed), groups)
    return Weight(
        node.output[0], integers, np.broadcast_to(scale, form), None if zero is None else np.broadcast_to(zero, form),
        stored, attributes["block"], attributes["axis"],
    )  # fmt: skip


def _integers(onnx: Any, node: Any, constants: dict[str, Any]) -> Array:
    order = _order(node)
    parts = [_reordered(onnx.numpy_helper.to_array(constants[name]), order) for name in node.input]
    turned = [(part.astype(np.int16) - 128).astype(np.int8).T for part in parts]
    stacked = any(item.name == "stack" and item.i for item in node.attribute)
    return np.ascontiguousarray(np.stack(turned) if stacked else turned[0])


def _order(node: Any) -> list[int]:
    return next((list(item.ints) for item in node.attribute if item.name == "order"), [])


def _reordered(rows: Array | None, order: list[int]) -> Any:
    if rows is None or not order or len(rows) == 1:
        return rows
    return np.concatenate([np.split(rows, len(order))[part] for part in order])


class _Lowering:
    def __init__(self, onnx: Any, proto: Any, runtime: str) -> None:
        self.onnx, self.graph, self.runtime = onnx, proto.graph, runtime
        self.outputs = {value.name for value in proto.graph.output}
        self.notes: list[str] = []

    def lower(self, node: Any, weight: Weight) -> None:
        products, lookups, turned, whole = self._uses(weight)
        block = kernel_block(weight.block, weight.integers.shape[1])
        contrib = self.runtime != "generic" and weight.scale.dtype == np.float32
        used = contrib and bool(products) and block is not None
        if used:
            shared = self._shared(weight, int(block or 0))
            for product in products:
                self._matmul_nbits(product, weight, shared, int(block or 0))
            if lookups:
                self._lookups(lookups, weight, shared, int(block or 0))
        elif contrib and lookups and not products and block is not None:
            self._lookups(lookups, weight, self._shared(weight, block), block)
        else:
            if turned and not whole and not lookups and weight.name not in self.outputs:
                for other in turned:  # in the file as the product reads it: onnxruntime then keeps the integers
                    self._dequantize(node, replace(weight, name=other.output[0], axis=1 - weight.axis))
            else:
                whole |= bool(products or lookups)
        if whole or weight.name in self.outputs:
            self._dequantize(node, weight)
        for other in [*turned, node]:
            if not any(name in self._read() for name in other.output):
                self.graph.node.remove(other)

    def _uses(self, weight: Weight) -> tuple[list[tuple[Any, str, bool]], list[Any], list[Any], bool]:
        """Return products, lookups, transposes in between, and whether anything else reads the weight."""
        products: list[tuple[Any, str, bool]] = []
        lookups, turned, whole = [], [], False
        for reader in self._readers(weight.name):
            if _turns(reader):
                turned.append(reader)
                for second in self._readers(reader.output[0]):
                    if self._is_product(second, reader.output[0], weight.axis == 1):
                        products.append((second, reader.output[0], True))
                    else:
                        whole = True
                whole |= reader.output[0] in self.outputs
            elif self._is_product(reader, weight.name, weight.axis == 0):
                products.append((reader, weight.name, False))
            elif weight.axis == 1 and _looks_up(reader, weight.name):
                lookups.append(reader)
            else:
                whole = True
        return products, lookups, turned, whole

    def _is_product(self, node: Any, name: str, inputs_first: bool) -> bool:
        """Tell whether ``node`` multiplies activations with the weight, along its rows' direction."""
        if list(node.input).count(name) != 1 or len(node.input) < 2 or node.input[1] != name:
            return False
        if node.op_type == "MatMul":
            return inputs_first
        attributes = {item.name: item for item in node.attribute}
        turned = "transB" in attributes and attributes["transB"].i == 1
        plain = all(attributes[key].f == 1.0 for key in ("alpha", "beta") if key in attributes)
        upright = "transA" not in attributes or attributes["transA"].i == 0
        return node.op_type == "Gemm" and plain and upright and turned != inputs_first

    def _shared(self, weight: Weight, block: int) -> list[str]:
        """Add the integers as ``(rows, blocks, bytes)``, the scales and the zero points; return their names."""
        columns = weight.integers.shape[1]
        blocks, times = -(-columns // block), max(1, min(weight.block, columns) // block)
        fill = blocks * block - columns
        packed = pack_rows(np.pad(weight.integers, ((0, 0), (0, fill))), weight.bits)
        parts = {"packed": packed.reshape(len(packed), blocks, -1),
                 "scale": np.repeat(weight.scale, times, 1)[:, :blocks]}  # fmt: skip
        if weight.block >= columns:
            parts["scale"] = np.repeat(weight.scale, blocks, 1)
        if weight.zero_point is not None:
            zero = np.repeat(weight.zero_point, blocks if weight.block >= columns else times, 1)[:, :blocks]
            parts["zero_point"] = pack_rows(zero, weight.bits)
        return [self._constant(f"{weight.name}_{part}", np.ascontiguousarray(value)) for part, value in parts.items()]

    def _matmul_nbits(self, use: tuple[Any, str, bool], weight: Weight, shared: list[str], block: int) -> None:
        node, _, _ = use
        rows, columns = weight.integers.shape
        bias = node.input[2] if node.op_type == "Gemm" and len(node.input) > 2 and node.input[2] else None
        result = node.output[0] if bias is None else f"{node.output[0]}_product"
        made = self.onnx.helper.make_node(
            "MatMulNBits", [node.input[0], *shared], [result], node.name, domain=CONTRIB, K=columns, N=rows,
            bits=weight.bits, block_size=block, accuracy_level=1,
        )  # fmt: skip
        fresh = [made]
        if bias is not None:
            fresh.append(self.onnx.helper.make_node("Add", [result, bias], [node.output[0]]))
        self._replace(node, fresh)

    def _lookups(self, nodes: list[Any], weight: Weight, shared: list[str], block: int) -> None:
        """Read rows of ``(rows, blocks, bytes)``, which a product may share."""
        blocks = len(self._value(shared[1])[0])
        columns = weight.integers.shape[1]
        flat = f"{weight.name}_rows"
        shape = self._constant(f"{flat}_shape", np.array([len(weight.integers), -1], np.int64))
        for index, node in enumerate(nodes):
            fresh = []
            if index == 0:
                fresh.append(self.onnx.helper.make_node("Reshape", [shared[0], shape], [flat]))
            padded = blocks * block != columns
            own = f"{node.output[0]}_padded" if padded else node.output[0]
            if self.runtime == "onnxruntime" and weight.bits != 2:
                fresh.append(self.onnx.helper.make_node(
                    "GatherBlockQuantized", [flat, node.input[1], *shared[1:]], [own], node.name, domain=CONTRIB,
                    bits=weight.bits, block_size=block, gather_axis=0, quantize_axis=1,
                ))  # fmt: skip
            else:
                fresh.extend(self._unpacked(own, flat, node.input[1], shared, weight, blocks, block))
            if padded:
                ends = [self._constant(f"slim_whole_{end}", np.array([end], np.int64)) for end in (0, columns, -1)]
                fresh.append(self.onnx.helper.make_node("Slice", [own, *ends], [node.output[0]]))
            self._replace(node, fresh)

    def _unpacked(
        self, result: str, flat: str, indices: str, shared: list[str], weight: Weight, blocks: int, block: int
    ) -> list[Any]:
        """Return ordinary operators that read rows and dequantize them; in float, where every runtime agrees."""
        fresh: list[Any] = []

        def add(kind: str, inputs: list[str], **attributes: Any) -> str:
            name = f"{result}_unpacked_{len(fresh)}"
            fresh.append(self.onnx.helper.make_node(kind, inputs, [name], **attributes))
            return name

        def spread(values: str, bits: int, count: int) -> str:
            """Return the float values of bytes: the last dimension becomes ``count``."""
            rest = add("Cast", [values], to=self.onnx.TensorProto.FLOAT)
            if bits == 8:
                return rest
            parts = []
            for _ in range(8 // bits - 1):
                high = add("Floor", [add("Mul", [rest, self._number(1 / (1 << bits))])])
                parts.append(add("Sub", [rest, add("Mul", [high, self._number(1 << bits)])]))
                rest = high
            last = self._constant("slim_whole_-1", np.array([-1], np.int64))
            joined = add("Concat", [add("Unsqueeze", [part, last]) for part in [*parts, rest]], axis=-1)
            return add("Reshape", [joined, leading([count])])

        source = indices
        rank = f"{result}_shape"
        fresh.append(self.onnx.helper.make_node("Shape", [source], [rank]))

        def leading(sizes: list[int]) -> str:
            own = self._constant(f"{result}_sizes_{'_'.join(map(str, sizes))}", np.array(sizes, np.int64))
            return add("Concat", [rank, own], axis=0)

        each = 8 // weight.bits
        values = spread(add("Gather", [flat, indices], axis=0), weight.bits, blocks * block)
        values = add("Reshape", [values, leading([blocks, block])])
        last = self._constant("slim_whole_-1", np.array([-1], np.int64))
        if len(shared) > 2:
            count = -(-blocks // each) * each
            zero = spread(add("Gather", [shared[2], indices], axis=0), weight.bits, count)
            if count != blocks:
                ends = [self._constant(f"slim_whole_{end}", np.array([end], np.int64)) for end in (0, blocks)]
                zero = add("Slice", [zero, *ends, last])
            values = add("Sub", [values, add("Unsqueeze", [zero, last])])
        else:
            values = add("Sub", [values, self._number(1 << (weight.bits - 1))])
        scale = add("Unsqueeze", [add("Gather", [shared[1], indices], axis=0), last])
        product = add("Mul", [values, scale])
        fresh.append(self.onnx.helper.make_node("Reshape", [product, leading([blocks * block])], [result]))
        return fresh

    def _dequantize(self, node: Any, weight: Weight) -> None:
        """Dequantize the whole weight by ``DequantizeLinear``; along rows, in blocks where there are several."""
        TensorProto = self.onnx.TensorProto
        kind = {2: TensorProto.UINT4, 4: TensorProto.UINT4, 8: TensorProto.UINT8}[weight.bits]
        zero = weight.zero_point
        if zero is None:
            zero = np.full(weight.scale.shape, 1 << (weight.bits - 1), np.uint8)
        whole = weight.block >= weight.integers.shape[1]
        fill = 0 if whole else -weight.integers.shape[1] % weight.block
        # a last group that is shorter is filled, and cut off again: not every runtime takes it as it is
        parts = [np.pad(weight.integers, ((0, 0), (0, fill))), weight.scale, zero]
        axis = weight.axis
        if axis == 0:
            parts = [part.T for part in parts]
        if whole:
            parts[1:] = [part.reshape(-1) for part in parts[1:]]
        names = [
            self._integers(f"{weight.name}_integers", parts[0], kind),
            self._constant(f"{weight.name}_scales", np.ascontiguousarray(parts[1])),
            self._integers(f"{weight.name}_zeros", parts[2], kind),
        ]
        attributes = {"axis": 1 - axis} if whole else {"axis": axis, "block_size": weight.block}
        result = f"{weight.name}_float"
        fresh = [
            self.onnx.helper.make_node(
                "DequantizeLinear", names, [f"{result}_filled" if fill else result], **attributes
            )
        ]
        if fill:
            ends = [0, weight.integers.shape[1], axis]
            cut = [self._constant(f"slim_whole_{end}", np.array([end], np.int64)) for end in ends]
            fresh.append(self.onnx.helper.make_node("Slice", [f"{result}_filled", *cut], [result]))
        for made in fresh:
            self.graph.node.insert(list(self.graph.node).index(node), made)
        for reader in self._readers(weight.name):
            for position, name in enumerate(reader.input):
                if name == weight.name:
                    reader.input[position] = result
        if weight.name in self.outputs:
            self.graph.node.insert(
                list(self.graph.node).index(node),
                self.onnx.helper.make_node("Identity", [result], [weight.name]),
            )

    def _integers(self, name: str, values: Array, kind: int) -> str:
        if kind == self.onnx.TensorProto.UINT8:
            return self._constant(name, np.ascontiguousarray(values.astype(np.uint8)))
        tensor = self.onnx.TensorProto()
        tensor.name, tensor.data_type = name, kind
        tensor.dims.extend(values.shape)
        tensor.raw_data = pack_rows(values.reshape(1, -1), 4).tobytes()
        self.graph.initializer.append(tensor)
        return name

    def _number(self, value: float) -> str:
        return self._constant(f"slim_number_{value}", np.array(value, np.float32))

    def _constant(self, name: str, value: Array) -> str:
        if not any(tensor.name == name for tensor in self.graph.initializer):
            self.graph.initializer.append(self.onnx.numpy_helper.from_array(value, name))
        return name

    def _value(self, name: str) -> Array:
        tensor = next(tensor for tensor in self.graph.initializer if tensor.name == name)
        value: Array = self.onnx.numpy_helper.to_array(tensor)
        return value

    def _readers(self, name: str) -> list[Any]:
        return [node for node in self.graph.node if name in node.input]

    def _read(self) -> set[str]:
        return self.outputs | {name for node in self.graph.node for name in node.input}

    def _replace(self, node: Any, fresh: list[Any]) -> None:
        position = list(self.graph.node).index(node)
        self.graph.node.remove(node)
        for item in reversed(fresh):
            self.graph.node.insert(position, item)


def _turns(node: Any) -> bool:
    if node.op_type != "Transpose":
        return False
    order = next((list(item.ints) for item in node.attribute if item.name == "perm"), [1, 0])
    return order == [1, 0]


def _looks_up(node: Any, name: str) -> bool:
    axis = next((item.i for item in node.attribute if item.name == "axis"), 0)
    return bool(node.op_type == "Gather" and node.input[0] == name and axis == 0)
