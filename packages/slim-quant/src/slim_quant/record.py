"""The checkpoint transform ``quant.static``: what was quantized how, and how to build the same graph again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from slim_core.errors import CheckpointError, ModelError
from slim_core.graph.export import ExportedModel, export_graph
from slim_core.workload import Inputs, Transform
from slim_quant.fold import fold_batch_norms
from slim_quant.graph import get_tensor, tied_names
from slim_quant.insert import insert, scale_name, zero_point_name
from slim_quant.placement import Placement
from slim_quant.reading import KIND, read_static
from slim_quant.schemes import Scheme

SCHEMA = 1


def describe(
    model: ExportedModel, placement: Placement, activation: Scheme, weights: Mapping[str, Scheme], *, target: str,
) -> Transform:  # fmt: skip
    """Return the transform of a quantized graph.

    It has no tensors of its own: its schemes name the scales and zero points that the graph keeps in its state dict.
    """
    axes = {place.name: place.axis for place in placement.weights}
    schemes: dict[str, dict[str, Any]] = {}
    for name, scheme in weights.items():
        for tied in tied_names(model, name):
            schemes[tied] = {
                "bits": scheme.bits,
                "symmetric": scheme.symmetric,
                "granularity": scheme.granularity,
                "axis": axes[name],
                "packing": _packing(scheme),
                "scale": scale_name(name),
            }
            if not scheme.symmetric:
                schemes[tied]["zero_point"] = zero_point_name(name)
    data = {
        "target": target,
        "activation": _scheme_json(activation),
        "placement": placement.to_json(),
        "schemes": schemes,
    }
    return Transform(KIND, SCHEMA, data)


class StaticReplayer:
    """Builds the quantized graph again, from a model on the meta device: names and shapes only."""

    def replay(self, model: nn.Module, transform: Transform, example_inputs: Inputs) -> nn.Module:
        """Return the graph of ``model`` with batch norms folded and the recorded quantizers inserted.

        Raises:
            CheckpointError: the record is malformed or does not fit the model.
        """
        if transform.schema != SCHEMA:
            raise CheckpointError(
                f"schema {transform.schema} is not known", field=KIND, hint="a newer slim-quant wrote it: upgrade"
            )
        placement, activation, weights = read_static(transform.data)
        graph = export_graph(model, example_inputs, copy=False)
        fold_batch_norms(graph)
        try:
            device = next((tensor.device for tensor in model.parameters()), torch.device("meta"))
            scales = {place.scale: _empty(None, device) for place in placement.activations}
            channels = {
                place.name: _empty(_channels(graph, place.name, place.axis, weights[place.name]), device)
                for place in placement.weights
            }
            insert(graph, placement, scales, channels, activation, weights)
        except (KeyError, IndexError, AttributeError, ModelError) as error:
            raise CheckpointError(f"does not fit the model: {error}", field=KIND) from error
        return graph


def _channels(model: ExportedModel, name: str, axis: int, scheme: Scheme) -> int | None:
    return get_tensor(model, name).shape[axis] if scheme.granularity == "per_channel" else None


def _empty(size: int | None, device: torch.device) -> tuple[Tensor, Tensor]:
    shape = () if size is None else (size,)
    return torch.ones(shape, device=device), torch.zeros(shape, dtype=torch.int32, device=device)


def _packing(scheme: Scheme) -> str:
    if scheme.bits <= 4 and scheme.symmetric:
        return "int4"
    return "int8" if scheme.symmetric else "uint8"


def _scheme_json(scheme: Scheme) -> dict[str, Any]:
    return {"bits": scheme.bits, "symmetric": scheme.symmetric, "granularity": scheme.granularity}
