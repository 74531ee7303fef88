"""``prepare_qat``: a model with fake-quantizers that trains. What it becomes after training is in ``conversion.py``.

The graph keeps the names of the float model's parameters and buffers, batch norms included; quantizers are submodules
beside them: ``<weight>_quantizer``, ``<batch norm>.live_norm`` and ``activation_quantizer.<node>``.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from torch import fx, nn

from slim_core.errors import ModelError, SlimError
from slim_core.graph.export import ExportedModel, export_graph
from slim_core.named import Named
from slim_core.progress import Progress
from slim_core.workload import Inputs
from slim_quant.calibration import CalibrationData
from slim_quant.fold import BATCH_NORM, FOLDABLE, fold_batch_norms, obstacle
from slim_quant.graph import argument, get_tensor, op_name, owner_of, read_tensor, weight_position
from slim_quant.observers import check_observer
from slim_quant.overrides import Override
from slim_quant.placement import ActivationPlace, Placement, WeightPlace
from slim_quant.preparation import Prepared, prepare
from slim_quant.qat.activations import DECAY, INF, ActivationQuantizer, make_quantizer
from slim_quant.qat.phases import META, attach, initialize
from slim_quant.qat.spec import BatchNorm, QATSpec, Quantizer, Strategy, check_word
from slim_quant.qat.weights import BiasQuantizer, LayerCall, LiveNorm, Norm, WeightQuantizer
from slim_quant.schemes import ACTIVATION, WEIGHT, Scheme, scale_shape
from slim_quant.targets import PASSING, TRANSPOSED, Target

#: where the quantizers of activations are among the model's submodules
ACTIVATION_QUANTIZERS = "activation_quantizer"
#: where those of biases are
BIAS_QUANTIZERS = "bias_quantizer"
#: under which name a node keeps the ReLU that its quantizer does, in ``node.meta``
CLIPPED = "slim_qat_clipped"


def prepare_qat(
    model: nn.Module,
    example_inputs: Inputs,
    *,
    target: str | Target = "onnxruntime",
    weight: Scheme = WEIGHT,
    activation: Scheme = ACTIVATION,
    strategy: Strategy = "static",
    quantizer: Quantizer = "moving_average",
    batch_norm: BatchNorm = "live",
    overrides: Sequence[Override] = (),
    skip: Sequence[str] = (),
    decay: float = DECAY,
    calibration: Iterable[Any] | None = None,
    observer: Named | None = None,
    weight_observer: str = "mse",
    samples: int = 256,
    progress: Progress | None = None,
) -> ExportedModel:
    """Return a copy of ``model`` that computes as its int8 form will, and trains like any module.

    It is in training mode if ``model`` is. :func:`slim_quant.qat.convert` makes the quantized model of it.

    Args:
        model: any model that ``torch.export`` accepts; best a trained one. It is not changed.
        example_inputs: inputs to export the model with.
        target: runtime that the placement is for.
        weight: scheme of the weights.
        activation: scheme of the activations; one scale per tensor.
        strategy: ``"static"``: scales are found in training and fixed after it. ``"dynamic"``: activations have the
            scale of the batch at hand, in training and after it; only inputs of layers with weights are quantized.
        quantizer: how scales are found. ``"moving_average"``: a moving average of the batches' extremes, and weights by
            their largest values; ``"lsq"``: learned with the weights (Esser et al., 2020, arXiv 1902.08153);
            ``"lsq+"``: with a learned offset of activations (Bhalgat et al., 2020, arXiv 2004.09576); ``"pact"``:
            learned clipping of activations (Choi et al., 2018, arXiv 1805.06085), weights by their largest values.
        batch_norm: ``"live"`` normalizes with the batch's statistics until frozen; ``"batch"`` folds with the batch's
            statistics, by a second convolution; ``"folded"`` folds now, for good. See :mod:`slim_quant.qat.weights`.
        overrides: other settings for single layers: schemes and skips.
        skip: globs over layer names, or ``"op:add"``, that stay in float.
        decay: share of the old range that stays at each batch, of moving averages.
        calibration: batches of what the forward takes, to find the ranges that training begins with; without them the
            first batch in training does.
        observer: how these ranges are found; ``None``: ``"min_max"`` for moving averages, ``"mse"`` for learned scales.
        weight_observer: how the learned scales of weights begin: ``"abs_max"`` or ``"mse"``.
        samples: how many samples of ``calibration`` to take.
        progress: where to report to.

    Raises:
        ModelError: the model cannot be exported, or is quantized already.
        PatternError: a pattern matches nothing.
        DataError: ``calibration`` gives no batch, or values that are not finite.
        UnknownNameError: an unknown target or observer.
        SlimError: an unknown word, activations per channel, or a weight that is no matrix per group.
    """
    for value, known, what in (
        (strategy, Strategy, "strategy"), (quantizer, Quantizer, "quantizer"), (batch_norm, BatchNorm, "batch_norm"),
    ):  # fmt: skip
        check_word(value, known, what)
    if not 0 <= decay < 1:
        raise SlimError(f"decay is a share in [0, 1), not {decay}")
    if observer is not None:
        check_observer(observer)
    if isinstance(model, ExportedModel) and META in model.meta:
        raise ModelError("the model is prepared for training-aware quantization already", hint="train it")
    mode = model.training
    graph = export_graph(model, example_inputs)
    prepared = prepare(
        graph, example_inputs, target=target, weight=weight, activation=activation, overrides=overrides, skip=skip
    )
    spec = _spec(prepared, strategy, quantizer, batch_norm, decay, observer)
    build(graph, spec)
    for module, source in _learning(graph):
        module.begin(*source, weight_observer)
    if calibration is not None and strategy == "static":
        initialize(graph, CalibrationData(calibration, samples), progress=progress)
    return graph.train(mode)


def build(graph: ExportedModel, spec: QATSpec) -> None:
    """Put the quantizers of ``spec`` into an exported graph with its batch norms; works on meta tensors too.

    Raises:
        ModelError: the graph lacks a recorded node, or one is something else.
    """
    if spec.batch_norm == "folded":
        fold_batch_norms(graph)
    device = next((tensor.device for tensor in graph.parameters()), torch.device("cpu"))
    nodes = {node.name: node for node in graph.graph.nodes}
    norms = foldable(graph)
    folds = set(norms.values())
    ends = {node.name: norms.get(node, node) for node in nodes.values() if node not in folds}
    _check(nodes, spec.placement)
    places = _places(nodes, ends, spec)
    for scale, scheme in {item.scale: scheme for item, scheme in places.items()}.items():
        made = make_quantizer(spec.activation_quantizer, scheme, device, spec.decay)
        graph.add_submodule(f"{ACTIVATION_QUANTIZERS}.{scale}", made)
    showing = _showing(nodes, places, spec.target)
    for item in places:
        _insert_activation(graph, ends[item.node], item, item.node in showing)
    placed = {layer: item for item in spec.placement.weights for layer in item.layers}
    for weight in spec.placement.weights:
        layers = [nodes[name] for name in weight.layers]
        norm = norms.get(layers[0]) if len(layers) == 1 else None
        _insert_weight(graph, weight.name, layers, norm, weight, spec, device)
    for layer, norm in norms.items():
        if layer.name not in placed:  # stays in float, and is folded all the same
            position = weight_position(layer)
            _insert_weight(graph, str(owner_of(layer.args[position])), [layer], norm, None, spec, device)
    if spec.target.integer_bias and spec.strategy == "static":
        _insert_biases(graph, spec)
    attach(graph, device)
    graph.meta[META] = spec
    graph.graph.lint()
    graph.recompile()


def foldable(graph: ExportedModel) -> dict[fx.Node, fx.Node]:
    """Return the batch norms that can be folded, by the layer before them."""
    norms = [node for node in graph.graph.nodes if op_name(node) == BATCH_NORM]
    return {cast(fx.Node, node.args[0]): node for node in norms if obstacle(node) is None}


def settings_of(layer: fx.Node, norm: fx.Node, *, batch: bool) -> Norm:
    """Return the settings of the batch norm after a layer."""
    axis = FOLDABLE[op_name(layer)][1]
    groups = int(argument(layer, 6, 1)) if axis == 1 else 1
    return Norm(float(norm.args[6]), float(norm.args[7]), groups, axis, batch)  # type: ignore[arg-type]


def _spec(
    prepared: Prepared, strategy: Strategy, quantizer: Quantizer, batch_norm: BatchNorm, decay: float,
    observer: Named | None,
) -> QATSpec:  # fmt: skip
    if observer is None:
        observer = "min_max" if quantizer == "moving_average" else "mse"
    return QATSpec(
        prepared.placement, dict(prepared.weights), dict(prepared.activations), prepared.target, strategy, quantizer,
        batch_norm, decay, observer, prepared.activation, tuple(prepared.notes),
    )  # fmt: skip


def _places(nodes: dict[str, fx.Node], ends: dict[str, fx.Node], spec: QATSpec) -> dict[ActivationPlace, Scheme]:
    """Return where activations are quantized in training; dynamically, only what layers with weights read."""
    scales = {item.node: item.scale for item in spec.placement.activations}
    if spec.strategy == "static":
        return {item: spec.activations[item.scale] for item in spec.placement.activations}
    names = {end: name for name, end in ends.items()}
    read = {nodes[layer].args[0] for item in spec.placement.weights for layer in item.layers}
    found = [names.get(node, node.name) for node in ends.values() if node in read]
    return {
        ActivationPlace(name, name): spec.activations.get(scales.get(name, ""), spec.activation)
        for name in dict.fromkeys(found)
    }


def _check(nodes: dict[str, fx.Node], placement: Placement) -> None:
    names = [name for item in placement.activations for name in (item.node, item.scale)]
    names += [layer for item in placement.weights for layer in item.layers]
    missing = [name for name in names if name not in nodes]
    hint = "the model, its example inputs or the torch version differ from those of the preparation"
    if missing:
        raise ModelError(f"the exported graph has no node '{missing[0]}', which the preparation recorded", hint=hint)
    for item in placement.weights:
        for layer in item.layers:
            node = nodes[layer]
            if node.op != "call_function" or owner_of(argument(node, weight_position(node))) != item.name:
                raise ModelError(f"'{layer}' of the exported graph does not use the weight '{item.name}'", hint=hint)


def _showing(nodes: dict[str, fx.Node], places: Iterable[ActivationPlace], target: Target) -> set[str]:
    """Return the nodes that show what their scale is for: concatenations, or where values are made."""
    found: set[str] = set()
    for scale in dict.fromkeys(item.scale for item in places):
        members = [item.node for item in places if item.scale == scale]
        joined = [name for name in members if op_name(nodes[name]) in target.concat]
        made = [name for name in members if op_name(nodes[name]) not in PASSING]
        found.update(joined or made or members)
    return found


def _insert_activation(graph: ExportedModel, node: fx.Node, item: ActivationPlace, observe: bool) -> None:
    clip = _clip(node)
    if clip is not None:  # the quantizer does the ReLU too, under its name
        node.meta[CLIPPED] = (node.target, node.args[1:])
        node.op, node.target = "call_module", f"{ACTIVATION_QUANTIZERS}.{item.scale}"
        node.args = (node.args[0], observe, *clip)
        return
    users = list(node.users)
    after = node
    while node.op == "placeholder" and after.next.op == "placeholder":  # inputs stay together
        after = after.next
    with graph.graph.inserting_after(after):
        fake = graph.graph.call_module(f"{ACTIVATION_QUANTIZERS}.{item.scale}", (node, observe))
    fake.meta["val"] = node.meta.get("val")
    for user in users:
        user.replace_input_with(node, fake)


def _clip(node: fx.Node) -> tuple[float, float] | None:
    """Return the ends of a ReLU, whatever it is called; ``None`` for everything else."""
    name, ends = op_name(node), node.args[1:]
    if node.kwargs or not all(isinstance(end, int | float) for end in ends):
        return None
    if name == "aten.relu.default":
        return 0.0, INF
    if name == "aten.relu6.default":
        return 0.0, 6.0
    if name == "aten.hardtanh.default":
        given = dict(enumerate(ends))
        return float(given.get(0, -1.0)), float(given.get(1, 1.0))  # type: ignore[arg-type]
    return None


def _insert_weight(
    graph: ExportedModel, name: str, layers: list[fx.Node], norm: fx.Node | None, item: WeightPlace | None,
    spec: QATSpec, device: torch.device,
) -> None:  # fmt: skip
    scheme = spec.weights[name] if item is not None else None
    layer, weight = layers[0], get_tensor(graph, name)
    position = weight_position(layer)
    axis = item.along(scheme) if item is not None and scheme is not None else 0
    learned = scale_shape(tuple(weight.shape), scheme, axis) if spec.learned and scheme is not None else None
    settings = None if norm is None else settings_of(layer, norm, batch=spec.batch_norm == "batch")
    call = None
    if settings is not None and settings.batch:
        call = LayerCall(layer.target, tuple(layer.args[3:]))  # type: ignore[arg-type]
    path = f"{name}_quantizer"
    made = WeightQuantizer(scheme, axis, settings, learned=learned, layer=call, device=device)
    graph.add_submodule(path, made)
    first = min(layers, key=list(graph.graph.nodes).index)
    if norm is None:
        with graph.graph.inserting_before(first):
            fake = graph.graph.call_module(path, (read_tensor(graph, name, first),))
        fake.meta["val"] = weight.detach()
        for user in layers:
            user.args = (*user.args[:position], fake, *user.args[position + 1 :])
        return
    _insert_folded(graph, path, name, layer, norm, made)


def _insert_folded(
    graph: ExportedModel, path: str, name: str, layer: fx.Node, norm: fx.Node, made: WeightQuantizer
) -> None:
    assert made.norm is not None  # noqa: S101 - the caller has one
    bias, mean = owner_of(argument(layer, 2)), str(owner_of(norm.args[3]))
    names = [name, bias, *(owner_of(node) for node in norm.args[1:5])]
    reads = [None if item is None else read_tensor(graph, item, layer) for item in names]
    with graph.graph.inserting_before(layer):
        pair = graph.graph.call_module(path, (*reads, *([layer.args[0]] if made.norm.batch else [])))
        parts = [graph.graph.call_function(operator.getitem, (pair, index)) for index in range(2)]
    parts[0].meta["val"] = get_tensor(graph, name).detach()
    layer.args = (layer.args[0], *parts, *layer.args[3:])
    if made.norm.batch:
        norm.replace_all_uses_with(layer)
        graph.graph.erase_node(norm)
        return
    live = mean.removesuffix("running_mean") + "live_norm"
    graph.add_submodule(live, LiveNorm(made.norm))
    with graph.graph.inserting_after(norm):
        put = graph.graph.call_module(live, norm.args[:5])
    put.meta["val"] = norm.meta.get("val")
    norm.replace_all_uses_with(put)
    graph.graph.erase_node(norm)


def _insert_biases(graph: ExportedModel, spec: QATSpec) -> None:
    nodes = {node.name: node for node in graph.graph.nodes}
    for item in spec.placement.weights:
        for layer in (nodes[name] for name in item.layers):
            source, bias = layer.args[0], argument(layer, 2)
            read = graph.get_submodule(str(source.target)) if source.op == "call_module" else None
            shared = owner_of(bias) is not None and len(_readers(graph, str(owner_of(bias)))) > 1
            scheme = spec.weights[item.name]
            channels_in_groups = op_name(layer) in TRANSPOSED and scheme.granularity != "per_tensor"
            if bias is None or shared or channels_in_groups or scheme.granularity == "per_group":
                continue
            if isinstance(read, ActivationQuantizer):
                path = f"{BIAS_QUANTIZERS}.{layer.name}"
                weight = cast(WeightQuantizer, graph.get_submodule(f"{item.name}_quantizer"))
                graph.add_submodule(path, BiasQuantizer(read, weight))
                with graph.graph.inserting_before(layer):
                    fake = graph.graph.call_module(path, (bias,))
                layer.args = (*layer.args[:2], fake, *layer.args[3:])


def _readers(graph: ExportedModel, name: str) -> list[fx.Node]:
    return [user for node in graph.graph.nodes if owner_of(node) == name for user in node.users]


def _learning(graph: ExportedModel) -> Iterable[tuple[WeightQuantizer, tuple[Any, Any, Any]]]:
    """Yield the quantizers of weights with weight, gain and variance."""
    for node in graph.graph.nodes:
        made = graph.get_submodule(node.target) if node.op == "call_module" else None
        if isinstance(made, WeightQuantizer):
            found = [
                None if owner_of(item) is None else get_tensor(graph, str(owner_of(item))) for item in node.args[:6]
            ]
            found += [None] * (6 - len(found))
            yield made, (found[0], found[2], found[5])
