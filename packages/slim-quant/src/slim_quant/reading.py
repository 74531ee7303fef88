"""Strict reading of the record of ``quant.static``, which comes from a file that anyone may have written.

Names of the record become names of modules and targets of graph nodes, which ``torch.fx`` prints into Python code: only
plain names pass, of a bounded length, and only fields that are known. Whether the model has what is named is checked
where the quantizers are inserted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard, cast, get_args

from slim_core.checkpoint.strict_json import shown
from slim_core.errors import CheckpointError
from slim_quant.edits import KINDS as EDITS
from slim_quant.placement import ActivationPlace, Placement, WeightPlace
from slim_quant.schemes import Granularity, Scheme

KIND = "quant.static"
FIELDS = frozenset({"target", "activation", "placement", "schemes"})
#: what schema 2 may say too
NEW_FIELDS = frozenset({"activations", "edits"})
#: what a scheme also says, about how the weight is stored: read by whoever reads the file's tensors
STORAGE = frozenset({"axis", "packing", "scale", "zero_point"})

_NODE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TENSOR = re.compile(r"[\w-]+(\.[\w-]+)*")
_LONGEST = 500
_MOST_AXES = 8
_LARGEST_GROUP = 2**31 - 1


@dataclass(frozen=True, slots=True)
class StaticRecord:
    """What ``quant.static`` recorded.

    Args:
        placement: where quantizers are.
        activations: schemes by name of the scale's node.
        weights: schemes by weight name.
        edits: structural edits before the quantizers are inserted.
    """

    placement: Placement
    activations: dict[str, Scheme]
    weights: dict[str, Scheme]
    edits: tuple[dict[str, str], ...] = ()


def read_static(data: Any, schema: int) -> StaticRecord:
    """Return what the record says.

    Raises:
        CheckpointError: names the field that is missing, unknown, or not what it must be.
    """
    later = NEW_FIELDS if schema > 1 else frozenset()
    check_fields(data, FIELDS | later, KIND, optional={"target", *later})
    if "target" in data:
        _name(data["target"], _TENSOR, f"{KIND}.target")
    activation = read_activation_scheme(data["activation"], f"{KIND}.activation")
    placement = read_placement(data["placement"])
    activations = {place.scale: activation for place in placement.activations}
    others = data.get("activations", {})
    if not isinstance(others, Mapping):
        raise malformed("must be an object", f"{KIND}.activations")
    for name, scheme in others.items():
        if name not in activations:
            raise malformed(f"'{_text(name)}' is no node with a scale of its own", f"{KIND}.activations")
        activations[name] = read_activation_scheme(scheme, f"{KIND}.activations.{name}")
    where, schemes = f"{KIND}.schemes", data["schemes"]
    if not isinstance(schemes, Mapping):
        raise malformed("must be an object", where)
    weights = {}
    for item in placement.weights:
        if item.name not in schemes:
            raise malformed(f"lacks '{item.name}'", where)
        weights[item.name] = read_scheme(schemes[item.name], f"{where}.{item.name}", STORAGE, groups=schema > 1)
    return StaticRecord(placement, activations, weights, _edits(data.get("edits", []), f"{KIND}.edits"))


def _edits(data: Any, where: str) -> tuple[dict[str, str], ...]:
    found = []
    for index, item in enumerate(_items(data, where)):
        at = f"{where}[{index}]"
        if not isinstance(item, Mapping) or not isinstance(item.get("kind"), str) or item["kind"] not in EDITS:
            raise malformed(f"must be an object whose kind is one of: {', '.join(EDITS)}", at)
        check_fields(item, frozenset({"kind", *EDITS[item["kind"]]}), at)
        found.append({key: _name(value, _NODE, f"{at}.{key}") for key, value in item.items()})
        if found[-1] in found[:-1]:
            raise malformed("stands twice", at)
    return tuple(found)


def read_activation_scheme(data: Any, where: str) -> Scheme:
    """Return a scheme that activations can have.

    Raises:
        CheckpointError: names the field that is not what it must be.
    """
    scheme = read_scheme(data, where)
    if scheme.granularity != "per_tensor":
        raise malformed("must be per_tensor", f"{where}.granularity")
    return scheme


def read_placement(data: Any, where: str = f"{KIND}.placement") -> Placement:
    """Return the placement that :meth:`Placement.to_json` wrote.

    Raises:
        CheckpointError: names the field that is not what it must be.
    """
    check_fields(data, frozenset({"activations", "weights"}), where)
    activations: dict[str, str] = {}
    for index, item in enumerate(_items(data["activations"], f"{where}.activations")):
        at = f"{where}.activations[{index}]"
        node, scale = (item, item) if isinstance(item, str) else _row(item, 2, at)
        if _name(node, _NODE, at) in activations:
            raise malformed(f"node '{node}' stands twice", at)
        activations[node] = _name(scale, _NODE, at)
    for index, scale in enumerate(activations.values()):
        if activations.get(scale) != scale:  # it names the buffers: it must be a quantized node with its own scale
            raise malformed(f"'{scale}' is no node with a scale of its own", f"{where}.activations[{index}]")
    weights: dict[str, WeightPlace] = {}
    for index, item in enumerate(_items(data["weights"], f"{where}.weights")):
        at = f"{where}.weights[{index}]"
        name, axis, layers = _row(item, 3, at)
        if _name(name, _TENSOR, f"{at}[0]") in weights:
            raise malformed(f"weight '{name}' stands twice", at)
        if not _whole(axis) or not 0 <= axis < _MOST_AXES:
            raise malformed(f"must be a whole number from 0 to {_MOST_AXES - 1}", f"{at}[1]")
        nodes = tuple(_name(layer, _NODE, f"{at}[2]") for layer in _items(layers, f"{at}[2]"))
        if not nodes or len(set(nodes)) != len(nodes):
            raise malformed("must name at least one layer, each once", f"{at}[2]")
        weights[name] = WeightPlace(name, axis, nodes)
    places = tuple(ActivationPlace(node, scale) for node, scale in activations.items())
    return Placement(places, tuple(weights.values()))


def read_scheme(data: Any, where: str, more: frozenset[str] = frozenset(), *, groups: bool = False) -> Scheme:
    """Return the scheme that :meth:`Scheme.to_json` wrote.

    Args:
        data: the JSON value.
        where: for the error.
        more: keys that others read.
        groups: may it be per group?

    Raises:
        CheckpointError: names the field that is not what it must be.
    """
    more = more | {"group_size"} if groups else more
    check_fields(data, frozenset({"bits", "symmetric", "granularity"}) | more, where, optional=more)
    bits, symmetric, granularity = data["bits"], data["symmetric"], data["granularity"]
    if not _whole(bits) or not 2 <= bits <= 8:
        raise malformed("must be a whole number from 2 to 8", f"{where}.bits")
    if not isinstance(symmetric, bool):
        raise malformed("must be true or false", f"{where}.symmetric")
    known = get_args(Granularity) if groups else ("per_tensor", "per_channel")
    if not isinstance(granularity, str) or granularity not in known:
        raise malformed(f"must be {' or '.join(known)}", f"{where}.granularity")
    size = data.get("group_size")
    if (granularity == "per_group") != ("group_size" in data):
        raise malformed("stands with per_group, and only there", f"{where}.group_size")
    if "group_size" in data and (not _whole(size) or not 1 <= size <= _LARGEST_GROUP):
        raise malformed(f"must be a whole number from 1 to {_LARGEST_GROUP}", f"{where}.group_size")
    return Scheme(bits, symmetric, cast(Granularity, granularity), size)


def check_fields(data: Any, known: frozenset[str], where: str, optional: Iterable[str] = ()) -> None:
    """Check that ``data`` is an object with the ``known`` keys; those that are ``optional`` may be missing.

    Raises:
        CheckpointError: names the key that is missing or unknown.
    """
    if not isinstance(data, Mapping):
        raise malformed("must be an object", where)
    unknown = [key for key in data if key not in known]
    if unknown:
        raise malformed(f"unknown key '{_text(unknown[0])}'", where)
    missing = sorted(known - set(optional) - set(data))
    if missing:
        raise malformed(f"lacks '{missing[0]}'", where)


def _items(value: Any, where: str) -> list[Any] | tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise malformed("must be a list", where)
    return value


def _row(value: Any, length: int, where: str) -> list[Any] | tuple[Any, ...]:
    if len(_items(value, where)) != length:
        raise malformed(f"must be a list of {length}", where)
    row: list[Any] | tuple[Any, ...] = value
    return row


def _name(value: Any, pattern: re.Pattern[str], where: str) -> str:
    if not isinstance(value, str) or len(value) > _LONGEST or not pattern.fullmatch(value):
        raise malformed(f"'{_text(value)}' is not a name", where)
    return value


def _whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _text(value: Any) -> str:
    return shown(value) if isinstance(value, str) else type(value).__name__


def malformed(what: str, where: str) -> CheckpointError:
    """Return the error for a field that is not what it must be."""
    return CheckpointError(f"malformed: {what}", field=where)
