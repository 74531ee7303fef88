"""The checkpoint transform ``quant.static``: what was quantized how, and how to build the same graph again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from slim_core.errors import CheckpointError, ModelError
from slim_core.graph.export import ExportedModel, export_graph
from slim_core.workload import Inputs, Transform
from slim_quant.edits import apply_edits
from slim_quant.fold import fold_batch_norms
from slim_quant.graph import get_tensor, tied_names
from slim_quant.insert import insert, scale_name, zero_point_name
from slim_quant.placement import Placement, WeightPlace
from slim_quant.reading import KIND, read_static
from slim_quant.schemes import ACTIVATION, Scheme, scale_shape

#: 2 added schemes of single activations, groups and edits; what 1 says means the same in 2
SCHEMA = 2


def describe(
    model: ExportedModel, placement: Placement, activations: Mapping[str, Scheme], weights: Mapping[str, Scheme], *,
    target: str, activation: Scheme = ACTIVATION, edits: Sequence[Mapping[str, Any]] = (),
) -> Transform:  # fmt: skip
    """Return the transform of a quantized graph.

    It has no tensors of its own: its schemes name the scales and zero points that the graph keeps in its state dict.

    Args:
        model: the graph.
        placement: where its quantizers are.
        activations: schemes by name of the scale's node.
        weights: schemes by weight name.
        target: the runtime that it is for.
        activation: the scheme that most activations have; the others are named.
        edits: what :mod:`slim_quant.edits` must do before the quantizers are inserted.
    """
    places = {place.name: place for place in placement.weights}
    schemes: dict[str, dict[str, Any]] = {}
    for name, scheme in weights.items():
        for tied in tied_names(model, name):
            schemes[tied] = scheme.to_json() | {
                "axis": places[name].along(scheme),
                "packing": _packing(scheme),
                "scale": scale_name(name),
            }
            if not scheme.symmetric:
                schemes[tied]["zero_point"] = zero_point_name(name)
    data: dict[str, Any] = {
        "target": target,
        "activation": activation.to_json(),
        "placement": placement.to_json(),
        "schemes": schemes,
    }
    others = {name: scheme.to_json() for name, scheme in activations.items() if scheme != activation}
    if others:
        data["activations"] = others
    if edits:
        data["edits"] = [dict(edit) for edit in edits]
    return Transform(KIND, SCHEMA, data)


class StaticReplayer:
    """Builds the quantized graph again, from a model on the meta device: names and shapes only."""

    def replay(self, model: nn.Module, transform: Transform, example_inputs: Inputs) -> nn.Module:
        """Return the graph of ``model`` with batch norms folded and the recorded quantizers inserted.

        Raises:
            CheckpointError: the record is malformed or does not fit the model.
        """
        if transform.schema not in (1, SCHEMA):
            raise CheckpointError(
                f"schema {transform.schema} is not known", field=KIND, hint="a newer slim-quant wrote it: upgrade"
            )
        record = read_static(transform.data, transform.schema)
        graph = export_graph(model, example_inputs, copy=False)
        fold_batch_norms(graph)
        try:
            apply_edits(graph, record.edits)
            device = next((tensor.device for tensor in model.parameters()), torch.device("meta"))
            scales = {place.scale: _empty((), device) for place in record.placement.activations}
            shapes = {
                place.name: _shape(graph, place, record.weights[place.name]) for place in record.placement.weights
            }
            channels = {name: _empty(shape, device) for name, shape in shapes.items()}
            insert(graph, record.placement, scales, channels, record.activations, record.weights)
        except (KeyError, IndexError, AttributeError, ModelError) as error:
            raise CheckpointError(f"does not fit the model: {error}", field=KIND) from error
        return graph


def _shape(model: ExportedModel, place: WeightPlace, scheme: Scheme) -> tuple[int, ...]:
    shape = tuple(get_tensor(model, place.name).shape)
    if scheme.granularity == "per_group" and len(shape) != 2:
        raise ModelError(f"'{place.name}' is no matrix, which quantization per group needs")
    return scale_shape(shape, scheme, place.along(scheme))


def _empty(shape: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.ones(shape, device=device), torch.zeros(shape, dtype=torch.int32, device=device)


def _packing(scheme: Scheme) -> str:
    if scheme.bits <= 4 and scheme.symmetric:
        return "int4"
    return "int8" if scheme.symmetric else "uint8"
