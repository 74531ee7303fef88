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
#: operators that keep channels in the last place
_CHANNELS_LAST = ("QLinearConv.microsoft", "NhwcMaxPool.microsoft", "NhwcFusedConv.microsoft",
                  "QLinearAveragePool.microsoft", "QLinearGlobalAveragePool.microsoft")  # fmt: skip
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
        weight = self.weight
        if weight:
            groups = int(self.attributes.get("group", 1))
            if groups > 1:
                form = "depthwise" if weight[1] == 1 else "grouped"
            elif name == "Conv.nchwc" and self.inputs[0][1][1] == weight[1] and weight[1] < 16:
                form = "first" if weight[1] <= 4 else "narrow"
            else:
                form = "pointwise" if prod(weight[2:]) == 1 else "dense"
            name = f"{name}/{form}"
        return name if kind in ("f32", "") else f"{name}:{kind}"

    @property
    def weight(self) -> tuple[int, ...]:
        """Shape of a convolution's weight, ``(out, in per group, height, width)``; empty for everything else.

        It is told by the window and the channels where the runtime packed the weight and does not show it.
        """
        if self._base not in _CONVS or not self.inputs or len(self.inputs[0][1]) < 3:
            return ()
        if len(self.inputs) > 1 and len(self.inputs[1][1]) >= 3 and not self._last:
            return self.inputs[1][1]
        window = self.attributes.get("kernel_shape")
        spatial = len(self.inputs[0][1]) - 2
        groups = int(self.attributes.get("group", 1))
        made = self._first(self.outputs[0][1])[1]
        return (made, self.source[1] // groups, *(_numbers(window) if window else (1,) * spatial))

    @property
    def source(self) -> tuple[int, ...]:
        """Shape of the first input, channels in the second place."""
        return self._first(self.inputs[0][1]) if self.inputs else ()

    @property
    def target(self) -> tuple[int, ...]:
        """Shape of the first output, channels in the second place."""
        return self._first(self.outputs[0][1]) if self.outputs else ()

    @property
    def _base(self) -> str:
        return self.op.split(".")[0]

    @property
    def _last(self) -> bool:
        return self.op in _CHANNELS_LAST

    def _first(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (shape[0], shape[-1], *shape[1:-1]) if self._last and len(shape) > 2 else shape

    @property
    def macs(self) -> int:
        """Multiply-accumulates that the kernel does, padding channels included."""
        out, weight = prod(self.target) if self.outputs else 0, self.weight
        if weight:
            return out * prod(weight[1:])
        if self._base in _PRODUCTS and self.inputs:
            shape = self.inputs[0][1]
            inner = shape[0] if self.attributes.get("transA") == "1" else shape[-1] if shape else 1
            return out * inner
        return 0

    @property
    def weight_bytes(self) -> int:
        """Bytes of the second operand of convolutions and matrix products, shown or not."""
        size = _BYTES.get(self.inputs[0][0], 1) if self.inputs else 1
        if self.weight:
            return prod(self.weight) * size
        if self._base not in _PRODUCTS or not self.inputs:
            return 0
        if len(self.inputs) > 1:
            return nbytes(self.inputs[1])
        return self.inputs[0][1][-1] * self.outputs[0][1][-1] * size

    @property
    def _activations(self) -> tuple[int, int]:
        """Bytes of the tensors that it reads beside the weight, and of those that it writes."""
        data = self.inputs
        if len(data) > 1 and (self._base in _PRODUCTS or (self.weight and data[1][1] == self.weight)):
            data = (data[0], *data[2:])
        return sum(map(nbytes, data)), sum(map(nbytes, self.outputs))

    def work(self) -> tuple[float, ...]:
        """Return the amounts in :data:`WORK`: what a kernel's time is a sum of, as a first approximation."""
        target, weight = self.target, self.weight
        read, written = self._activations
        lines = (target[0] if target else 1) * (target[2] if len(target) > 2 else 1)
        lines *= target[1] if len(target) > 1 else 1
        last = self.inputs[0][1][-1] if self.inputs and self.inputs[0][1] else 1
        passes = lines * (prod(weight[1:-1]) if weight else last)
        amounts = (1, self.macs, read, written, self.weight_bytes, lines, passes)
        return tuple(float(amount) for amount in amounts)

    def features(self) -> tuple[float, ...]:
        """Return logarithms of the sizes in :data:`FEATURES`."""
        source, target, weight = self.source, self.target, self.weight
        window = stride = 1
        if weight:
            window = prod(weight[2:])
        elif "kernel_shape" in self.attributes:
            window = prod(_numbers(self.attributes["kernel_shape"]))
        if "strides" in self.attributes:
            stride = prod(_numbers(self.attributes["strides"]))
        channels = source[1] if len(source) > 1 else 1
        made = target[1] if len(target) > 1 else 1
        positions = prod(target[2:]) * (target[0] if target else 1)
        moved = sum(self._activations) + self.weight_bytes
        sizes = (self.macs, moved, self.weight_bytes, channels, made, positions, window, stride)
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
