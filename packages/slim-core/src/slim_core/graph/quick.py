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

Answer = Tensor | tuple[Tensor, ...] | None
Quick = Callable[..., Answer]

_UNARY = (
    "relu", "relu6", "hardtanh", "hardswish", "hardsigmoid", "silu", "sigmoid", "gelu", "tanh", "leaky_relu", "elu",
    "mish", "softplus", "neg", "exp", "sqrt", "square", "clamp",
)  # fmt: skip
_CONV2D = (None, None, None, (1, 1), (0, 0), (1, 1), 1)
_POOL2D = (None, None, (), (0, 0), (1, 1), False)
_BINARY = ("add", "sub", "mul", "div")


def quick(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Answer:
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
    return _empty(x.shape, x) if _plain(x) and not any(isinstance(a, Tensor) for a in args[1:]) else None


def _unary_in_place(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    return args[0] if _plain(args[0]) and not any(isinstance(a, Tensor) for a in args[1:]) else None


def _binary(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    whole = _larger(args[0], args[1])
    return _permuted(args[0], args[1]) if whole is None else _empty(whole.shape, whole)


def _permuted(x: Any, y: Any) -> Tensor | None:
    """Return the result where the strides of ``x`` alone say in which order it lies in memory."""
    if not isinstance(x, Tensor) or not x.is_floating_point() or not x.dim():
        return None
    if isinstance(y, Tensor):
        if y.shape != x.shape or y.dtype != x.dtype:
            return None
    elif not isinstance(y, int | float):
        return None
    strides = x.stride()
    if min(x.shape) < 2 or min(strides) < 1 or len(set(strides)) < len(strides):
        return None
    dense, size = [0] * x.dim(), 1
    for dim in sorted(range(x.dim()), key=lambda dim: strides[dim]):
        dense[dim] = size
        size *= x.shape[dim]
    return torch.empty_strided(x.shape, dense, dtype=x.dtype, device=x.device)


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
    return _empty(x.shape, x) if args[3] is not None and args[4] is not None else None


def _layer_norm(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    x, shape = args[0], tuple(args[1]) if len(args) > 1 else ()
    if not _plain(x) or not shape or tuple(x.shape[-len(shape) :]) != shape:
        return None
    affine = [tensor for tensor in args[2:4] if tensor is not None]
    return _empty(x.shape, x) if all(t.shape == shape and t.dtype == x.dtype for t in affine) else None


def _linear(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    if len(args) < 2:
        return None
    x, weight, bias = args[0], args[1], args[2] if len(args) > 2 else None
    if not _plain(x) or x.dim() < 2 or weight.dim() != 2 or weight.dtype != x.dtype or weight.shape[1] != x.shape[-1]:
        return None
    if bias is not None and (bias.shape != weight.shape[:1] or bias.dtype != x.dtype):
        return None
    return _empty((*x.shape[:-1], weight.shape[0]), x)


def _conv2d(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    if len(args) < 2 or kwargs:
        return None
    given: tuple[Any, ...] = (*args, *_CONV2D[len(args) :])
    x, weight, bias, stride, padding, dilation, groups = given
    if not _plain(x) or x.dim() != 4 or weight.dim() != 4 or not weight.is_contiguous() or weight.dtype != x.dtype:
        return None
    if _ambiguous(x) or x.shape[1] != weight.shape[1] * groups or weight.shape[0] % groups:
        return None
    if bias is not None and (bias.shape != weight.shape[:1] or bias.dtype != x.dtype):
        return None
    sides = _sides(x, weight.shape[2:], stride, padding, dilation)
    if sides is None:
        return None
    return _empty((x.shape[0], weight.shape[0], *sides), x)


def _max_pool2d(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    if len(args) < 2 or kwargs:
        return None
    given: tuple[Any, ...] = (*args, *_POOL2D[len(args) :])
    x, kernel, stride, padding, dilation, ceil = given
    if not _plain(x) or x.dim() != 4 or _ambiguous(x) or ceil:
        return None
    if any(2 * padding[d % len(padding)] > kernel[d % len(kernel)] for d in (0, 1)):
        return None
    sides = _sides(x, tuple(kernel[d % len(kernel)] for d in (0, 1)), stride or kernel, padding, dilation)
    return None if sides is None or 0 in x.shape else _empty((*x.shape[:2], *sides), x)


def _sides(x: Tensor, kernel: Any, stride: Any, padding: Any, dilation: Any) -> tuple[int, ...] | None:
    """Return height and width after a window slid over them; ``None`` where the operator should judge."""
    sides = []
    for dim in (0, 1):
        step, pad, gap = (values[dim % len(values)] for values in (stride, padding, dilation))
        room = x.shape[2 + dim] + 2 * pad - gap * (kernel[dim] - 1) - 1
        if room < 0 or step < 1 or pad < 0 or gap < 1 or kernel[dim] < 1:
            return None
        sides.append(room // step + 1)
    return tuple(sides)


def _pool_to_one(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    if len(args) != 2 or list(args[1]) != [1, 1] or not _plain(args[0]) or args[0].dim() not in (3, 4):
        return None
    x = args[0]
    return None if x.dim() == 4 and _ambiguous(x) else _empty((*x.shape[:-2], 1, 1), x)


def _mean(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    if len(args) < 2 or kwargs or not args[1] or not _plain(args[0]):
        return None
    x, keep = args[0], len(args) > 2 and args[2]
    gone = {dim % x.dim() for dim in args[1] if -x.dim() <= dim < x.dim()}
    if len(gone) != len(args[1]):
        return None
    return _empty(tuple(1 if d in gone else n for d, n in enumerate(x.shape) if keep or d not in gone), x)


def _cat(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    if kwargs or not args[0]:
        return None
    tensors, dim = args[0], args[1] if len(args) > 1 else 0
    first = tensors[0]
    rank = first.dim()
    if rank not in (2, 3, 4) or not -rank <= dim < rank:
        return None
    dim %= rank
    shape, size = list(first.shape), 0
    for tensor in tensors:
        own = list(tensor.shape)
        if len(own) != rank or tensor.dtype != first.dtype or not _plain(tensor) or (rank == 4 and _ambiguous(tensor)):
            return None
        size += own[dim]
        own[dim] = shape[dim]
        if own != shape or 0 in own:
            return None
    shape[dim] = size
    return _empty(tuple(shape), first)


def _attention(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    if len(args) not in (3, 4, 5) or set(kwargs) - {"is_causal", "scale"} or args[4:] not in ((), (0.0,)):
        return None
    query, key, value = args[:3]
    if any(not isinstance(t, Tensor) or t.dim() != 4 or not t.is_floating_point() for t in args[:3]):
        return None
    if len({t.dtype for t in args[:3]}) > 1 or len({t.shape[:2] for t in args[:3]}) > 1:
        return None
    if query.shape[3] != key.shape[3] or key.shape[2] != value.shape[2]:
        return None
    scores = (*query.shape[:3], key.shape[2])
    if len(args) > 3 and args[3] is not None and not _masks(args[3], scores, query, kwargs):
        return None
    return _empty((*query.shape[:3], value.shape[3]), query)


def _masks(mask: Any, scores: tuple[int, ...], query: Tensor, kwargs: dict[str, Any]) -> bool:
    """Return whether a mask of attention fits scores of this shape."""
    if not isinstance(mask, Tensor) or kwargs.get("is_causal") or mask.dtype not in (torch.bool, query.dtype):
        return False
    sizes = (*(1,) * (4 - mask.dim()), *mask.shape)
    return len(sizes) == 4 and all(own in (1, size) for own, size in zip(sizes, scores, strict=True))


def _recurrent(gates: int) -> Quick:
    """``lstm``, ``gru``, ``rnn_*``, which PyTorch takes apart step by step."""

    def rule(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Answer:
        if len(args) != 9 or kwargs or args[6]:  # training: dropout
            return None
        x, hx, weights, biases, layers, _, _, both, first = args
        states = tuple(hx) if isinstance(hx, list | tuple) else (hx,)
        if not all(isinstance(t, Tensor) and _plain(t) and t.dim() == 3 for t in states) or x.dim() != 3:
            return None
        if not x.is_floating_point() or any(t.dtype != x.dtype for t in (*states, *weights)):
            return None
        directions = 2 if both else 1
        batch, steps = (x.shape[0], x.shape[1]) if first else (x.shape[1], x.shape[0])
        made, width = states[0].shape[2], states[-1].shape[2]
        if any(t.shape[:2] != (layers * directions, batch) for t in states) or not steps or not batch:
            return None
        rows = gates * width
        expected = []
        for layer in range(layers):
            inside = made * directions if layer else x.shape[2]
            own = [(rows, inside), (rows, made), *([(rows,), (rows,)] if biases else [])]
            expected += (own if made == width else [*own, (made, width)]) * directions
        if [tuple(t.shape) for t in weights] != expected:
            return None
        whole = _empty((steps, batch, made * directions), x)
        return (whole.transpose(0, 1) if first else whole, *(_empty(tuple(t.shape), t) for t in states))

    return rule


def _cell(gates: int) -> Quick:
    """``lstm_cell`` and ``gru_cell``, which PyTorch takes apart."""

    def rule(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Answer:
        if len(args) not in (4, 6) or kwargs:
            return None
        x, hx, weights, biases = args[0], args[1], args[2:4], args[4:]
        states = tuple(hx) if isinstance(hx, list | tuple) else (hx,)
        if not all(isinstance(t, Tensor) and _plain(t) and t.dim() == 2 for t in (x, *states)):
            return None
        if any(t is None or t.dtype != x.dtype for t in (*states, *weights, *biases)):
            return None
        made, width = states[0].shape[1], states[-1].shape[1]
        if made != width or any(t.shape[0] != x.shape[0] for t in states):
            return None
        shapes = [(gates * width, x.shape[1]), (gates * width, width), *[(gates * width,)] * len(biases)]
        if [tuple(t.shape) for t in (*weights, *biases)] != shapes:
            return None
        found = tuple(_empty(tuple(t.shape), t) for t in states)
        return found if isinstance(hx, list | tuple) else found[0]

    return rule


def _upsample(scales: int) -> Quick:
    """``upsample_*2d.vec``; ``scales`` is where the factors stand."""

    def rule(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Answer:
        if len(args) < 2 or kwargs:
            return None
        x, size = args[0], args[1]
        factors = args[scales] if len(args) > scales else None
        if not _plain(x) or x.dim() != 4 or 0 in x.shape or _ambiguous(x) or (size is None) == (factors is None):
            return None
        if factors is not None:
            if len(factors) != 2 or any(factor != int(factor) or factor < 1 for factor in factors):
                return None  # rounded down in one precision or the other
            size = [side * int(factor) for side, factor in zip(x.shape[2:], factors, strict=True)]
        if size is None or len(size) != 2 or any(type(side) is not int or side < 1 for side in size):
            return None
        return _empty((*x.shape[:2], *size), x)

    return rule


def _contiguous(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    x = args[0]
    if len(args) != 1 or kwargs or not isinstance(x, Tensor) or x.is_contiguous():
        return None
    return _empty(tuple(x.shape), x)


def _triangle(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    x = args[0]
    return _empty(tuple(x.shape), x) if _plain(x) and x.dim() >= 2 and not kwargs else None


def _empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Return a contiguous tensor; ``empty_like`` is slow on meta, and imports a compiler's worth of modules."""
    return torch.empty(shape, dtype=like.dtype, device=like.device)


def _ambiguous(x: Tensor) -> bool:
    """Return whether a contiguous image is laid out channels-last as well: PyTorch then looks closer at its strides."""
    return x.is_contiguous(memory_format=torch.channels_last)


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
    """Return whether ``x`` is a floating tensor with the strides of a fresh one, also along dimensions of size one."""
    if not x.is_floating_point():
        return False
    expected = 1
    for size, stride in zip(reversed(x.shape), reversed(x.stride()), strict=True):
        if stride != expected:
            return False
        expected *= max(size, 1)
    return True


def _rules() -> dict[Any, Quick]:
    aten = torch.ops.aten
    rules: dict[Any, Quick] = {
        aten.batch_norm.default: _batch_norm,
        aten.layer_norm.default: _layer_norm,
        aten.linear.default: _linear,
        aten.conv2d.default: _conv2d,
        aten.adaptive_avg_pool2d.default: _pool_to_one,
        aten.max_pool2d.default: _max_pool2d,
        aten.mean.dim: _mean,
        aten.cat.default: _cat,
        aten.scaled_dot_product_attention.default: _attention,
        aten.lstm.input: _recurrent(4),
        aten.gru.input: _recurrent(3),
        aten.rnn_tanh.input: _recurrent(1),
        aten.rnn_relu.input: _recurrent(1),
        aten.lstm_cell.default: _cell(4),
        aten.gru_cell.default: _cell(3),
        aten.upsample_bilinear2d.vec: _upsample(3),
        aten.upsample_nearest2d.vec: _upsample(2),
        aten.contiguous.default: _contiguous,
        aten.triu.default: _triangle,
        aten.tril.default: _triangle,
    }
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
