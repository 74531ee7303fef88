"""Products of activations and weights in int8, wherever a module's forward asks for one.

``nn.Linear`` gets a forward of its own. In other modules the product is found as it happens: their packed weights carry
a mark, and a mode of ``torch.overrides`` around the forward answers ``F.linear``, ``torch.addmm`` and ``torch.matmul``
where they meet one. So attention layers and functional code are handled without a list of layer types.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from slim_core.export.mode import exporting, integer_weight
from slim_quant.dynamic.rounding import SIGNED, Activations, integer_product, token_scale
from slim_quant.weight_only.packed import PackedWeight, Packing, packed_weight

MARK = "_slim_dynamic"
#: what the functions of ``torch.nn.functional`` ask before they hand themselves over
_ASKS = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")

_ACTIVE: ContextVar[bool] = ContextVar("slim_dynamic_products", default=False)
_SEEN: ContextVar[set[int] | None] = ContextVar("slim_dynamic_seen", default=None)


@contextmanager
def seen_products() -> Iterator[set[int]]:
    """Collect the ids of the packed tensors that integer products read while the block runs."""
    found: set[int] = set()
    token = _SEEN.set(found)
    try:
        yield found
    finally:
        _SEEN.reset(token)


def dynamic_product(x: Tensor, weight: PackedWeight, bias: Tensor | None, activations: Activations) -> Tensor:
    """Return ``x @ weight.T + bias``, activations rounded with scales of their own."""
    seen = _SEEN.get()
    if seen is not None:
        seen.add(id(weight.packed))
    wide = x.float()
    scale = weight.scale.float()
    if exporting() is not None:
        result = _exported(wide, weight, scale, activations)
    else:
        result = integer_product(wide, weight.integers(), scale, activations)
    result = result.to(x.dtype)
    return result if bias is None else result + bias


def _exported(x: Tensor, weight: PackedWeight, scale: Tensor, activations: Activations) -> Tensor:
    """Return the product as operators of ONNX, in the order in which onnxruntime fuses them."""
    turned = integer_weight([weight.packed], columns=weight.layout.columns)
    shape = (*x.shape[:-1], weight.layout.rows)
    if activations == "per_token":
        step = token_scale(x)
        integers = torch.clamp(torch.round(x / step), -SIGNED, SIGNED).to(torch.int8)
        product = torch.onnx.ops.symbolic("MatMulInteger", (integers, turned), dtype=torch.int32, shape=shape)
        # one factor after the other: onnxruntime fuses a product of both scales as if each had a single value
        return product.float() * step * scale.reshape(-1)
    integers, step, zero_point = torch.onnx.ops.symbolic_multi_out(
        "DynamicQuantizeLinear", (x,), dtypes=(torch.uint8, torch.float32, torch.uint8), shapes=(x.shape, (), ())
    )
    product = torch.onnx.ops.symbolic("MatMulInteger", (integers, turned, zero_point), dtype=torch.int32, shape=shape)
    return product.float() * (step * scale.reshape(-1))


class Marking(Packing):
    """A module that marks its weights for the products that read them."""

    def read_packed(self, name: str) -> Tensor:
        tensor = super().read_packed(name)
        activations = self.__dict__.get("_dynamic_activations")
        if activations is not None:
            setattr(tensor, MARK, (packed_weight(self, name), activations))
        return tensor


class DynamicLinear(Marking):
    """A linear layer that rounds its input with the scale of the batch, and multiplies in int8."""

    def forward(self, input: Tensor) -> Tensor:
        activations: Activations = self.__dict__["_dynamic_activations"]
        return dynamic_product(input, packed_weight(self, "weight"), getattr(self, "bias", None), activations)


class DynamicScope(Marking):
    """A module in whose forward products with marked weights are computed in int8."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with nullcontext() if _ACTIVE.get() else _Products():
            return super().forward(*args, **kwargs)  # type: ignore[misc]


class DynamicEmbedding(DynamicScope):
    """An embedding whose table others multiply with: it reads rows itself, and marks the table for them."""

    def forward(self, input: Tensor) -> Tensor:
        if exporting() is not None:
            return F.embedding(input, super().read_packed("weight"))
        return packed_weight(self, "weight").floats(input)


class _Products(TorchFunctionMode):
    """Answers products with marked weights; everything else runs as it is."""

    def __enter__(self) -> Any:
        self._token = _ACTIVE.set(True)
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        _ACTIVE.reset(self._token)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if func is F.linear:
            found = _marked(args, given, 1, "weight", 1)
            if found is not None:
                source = args[0] if args else given["input"]
                bias = args[2] if len(args) > 2 else given.get("bias")
                return dynamic_product(source, found[0], bias, found[1])
        elif func in (torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm):
            found = _marked(args, given, 1, "other", 0)
            if found is not None:
                return dynamic_product(args[0], found[0], None, found[1])
        elif func in (torch.addmm, Tensor.addmm) and not given:
            found = _marked(args, given, 2, "mat2", 0)
            if found is not None:
                return dynamic_product(args[1], found[0], args[0], found[1])
        if isinstance(func, FunctionType) and func.__module__ == F.__name__:
            with _Products():  # a function of several operators, attention say: the products are inside
                return _without_override(func)(*args, **given)
        return func(*args, **given)


def _without_override(func: FunctionType) -> FunctionType:
    """Return a copy of a function of ``torch.nn.functional`` that does not hand itself over to the mode again."""
    never = dict.fromkeys(_ASKS, lambda *_: False)
    copied = FunctionType(
        func.__code__, {**func.__globals__, **never}, func.__name__, func.__defaults__, func.__closure__
    )
    copied.__kwdefaults__ = func.__kwdefaults__
    return copied


def _marked(
    args: tuple[Any, ...], kwargs: dict[str, Any], position: int, name: str, axis: int
) -> tuple[PackedWeight, Activations] | None:
    """Return the packed weight behind an argument, where its inputs lie along ``axis``."""
    argument = args[position] if len(args) > position else kwargs.get(name)
    mark = getattr(argument, MARK, None)
    if mark is None or mark[0].layout.axis != axis:
        return None
    found: tuple[PackedWeight, Activations] = mark
    return found


def plain_linear(module: nn.Module) -> bool:
    """Tell whether the module's forward is that of ``nn.Linear``."""
    return isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward
