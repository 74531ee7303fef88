"""A layer as a matrix product: each output position is the weight times a column of inputs.

Linear layers and convolutions of one and two dimensions, with groups, strides, dilation and padding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, fx
from torch.nn import functional

from slim_quant.graph import argument, op_name

_CONVOLUTIONS = ("aten.conv1d.", "aten.conv2d.")
_LINEAR = "aten.linear.default"


def is_product(node: fx.Node) -> bool:
    """Tell whether a layer is one that :func:`input_columns` takes."""
    return op_name(node) == _LINEAR or op_name(node).startswith(_CONVOLUTIONS)


def groups_of(node: fx.Node) -> int:
    """Return the number of groups of a layer."""
    return 1 if op_name(node) == _LINEAR else int(argument(node, 6, 1))


def input_columns(node: fx.Node, values: Mapping[fx.Node, Any], weight: Tensor) -> Tensor:
    """Return what each output of a layer is a product of its weight with: (groups, inputs, positions).

    Args:
        node: the layer.
        values: has the value that it reads.
        weight: its weight, for its shape.
    """
    source = node.args[0]
    assert isinstance(source, fx.Node)  # noqa: S101 - a quantized layer reads an activation
    x: Tensor = values[source]
    if op_name(node) == _LINEAR:
        return x.reshape(-1, x.shape[-1]).T.unsqueeze(0)
    kernel, stride, padding, dilation = list(weight.shape[2:]), *_geometry(node, weight.dim() - 2)
    if isinstance(padding, str):
        x, padding = _padded(x, padding, kernel, dilation), [0] * len(kernel)
    if len(kernel) == 1:
        x = x.unsqueeze(2)
        kernel, stride, padding, dilation = [1, *kernel], [1, *stride], [0, *padding], [1, *dilation]
    groups, inputs = groups_of(node), weight[0].numel()
    if kernel == [1, 1] and stride == [1, 1] and padding == [0, 0]:
        columns = x.flatten(2)
    else:
        columns = functional.unfold(x, tuple(kernel), tuple(dilation), tuple(padding), tuple(stride))
    return columns.reshape(len(x), groups, inputs, -1).permute(1, 2, 0, 3).reshape(groups, inputs, -1)


def output_columns(node: fx.Node, value: Tensor) -> Tensor:
    """Return a layer's output, position by position as :func:`input_columns`: (groups, outputs, positions)."""
    if op_name(node) == _LINEAR:
        return value.reshape(-1, value.shape[-1]).T.unsqueeze(0)
    groups = groups_of(node)
    outputs = value.shape[1] // groups
    return value.reshape(len(value), groups, outputs, -1).permute(1, 2, 0, 3).reshape(groups, outputs, -1)


def _geometry(node: fx.Node, dimensions: int) -> tuple[list[int], Any, list[int]]:
    stride, padding, dilation = (argument(node, at, default) for at, default in ((3, 1), (4, 0), (5, 1)))
    whole = padding if isinstance(padding, str) else _each(padding, dimensions)
    return _each(stride, dimensions), whole, _each(dilation, dimensions)


def _each(value: Any, count: int) -> list[int]:
    given = list(value) if isinstance(value, list | tuple) else [value]
    return given * count if len(given) == 1 else given


def _padded(x: Tensor, padding: str, kernel: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """Return ``x`` with zeros around, as a convolution with padding ``"same"`` or ``"valid"`` sees it."""
    if padding == "valid":
        return x
    around: list[int] = []
    for size, step in zip(reversed(kernel), reversed(dilation), strict=True):
        whole = step * (size - 1)
        around += [whole // 2, whole - whole // 2]
    return functional.pad(x, around)
