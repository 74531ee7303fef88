"""The checkpoint transform ``quant.qat``: a prepared model that is saved in the middle of its training.

The file holds float weights, and what the quantizers know, as tensors of the state dict; the record says where they go.
A converted model has another transform, ``quant.static`` or ``quant.dynamic``, in place of this one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from torch import nn

from slim_core.errors import CheckpointError, ModelError, SlimError
from slim_core.graph.export import export_graph
from slim_core.workload import Inputs, Transform
from slim_quant.observers import check_observer
from slim_quant.qat.phases import META, prepared_model
from slim_quant.qat.preparation import build
from slim_quant.qat.spec import BatchNorm, QATSpec, Quantizer, Strategy
from slim_quant.reading import check_fields, malformed, read_activation_scheme, read_placement, read_scheme
from slim_quant.schemes import Scheme
from slim_quant.targets import get_target

KIND = "quant.qat"
SCHEMA = 1
_WORDS = {"strategy": Strategy, "quantizer": Quantizer, "batch_norm": BatchNorm}
_FIELDS = frozenset({*_WORDS, "target", "activation", "activations", "weights", "placement", "decay", "observer"})


def transform_of(model: nn.Module) -> Transform:
    """Return the transform of a prepared model: what ``Workload.with_model`` takes beside it.

    Raises:
        ModelError: the model is not prepared for training-aware quantization.
    """
    spec: QATSpec = prepared_model(model).meta[META]
    others = {name: scheme for name, scheme in spec.activations.items() if scheme != spec.activation}
    data: dict[str, Any] = {
        "target": spec.target.name,
        "strategy": spec.strategy,
        "quantizer": spec.quantizer,
        "batch_norm": spec.batch_norm,
        "decay": spec.decay,
        "observer": spec.observer if isinstance(spec.observer, str) else dict(spec.observer),
        "activation": spec.activation.to_json(),
        "activations": {name: scheme.to_json() for name, scheme in others.items()},
        "weights": {name: scheme.to_json() for name, scheme in spec.weights.items()},
        "placement": spec.placement.to_json(),
    }
    return Transform(KIND, SCHEMA, data)


class QATReplayer:
    """Builds the prepared graph again, from a model on the meta device: names and shapes only."""

    def replay(self, model: nn.Module, transform: Transform, example_inputs: Inputs) -> nn.Module:
        """Return the graph of ``model`` with the recorded quantizers.

        Raises:
            CheckpointError: the record is malformed or does not fit the model.
        """
        if transform.schema != SCHEMA:
            raise CheckpointError(
                f"schema {transform.schema} is not known", field=KIND, hint="a newer slim-quant wrote it: upgrade"
            )
        spec = read_qat(transform.data)
        graph = export_graph(model, example_inputs, copy=False)
        try:
            build(graph, spec)
        except (KeyError, IndexError, AttributeError, ModelError) as error:
            raise CheckpointError(f"does not fit the model: {error}", field=KIND) from error
        return graph


def read_qat(data: Any) -> QATSpec:
    """Return what the record says. It comes from a file that anyone may have written.

    Raises:
        CheckpointError: names the field that is missing, unknown, or not what it must be.
    """
    check_fields(data, _FIELDS, KIND)
    words = {name: _word(data[name], get_args(known), f"{KIND}.{name}") for name, known in _WORDS.items()}
    decay = data["decay"]
    if not isinstance(decay, float | int) or isinstance(decay, bool) or not 0 <= decay < 1:
        raise malformed("must be a number from 0 to 1, without 1", f"{KIND}.decay")
    try:
        check_observer(data["observer"])
        target = get_target(_text(data["target"], f"{KIND}.target"))
    except SlimError as error:
        raise CheckpointError(error.what, field=KIND, hint=error.hint) from error
    placement = read_placement(data["placement"], f"{KIND}.placement")
    activation = read_activation_scheme(data["activation"], f"{KIND}.activation")
    activations = dict.fromkeys((item.scale for item in placement.activations), activation)
    for name, scheme in _object(data["activations"], f"{KIND}.activations").items():
        if name not in activations:
            raise malformed("names a node that has no scale of its own", f"{KIND}.activations")
        activations[name] = read_activation_scheme(scheme, f"{KIND}.activations.{name}")
    schemes, weights = _object(data["weights"], f"{KIND}.weights"), dict[str, Scheme]()
    for item in placement.weights:
        if item.name not in schemes:
            raise malformed(f"lacks '{item.name}'", f"{KIND}.weights")
        weights[item.name] = read_scheme(schemes[item.name], f"{KIND}.weights.{item.name}", groups=True)
    return QATSpec(
        placement, weights, activations, target, decay=float(decay), observer=data["observer"], activation=activation,
        **words,
    )  # fmt: skip


def _word(value: Any, known: tuple[str, ...], where: str) -> Any:
    if not isinstance(value, str) or value not in known:
        raise malformed(f"must be one of {', '.join(known)}", where)
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise malformed("must be a name", where)
    return value


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise malformed("must be an object", where)
    return value
