"""Quick shapes: what common operators return on meta tensors, without PyTorch's meta kernels written in Python.

Those take up to a millisecond for an activation or a batch norm, which is most of a recording. A quick rule either
gives exactly what the operator would (shape, strides, dtype, or the very tensor for an in-place operator), or ``None``;
then the operator itself runs, and raises where its arguments do not fit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Quick = Callable[..., Tensor | None]

_UNARY = (
    "relu", "relu6", "hardtanh", "hardswish", "hardsigmoid", "silu", "sigmoid", "gelu", "tanh", "leaky_relu", "elu",
    "mish", "softplus", "neg", "exp", "sqrt", "square", "clamp",
)  # fmt: skip
_BINARY = ("add", "sub", "mul", "div")


def quick(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """Return what ``func`` returns on these meta tensors, or ``None`` where it must run itself."""
    rule = _RULES.get(func)
    return None if rule is None else rule(args, kwargs)


class QuickShapes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs a forward on meta tensors for its shapes alone; use it under ``torch.inference_mode()``."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = quick(func, args, kwargs or {})
        return func(*args, **(kwargs or {})) if result is None else result


def _unary(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    x = args[0]
    return torch.empty_like(x) if _plain(x) and not any(isinstance(a, Tensor) for a in args[1:]) else None


def _unary_in_place(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    return args[0] if _plain(args[0]) and not any(isinstance(a, Tensor) for a in args[1:]) else None


def _binary(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    whole = _larger(args[0], args[1])
    return None if whole is None else torch.empty_like(whole)


def _binary_in_place(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    return args[0] if _larger(args[0], args[1]) is args[0] else None


def _batch_norm(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    if len(args) < 6 or args[5]:  # training: it writes statistics
        return None
    x = args[0]
    if not _plain(x) or x.dim() < 2:
        return None
    for statistic in args[1:5]:
        if statistic is not None and (statistic.shape != x.shape[1:2] or statistic.dtype != x.dtype):
            return None
    return torch.empty_like(x) if args[3] is not None and args[4] is not None else None


def _larger(x: Any, y: Any) -> Tensor | None:
    """Return the operand that has the result's shape, strides and dtype; ``None`` where neither is known to."""
    if not isinstance(x, Tensor) or not _plain(x):
        return None
    if isinstance(y, int | float):
        return x
    if not isinstance(y, Tensor) or y.dtype != x.dtype or y.dim() != x.dim() or not _plain(y):
        return None
    if x.shape == y.shape:
        return x
    if all(b in (1, a) for a, b in zip(x.shape, y.shape, strict=True)):
        return x
    return y if all(a in (1, b) for a, b in zip(x.shape, y.shape, strict=True)) else None


def _plain(x: Tensor) -> bool:
    return x.is_contiguous() and x.is_floating_point()


def _rules() -> dict[Any, Quick]:
    rules: dict[Any, Quick] = {torch.ops.aten.batch_norm.default: _batch_norm}
    for names, overload, out_of_place, in_place in (
        (_UNARY, "default", _unary, _unary_in_place),
        (_BINARY, "Tensor", _binary, _binary_in_place),
    ):
        for name in names:
            for full, rule in ((name, out_of_place), (f"{name}_", in_place)):
                packet = getattr(torch.ops.aten, full, None)
                if packet is not None and overload in packet.overloads():
                    rules[getattr(packet, overload)] = rule
    return rules


_RULES = _rules()
