"""``convert``: the quantized model of a trained one, equal to it in evaluation mode."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, fx, nn

from slim_core.errors import DataError, ModelError
from slim_core.graph.export import ExportedModel
from slim_core.named import Named
from slim_core.workload import Inputs
from slim_quant.biases import hold_bias
from slim_quant.calibration import CalibrationData
from slim_quant.fold import fold_batch_norms
from slim_quant.graph import get_tensor, op_name, owner_of, read_tensor, weight_position
from slim_quant.preparation import Calibrated, Prepared, calibrate, finish
from slim_quant.qat.activations import ActivationQuantizer
from slim_quant.qat.phases import META, detach, phase_of, prepared_model
from slim_quant.qat.preparation import ACTIVATION_QUANTIZERS, BIAS_QUANTIZERS, CLIPPED
from slim_quant.qat.spec import QATSpec
from slim_quant.qat.weights import BiasQuantizer, LiveNorm, WeightQuantizer
from slim_quant.result import QuantResult
from slim_quant.targets import LINEAR

if TYPE_CHECKING:
    from slim_quant.weight_only.result import PackedResult

QParams = dict[str, tuple[Tensor, Tensor]]


def convert(
    model: nn.Module, batches: Iterable[Any] | None = None, *, samples: int = 256, observer: Named = "mse"
) -> QuantResult:
    """Return the quantized model of a trained one: what is exported, deployed and stored as integers.

    With the static strategy it computes what ``model`` computes in evaluation mode, to the bit. With the dynamic one it
    gets scales that are found on ``batches``, since convolutions with scales of the batch have no integer form on any
    runtime; linear layers have one: see :func:`convert_dynamic`.

    Args:
        model: what :func:`slim_quant.prepare_qat` returned, trained; wrapped or not. It is not changed.
        batches: batches of what the forward takes; the report compares float and quantized layers on a few samples of
            them. Without them the report has no comparison.
        samples: how many of their samples are used.
        observer: of the dynamic strategy: how the ranges of activations are found.

    Raises:
        ModelError: the model is not prepared, or has no ranges of activations: it was never trained nor calibrated.
        DataError: the dynamic strategy is given no batches.
    """
    source = prepared_model(model)
    spec: QATSpec = source.meta[META]
    phase = phase_of(source)
    if not phase.ready:
        raise ModelError(
            "the model has no ranges of activations yet",
            hint="train it, or call slim_quant.qat.initialize(model, batches) first",
        )
    dynamic = spec.strategy == "dynamic"
    if dynamic and batches is None:
        raise DataError(
            "a model that was trained with the dynamic strategy needs batches to find fixed scales on",
            hint="convert(model, batches), or, for linear layers, convert_dynamic(model, float_model, example_inputs)",
        )
    data = CalibrationData([torch.zeros(1)]).subset(0) if batches is None else CalibrationData(batches, samples)
    graph = copy.deepcopy(source).eval()
    with torch.no_grad():
        activations, weights = {} if dynamic else _activations(graph), _weights(graph)
    plain(graph, spec)
    notes = [*spec.notes]
    if not phase.quantize:
        notes.append("quantization had not begun when training ended: the weights were never trained with it")
    prepared = Prepared(
        graph, spec.placement, dict(spec.weights), dict(spec.activations), spec.target, notes,
        activation=spec.activation,
    )  # fmt: skip
    if dynamic:
        notes.append(f"trained with scales of each batch; the scales are those of {len(data)} samples")
        activations = calibrate(prepared, data, observer=observer).activations
    for item in spec.placement.weights:
        scale, zero_point = weights[item.name]
        held = hold_bias(graph, spec.placement, item.name, activations, scale)
        if not torch.equal(held, scale):
            notes.append(f"the scales of {item.name} were widened: its bias would not fit in int32")
        weights[item.name] = held, zero_point
    reference = {name: tensor.detach().clone() for name, tensor in graph.named_parameters()}
    return finish(Calibrated(prepared, activations, weights, len(data), data, reference))


def convert_dynamic(model: nn.Module, float_model: nn.Module, example_inputs: Inputs, **options: Any) -> PackedResult:
    """Return ``float_model`` with the trained weights and int8 products of scales of the batch at hand.

    It computes what ``model`` computes in evaluation mode, up to the rounding of float sums.

    Args:
        model: what :func:`slim_quant.prepare_qat` returned, with the dynamic strategy, trained. It is not changed.
        float_model: the model that was prepared; its weights do not matter, and it is not changed.
        example_inputs: inputs to run it with.
        options: see :func:`slim_quant.dynamic.quantize_dynamic`.

    Raises:
        ModelError: the strategy is another, a layer has no such form, or ``float_model`` is another model.
    """
    from slim_quant.dynamic import quantize_dynamic

    source = prepared_model(model)
    spec: QATSpec = source.meta[META]
    nodes = {node.name: node for node in source.graph.nodes}
    layers = [(item.name, op_name(nodes[layer])) for item in spec.placement.weights for layer in item.layers]
    others = sorted({name.removesuffix(".weight") for name, op in layers if op not in LINEAR})
    if spec.strategy != "dynamic" or spec.learned or others:
        what = f"{others[0]} is no linear layer" if others else "it was not prepared with the dynamic strategy"
        what = "its scales of weights are learned" if spec.learned and spec.strategy == "dynamic" else what
        raise ModelError(
            f"the model has no dynamic int8 form: {what}",
            hint='prepare_qat(model, …, strategy="dynamic", skip=["op:conv"])',
        )
    trained = copy.deepcopy(float_model).eval()
    own, wanted = source.state_dict(), trained.state_dict()
    missing = [name for name in wanted if name not in own or own[name].shape != wanted[name].shape]
    if missing:
        raise ModelError(f"the trained model has no '{missing[0]}' of this shape: float_model is another model")
    trained.load_state_dict({name: own[name] for name in wanted})
    include = sorted({name.removesuffix(".weight") for name, _ in layers})
    return quantize_dynamic(trained, example_inputs, include=include, **options)


def plain(graph: ExportedModel, spec: QATSpec) -> None:
    """Take the quantizers of a prepared graph out again, in place, and fold its batch norms."""
    for node in list(graph.graph.nodes):
        made = graph.get_submodule(node.target) if node.op == "call_module" else None
        if CLIPPED in node.meta:
            target, rest = node.meta.pop(CLIPPED)
            node.op, node.target, node.args = "call_function", target, (node.args[0], *rest)
        elif isinstance(made, ActivationQuantizer | BiasQuantizer):
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
        elif isinstance(made, LiveNorm):
            _restore_norm(graph, node, made)
    for node in list(graph.graph.nodes):
        made = graph.get_submodule(node.target) if node.op == "call_module" else None
        if isinstance(made, WeightQuantizer):
            _restore_layer(graph, node, made)
    ours = ActivationQuantizer | BiasQuantizer | LiveNorm | WeightQuantizer
    paths = [name for name, module in graph.named_modules() if isinstance(module, ours)]
    for path in paths:
        graph.delete_submodule(path)
    for path in (ACTIVATION_QUANTIZERS, BIAS_QUANTIZERS):
        _drop_empty(graph, path)
    detach(graph)
    del graph.meta[META]
    graph.recompile()
    if spec.batch_norm != "folded":
        fold_batch_norms(graph)


def _activations(graph: ExportedModel) -> QParams:
    found = {}
    for name, module in graph.named_modules():
        if isinstance(module, ActivationQuantizer):
            scale, zero_point = module.scale_and_zero_point()
            found[name.rpartition(".")[2]] = scale.detach().clone(), zero_point.to(torch.int32)
    return found


def _weights(graph: ExportedModel) -> QParams:
    found = {}
    for node in graph.graph.nodes:
        made = graph.get_submodule(node.target) if node.op == "call_module" else None
        if not isinstance(made, WeightQuantizer) or made.scheme is None:
            continue
        tensors = [None if owner_of(item) is None else get_tensor(graph, str(owner_of(item))) for item in node.args[:6]]
        scale, zero_point = made.deployed(*cast(list[Tensor], tensors))
        found[str(owner_of(node.args[0]))] = scale.detach().clone(), zero_point.detach().to(torch.int32).clone()
    return found


def _restore_norm(graph: ExportedModel, node: fx.Node, made: LiveNorm) -> None:
    with graph.graph.inserting_after(node):
        arguments = (*node.args[:5], False, made.norm.momentum, made.norm.eps, True)
        norm = graph.graph.call_function(torch.ops.aten.batch_norm.default, arguments)
    norm.meta["val"] = node.meta.get("val")
    node.replace_all_uses_with(norm)
    graph.graph.erase_node(node)


def _restore_layer(graph: ExportedModel, node: fx.Node, made: WeightQuantizer) -> None:
    """Let the layers read the weight itself; put a batch norm back that was folded with the batch's statistics."""
    name = str(owner_of(node.args[0]))
    if made.norm is None:
        for layer in list(node.users):
            position = weight_position(layer)
            layer.args = (*layer.args[:position], read_tensor(graph, name, layer), *layer.args[position + 1 :])
        graph.graph.erase_node(node)
        return
    parts = sorted(node.users, key=lambda part: part.args[1])  # type: ignore[arg-type,return-value]
    (layer,) = {user for part in parts for user in part.users}
    bias = owner_of(node.args[1])
    reads = [read_tensor(graph, name, layer), None if bias is None else read_tensor(graph, bias, layer)]
    layer.args = (layer.args[0], *reads, *layer.args[3:])
    if made.norm.batch:
        users = list(layer.users)
        names = [owner_of(item) for item in node.args[2:6]]
        statistics = [None if item is None else read_tensor(graph, item, layer) for item in names]
        with graph.graph.inserting_after(layer):
            arguments = (layer, *statistics, False, made.norm.momentum, made.norm.eps, True)
            norm = graph.graph.call_function(torch.ops.aten.batch_norm.default, arguments)
        norm.meta["val"] = layer.meta.get("val")
        for user in users:
            user.replace_input_with(layer, norm)
    for part in parts:
        graph.graph.erase_node(part)
    graph.graph.erase_node(node)


def _drop_empty(graph: ExportedModel, path: str) -> None:
    if path in graph._modules and not list(graph.get_submodule(path).children()):
        graph.delete_submodule(path)
