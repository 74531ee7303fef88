"""Batch norm folded into the convolution or linear layer before it, exactly, on an exported graph."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from slim_core.graph.export import ExportedModel
from slim_quant.graph import argument, drop_tensor, get_tensor, op_name, owner_of, read_tensor, set_tensor

#: operator -> (position of the bias argument, weight axis of the output channels)
FOLDABLE = {
    "aten.conv1d.default": (2, 0), "aten.conv2d.default": (2, 0), "aten.conv3d.default": (2, 0),
    "aten.conv1d.padding": (2, 0), "aten.conv2d.padding": (2, 0), "aten.conv3d.padding": (2, 0),
    "aten.linear.default": (2, 0),
    "aten.conv_transpose1d.default": (2, 1), "aten.conv_transpose2d.input": (2, 1),
    "aten.conv_transpose3d.input": (2, 1),
}  # fmt: skip
BATCH_NORM = "aten.batch_norm.default"


def fold_batch_norms(model: ExportedModel) -> tuple[str, ...]:
    """Fold every batch norm that follows a convolution or linear layer; edit ``model`` in place.

    Works on meta tensors too: then only names and shapes change.

    Returns:
        One line for each batch norm that stays, with the reason.
    """
    notes = []
    for norm in [node for node in model.graph.nodes if op_name(node) == BATCH_NORM]:
        reason = obstacle(norm)
        if reason is None:
            _fold(model, norm)
        else:
            notes.append(f"batch norm {_norm_name(norm)} stays: {reason}")
    model.recompile()
    return tuple(notes)


def folded(
    weight: Tensor, bias: Tensor | None, mean: Tensor, var: Tensor, gain: Tensor | None, shift: Tensor | None,
    eps: float, axis: int = 0, groups: int = 1,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return weight and bias of the layer that computes layer and batch norm in one, calculated in float64."""
    factor = (1.0 if gain is None else gain.double()) / torch.sqrt(var.double() + eps)
    shape = [1] * weight.dim()
    if axis == 0:
        shape[0] = -1
        wide = weight.double() * factor.view(shape)
    else:  # transposed: (in, out / groups, …), output channel g * (out / groups) + j
        rows = weight.double().view(groups, weight.shape[0] // groups, *weight.shape[1:])
        wide = (rows * factor.view(groups, 1, -1, *[1] * (weight.dim() - 2))).view(weight.shape)
    moved = (0.0 if bias is None else bias.double()) - mean.double()
    return wide.to(weight.dtype), (moved * factor + (0.0 if shift is None else shift.double())).to(weight.dtype)


def obstacle(norm: fx.Node) -> str | None:
    """Return why a batch norm cannot be folded, or ``None``."""
    layer = norm.args[0]
    if not isinstance(layer, fx.Node) or op_name(layer) not in FOLDABLE:
        return "it does not follow a convolution or linear layer"
    if owner_of(norm.args[3]) is None or owner_of(norm.args[4]) is None:
        return "it has no running statistics"
    if norm.args[5]:
        return "it is in training mode"
    if len(layer.users) > 1:
        return "the layer before it is used elsewhere too"
    weight = layer.args[1]
    if owner_of(weight) is None or len(weight.users) > 1:  # type: ignore[union-attr]
        return "the weight before it is shared or computed"
    if (
        op_name(layer) == "aten.linear.default"
        and isinstance(value := layer.meta.get("val"), Tensor)
        and value.dim() != 2
    ):
        return "its channels are not the linear layer's outputs"
    return None


def _fold(model: ExportedModel, norm: fx.Node) -> None:
    layer = norm.args[0]
    assert isinstance(layer, fx.Node)  # noqa: S101 - checked by obstacle
    position, axis = FOLDABLE[op_name(layer)]
    weight_name, bias_node = str(owner_of(layer.args[1])), argument(layer, position)
    bias_name = owner_of(bias_node)
    gain, shift, mean, var = (None if owner_of(node) is None else get_tensor(model, str(owner_of(node)))
                              for node in norm.args[1:5])  # fmt: skip
    weight = get_tensor(model, weight_name)
    assert mean is not None  # noqa: S101 - checked by obstacle
    assert var is not None  # noqa: S101
    with torch.no_grad():
        new_weight, new_bias = folded(
            weight, None if bias_name is None else get_tensor(model, bias_name), mean, var, gain, shift,
            float(norm.args[7]), axis, int(argument(layer, 6, 1)) if axis == 1 else 1,  # type: ignore[arg-type]
        )  # fmt: skip
    set_tensor(model, weight_name, nn.Parameter(new_weight, requires_grad=weight.requires_grad))
    shared = bias_name is not None and len(bias_node.users) > 1
    if bias_name is None or shared:
        bias_name = _free_name(model, f"{weight_name.removesuffix('weight')}bias")
        set_tensor(model, bias_name, nn.Parameter(new_bias, requires_grad=weight.requires_grad))
        args = list(layer.args) + [None] * (position + 1 - len(layer.args))
        args[position] = read_tensor(model, bias_name, layer)
        layer.args = tuple(args)
    else:
        set_tensor(model, bias_name, nn.Parameter(new_bias, requires_grad=weight.requires_grad))
    layer.meta["statistics"] = _statistics(new_bias, gain, shift)
    norm.replace_all_uses_with(layer)
    names = [owner_of(node) for node in norm.args[1:5]]
    model.graph.erase_node(norm)
    counter = str(names[2]).removesuffix("running_mean") + "num_batches_tracked"
    for name in [*(name for name in names if name), counter]:
        if not any(node.target == name and node.users for node in model.graph.nodes if node.op == "get_attr"):
            _drop_if_there(model, name)


def _statistics(bias: Tensor, gain: Tensor | None, shift: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each channel of the norm's output, on what it was trained with."""
    mean = torch.zeros_like(bias) if shift is None else shift.detach().clone()
    return mean.detach(), (torch.ones_like(bias) if gain is None else gain.detach().abs()).detach()


def _drop_if_there(model: ExportedModel, name: str) -> None:
    try:
        get_tensor(model, name)
    except AttributeError:
        return
    drop_tensor(model, name)


def _free_name(model: ExportedModel, name: str) -> str:
    taken = {*dict(model.named_parameters(remove_duplicate=False)), *dict(model.named_buffers(remove_duplicate=False))}
    while name in taken:
        name += "_folded"
    return name


def _norm_name(norm: fx.Node) -> str:
    mean = owner_of(norm.args[3])
    return mean.removesuffix(".running_mean") if mean else norm.name
