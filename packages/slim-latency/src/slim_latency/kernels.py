"""Kernels by their key: what the agent writes, taken apart into shapes and into the numbers that predictors use.

A key is one line, such as ``Conv.nchwc f32[1,32,48,48] f32[64,32,1,1] -> f32[1,64,48,48] {activation=Relu}``. How keys
are made is in ``agent.py``, which has to do without Slim.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import log2, prod

from slim_core.errors import MeasureError

Tensor = tuple[str, tuple[int, ...]]

_KEY = re.compile(r"(\S+) (.*?) ?-> ?(.*?)(?: \{(.*)\})?")
_TENSOR = re.compile(r"(\w+)\[([\d,-]*)\]")
_BYTES = {"f64": 8, "i64": 8, "u64": 8, "f32": 4, "i32": 4, "u32": 4, "f16": 2, "bf16": 2, "i16": 2, "u16": 2}
_CONVS = ("Conv", "FusedConv", "QLinearConv", "ConvInteger", "NhwcFusedConv", "ConvTranspose")
_PRODUCTS = ("Gemm", "MatMul", "FusedMatMul", "FusedGemm", "QLinearMatMul", "MatMulInteger", "QGemm",
             "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulNBits")  # fmt: skip
#: activations that cost as much as nothing when they are fused, because a register is clamped
_FREE = ("", "Relu", "Clip")

#: names of the numbers that :meth:`Kernel.features` gives, in order; costs grow with those in ``RISING``
FEATURES = ("macs", "bytes", "weight_bytes", "in_channels", "out_channels", "positions", "window", "stride",
            "inputs", "costly_activation")  # fmt: skip
#: names of the amounts that :meth:`Kernel.work` gives: a call, arithmetic, memory, and the loops around them
WORK = ("call", "macs", "read_bytes", "written_bytes", "weight_bytes", "lines", "passes")
RISING = ("macs", "bytes", "weight_bytes", "in_channels", "out_channels", "positions")


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel of a runtime.

    Args:
        key: the line that names it.
        op: operator as the runtime calls it, with the domain of operators that are not ONNX's (``"Conv.nchwc"``).
        inputs: dtype and shape of its tensors, weights included; biases and scalars are left out.
        outputs: likewise.
        attributes: what else decides its work.
    """

    key: str
    op: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    attributes: Mapping[str, str]

    @property
    def family(self) -> str:
        """The kind of work: kernels of a family are predicted by one regressor."""
        name, kind = self.op, self.inputs[0][0] if self.inputs else ""
        if self.is_conv:
            weight, groups = self.inputs[1][1], int(self.attributes.get("group", 1))
            if groups > 1:
                form = "depthwise" if weight[1] == 1 else "grouped"
            elif name == "Conv.nchwc" and self.inputs[0][1][1] == weight[1] and weight[1] < 16:
                form = "first" if weight[1] <= 4 else "narrow"
            else:
                form = "pointwise" if prod(weight[2:]) == 1 else "dense"
            name = f"{name}/{form}"
        return name if kind in ("f32", "") else f"{name}:{kind}"

    @property
    def is_conv(self) -> bool:
        return self.op.split(".")[0] in _CONVS and len(self.inputs) > 1 and len(self.inputs[1][1]) >= 3

    @property
    def macs(self) -> int:
        """Multiply-accumulates that the kernel does, padding channels included."""
        out = prod(self.outputs[0][1]) if self.outputs else 0
        if self.is_conv:
            weight = self.inputs[1][1]
            return out * prod(weight[1:])
        if self.op.split(".")[0] in _PRODUCTS and self.inputs:
            shape = self.inputs[0][1]
            inner = shape[0] if self.attributes.get("transA") == "1" else shape[-1] if shape else 1
            return out * inner
        return 0

    @property
    def weight_bytes(self) -> int:
        """Bytes of the second operand of convolutions and matrix products."""
        if not self.is_conv and self.op.split(".")[0] not in _PRODUCTS:
            return 0
        if len(self.inputs) > 1:
            return nbytes(self.inputs[1])
        # the profiler does not show weights that were packed when the file was loaded
        kind, shape = self.inputs[0] if self.inputs else ("", (1,))
        return shape[-1] * self.outputs[0][1][-1] * _BYTES.get(kind, 1)

    @property
    def bytes(self) -> int:
        """Bytes of all tensors that it reads and writes."""
        hidden = self.weight_bytes if len(self.inputs) == 1 else 0
        return hidden + sum(map(nbytes, (*self.inputs, *self.outputs)))

    def work(self) -> tuple[float, ...]:
        """Return the amounts in :data:`WORK`: what a kernel's time is a sum of, as a first approximation."""
        source = self.inputs[0][1] if self.inputs else ()
        target = self.outputs[0][1] if self.outputs else ()
        weights = self.weight_bytes
        read = sum(map(nbytes, self.inputs)) - (weights if len(self.inputs) > 1 else 0)
        written = sum(map(nbytes, self.outputs))
        lines = (target[0] if target else 1) * (target[2] if len(target) > 2 else 1)
        lines *= target[1] if len(target) > 1 else 1
        passes = lines * prod(self.inputs[1][1][1:-1]) if self.is_conv else lines * (source[-1] if source else 1)
        return (1.0, float(self.macs), float(read), float(written), float(weights), float(lines), float(passes))

    def features(self) -> tuple[float, ...]:
        """Return logarithms of the sizes in :data:`FEATURES`."""
        source = self.inputs[0][1] if self.inputs else ()
        target = self.outputs[0][1] if self.outputs else ()
        window = stride = 1
        if self.is_conv:
            window = prod(self.inputs[1][1][2:])
        elif "kernel_shape" in self.attributes:
            window = prod(_numbers(self.attributes["kernel_shape"]))
        if "strides" in self.attributes:
            stride = prod(_numbers(self.attributes["strides"]))
        channels = source[1] if len(source) > 1 else 1
        made = target[1] if len(target) > 1 else 1
        positions = prod(target[2:]) * (target[0] if target else 1)
        sizes = (self.macs, self.bytes, self.weight_bytes, channels, made, positions, window, stride)
        costly = 0.0 if self.attributes.get("activation", "") in _FREE else 1.0
        return (*(log2(1 + max(size, 0)) for size in sizes), float(len(self.inputs)), costly)


def nbytes(tensor: Tensor) -> int:
    """Return the bytes of a tensor."""
    return prod(tensor[1]) * _BYTES.get(tensor[0], 1)


@lru_cache(maxsize=65536)
def parse_key(key: str) -> Kernel:
    """Take a key apart.

    Raises:
        MeasureError: it is no kernel's key.
    """
    match = _KEY.fullmatch(key)
    if match is None:
        raise MeasureError(f"not the key of a kernel: {key!r}")
    op, left, right, extra = match.groups()
    attributes: dict[str, str] = {}
    for item in (extra or "").split():
        name, equals, value = item.partition("=")
        if not equals:
            raise MeasureError(f"not the key of a kernel: {key!r}")
        attributes[name] = value
    return Kernel(key, op, _tensors(left, key), _tensors(right, key), attributes)


def _tensors(text: str, key: str) -> tuple[Tensor, ...]:
    found = []
    for word in text.split():
        match = _TENSOR.fullmatch(word)
        if match is None:
            raise MeasureError(f"not the key of a kernel: {key!r}")
        found.append((match[1], _numbers(match[2]) if match[2] else ()))
    return tuple(found)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def total_macs(kernels: Sequence[str]) -> int:
    """Return the multiply-accumulates of kernels, by key."""
    return sum(parse_key(key).macs for key in kernels)
