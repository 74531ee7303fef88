"""The checkpoint transform ``quant.dynamic``: which layers round their inputs, and how to make them do so again.

Its reader is strict, as that of ``quant.weight_only``. There are no scales of activations to store.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from slim_core.checkpoint import limits
from slim_core.checkpoint.node import Node
from slim_core.errors import CheckpointError, ModelError
from slim_core.workload import Inputs, Transform
from slim_quant.dynamic.install import install_products, install_recurrent, install_scopes, recurrent_weights
from slim_quant.dynamic.rounding import Activations
from slim_quant.schemes import Scheme
from slim_quant.weight_only.packed import empty
from slim_quant.weight_only.record import PackedRecord, read_rows, rows_of
from slim_quant.weight_only.rounding import layout_of

KIND = "quant.dynamic"
SCHEMA = 1
_ACTIVATIONS = ("per_tensor", "per_token")
#: the path of the model itself
ROOT = "/"


def describe(
    model: nn.Module, weights: Mapping[str, tuple[str, Scheme, int]], recurrent: Mapping[str, Scheme],
    scopes: Iterable[str], activations: Activations,
) -> Transform:  # fmt: skip
    """Return the transform of a model with dynamic layers.

    Args:
        model: the quantized model.
        weights: kind, scheme and input axis of the weights of linear layers by name, tied names included.
        recurrent: schemes by path of a recurrent layer.
        scopes: paths of modules in whose forward products are found.
        activations: how they are rounded.
    """
    return Transform(KIND, SCHEMA, {
        "activations": activations,
        "weights": rows_of(model, weights),
        "recurrent": [{"path": path or ROOT, **scheme.to_json()} for path, scheme in sorted(recurrent.items())],
        "scopes": sorted(path or ROOT for path in scopes),
    })  # fmt: skip


class DynamicReplayer:
    """Builds the model with dynamic layers again, from a float model on the meta device."""

    def replay(self, model: nn.Module, transform: Transform, example_inputs: Inputs) -> nn.Module:
        """Return ``model`` with its layers made dynamic.

        Raises:
            CheckpointError: the record is malformed or does not fit the model.
        """
        if transform.schema != SCHEMA:
            raise CheckpointError(
                f"schema {transform.schema} is not known", field=KIND, hint="a newer slim-quant wrote it: upgrade"
            )
        fields = Node(transform.data, KIND).record(("activations", "weights", "recurrent", "scopes"))
        activations = fields["activations"].choice(_ACTIVATIONS)
        records = read_rows(fields["weights"])
        recurrent = [_recurrent(item) for item in fields["recurrent"].items(limits.MAX_TENSORS)]
        scopes = [_path(item) for item in fields["scopes"].items(limits.MAX_TENSORS)]
        modules = dict(model.named_modules())
        missing = [path for path in [*scopes, *(path for path, _ in recurrent)] if path not in modules]
        if missing:
            raise CheckpointError(f"the model has no module '{missing[0]}'", field=KIND)
        try:
            for item in records:
                _products(model, item, activations)  # type: ignore[arg-type]
            for path, scheme in recurrent:
                _install(modules[path], path, scheme)
            install_scopes(model, scopes)
        except (AttributeError, ModelError) as error:
            raise CheckpointError(f"does not fit the model: {error}", field=KIND) from error
        return model


def _products(model: nn.Module, item: PackedRecord, activations: Activations) -> None:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    tensor = parameters.get(item.names[0])
    if tensor is None or tensor.dim() != 2 or any(parameters.get(name) is not tensor for name in item.names):
        raise CheckpointError(f"the model has no matrix {list(item.names)}", field=f"{KIND}.weights")
    if item.scheme.bits != 8 or not item.scheme.symmetric or item.scheme.granularity == "per_group":
        raise CheckpointError("dynamic weights have 8 bits, symmetric, without groups", field=f"{KIND}.weights")
    layout = layout_of((tensor.shape[0], tensor.shape[1]), item.axis, item.scheme)
    install_products(model, item.names, empty(layout, tensor), activations)


def _install(module: nn.Module, path: str, scheme: Scheme) -> None:
    if not isinstance(module, nn.RNNBase):
        raise CheckpointError(f"'{path}' of the model is no recurrent layer", field=f"{KIND}.recurrent")
    weights = {}
    for name in recurrent_weights(module):
        tensor = module._parameters[name]
        if tensor is not None:
            weights[name] = empty(layout_of((tensor.shape[0], tensor.shape[1]), 1, scheme), tensor)
    install_recurrent(module, weights)


def _recurrent(node: Node) -> tuple[str, Scheme]:
    fields = node.record(("path", "bits", "symmetric", "granularity"))
    granularity: Any = fields["granularity"].choice(("per_tensor", "per_channel"))
    if fields["bits"].whole(8, 8) != 8 or not fields["symmetric"].truth():
        node.fail("recurrent weights have 8 bits and are symmetric")
    return _path(fields["path"]), Scheme(8, True, granularity)


def _path(node: Node) -> str:
    return "" if node.value == ROOT else node.name()
