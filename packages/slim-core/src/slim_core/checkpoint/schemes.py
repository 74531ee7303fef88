"""The quantization schemes that transforms record, and the ``Packing`` of a tensor that one makes. No torch.

Reading and writing share this: which tensors are packed, and how, stands in the transforms' ``data["schemes"]`` alone.
Which tensors a writer tries to store sparse, and with what pattern, stands in their ``data["sparse"]``.
"""

from __future__ import annotations

from collections.abc import Container, Mapping

from slim_core.checkpoint import limits
from slim_core.checkpoint.node import Node
from slim_core.checkpoint.packing import PACKINGS, Packing
from slim_core.checkpoint.sparse import Sparse, read_hint
from slim_core.checkpoint.strict_json import shown

SCHEMES = "schemes"
SPARSE = "sparse"
TRANSFORM = f"{limits.RESERVED}transform/"
_GRANULARITIES = ("per_tensor", "per_channel", "per_group")


def schemes_of(transforms: Node, first: Mapping[str, str]) -> dict[str, tuple[int, Node]]:
    """Return name in the model -> (index of the transform, scheme); a later transform's scheme for a tensor counts.

    Args:
        transforms: a list of objects with ``data``.
        first: tied name -> the name that it is stored under.

    Raises:
        CheckpointError: what stands under ``schemes`` is not a mapping from names.
    """
    found: dict[str, tuple[int, Node]] = {}
    for index, item in enumerate(transforms.items(limits.MAX_TRANSFORMS)):
        data = item.child("data")
        if SCHEMES in data.value:
            for name, scheme in data.child(SCHEMES).mapping(limits.MAX_TENSORS):
                found[first.get(name, name)] = index, scheme
    return found


def hints_of(transforms: Node, first: Mapping[str, str]) -> dict[str, Sparse | None]:
    """Return name in the model -> the pattern of its zeros, ``None`` for none; a later transform's hint counts.

    Args:
        transforms: a list of objects with ``data``.
        first: tied name -> the name that it is stored under.

    Raises:
        CheckpointError: what stands under ``sparse`` is not a mapping from names to patterns.
    """
    found: dict[str, Sparse | None] = {}
    for item in transforms.items(limits.MAX_TRANSFORMS):
        data = item.child("data")
        if SPARSE in data.value:
            for name, hint in data.child(SPARSE).mapping(limits.MAX_TENSORS):
                found[first.get(name, name)] = read_hint(hint)
    return found


def packing_of(scheme: Node, index: int, shorts: Container[str], first: Mapping[str, str]) -> Packing:
    """Return how a tensor with this scheme is packed.

    Args:
        scheme: an object; keys that are not known here are the transform's own.
        index: of its transform.
        shorts: short names of that transform's tensors.
        first: tied name -> the name that it is stored under.

    Raises:
        CheckpointError: names the key that is wrong.
    """
    if type(scheme.value) is not dict:
        scheme.fail("a scheme was expected")
    for key in ("packing", "bits", "symmetric", "granularity", "scale"):
        if key not in scheme.value:
            scheme.fail(f"the key '{key}' is missing")
    kind = scheme.child("packing").choice(PACKINGS)
    granularity = scheme.child("granularity").choice(_GRANULARITIES)
    bits = scheme.child("bits").whole(2, 4 if kind == "int4" else 8)
    symmetric = scheme.child("symmetric").truth()
    axis = group = None
    if granularity != "per_tensor":
        axis = _needed(scheme, "axis", granularity).whole(0, limits.MAX_DIMS - 1)
    if granularity == "per_group":
        group = _needed(scheme, "group_size", granularity).whole(1, limits.MAX_SIZE)

    def stored(key: str) -> str:
        name = scheme.child(key).name()
        if name in shorts:
            return f"{TRANSFORM}{index}/{name}"
        if name.startswith(limits.RESERVED):
            scheme.child(key).fail(f"'{shown(name)}' is neither a tensor of the transform nor of the state dict")
        return first.get(name, name)

    return Packing(
        packing=kind,
        bits=bits,
        signed=symmetric if kind == "int4" else kind == "int8",
        granularity=granularity,
        axis=axis,
        group_size=group,
        scale=stored("scale"),
        zero_point=None if scheme.value.get("zero_point") is None else stored("zero_point"),
    )


def _needed(scheme: Node, key: str, granularity: str) -> Node:
    if scheme.value.get(key) is None:
        scheme.fail(f"{granularity} needs '{key}'")
    return scheme.child(key)
