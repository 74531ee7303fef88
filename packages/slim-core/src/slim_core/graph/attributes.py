"""Module attributes that repeat a size: what they must become when units go.

Torch's own layers are known by class. In a user's module, an integer attribute follows where the module's forward asked
for a dimension of its value, and it has a name that says what it is. The probe then decides.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from slim_core.graph.attention import attention_attributes
from slim_core.graph.isolate import walk
from slim_core.graph.resize import new_sizes
from slim_core.graph.types import Coupling, Graph

Edits = dict[tuple[int, str], tuple[nn.Module, Any]]
Kept = Mapping[str, NDArray[np.int64]]

_HEADS = re.compile(
    r"(n|num)?_?(q|kv|key_value|attention|attn)?_?heads?|groups|(n|num)_groups|num_key_value_heads|num_attention_heads"
)
_SIZES = re.compile(
    r"(attention_|attn_)?(head|d|dim)_?(dim|size|k|v|head)|(all_)?head_size"
    r"|(embed|embedding|hidden|inner|model|feature|mlp)_?(dim|size|channels|features)s?"
    r"|d_model|dim|channels|planes|width|(in|out|num)_?(channels|features|planes)|split_size|c|n_embd|n_state|d_inner"
)
_RESIZING = (
    "aten.view", "aten.reshape", "aten._unsafe_view", "aten.unflatten", "aten.expand", "aten.split", "aten.slice",
    "aten.zeros", "aten.new_zeros", "aten.ones", "aten.full", "aten.empty",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Use:
    """An attribute of a user's module whose value is the size of a dimension that the module's forward asked for.

    ``likely`` says that its name is of the kind that such a dimension has: a head count before a head's size.
    """

    module: nn.Module
    name: str
    value: int
    dim: int
    likely: bool = True


_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_GATES = {"LSTM": 4, "GRU": 3}
_NORMS = nn.modules.batchnorm._NormBase


def attribute_edits(
    model: nn.Module, coupling: Coupling, kept: Kept, sizes: Sequence[tuple[int, ...]] | None = None
) -> Edits:
    """Return the new value of every attribute that changes, keyed by module id and attribute name.

    Args:
        model: the model that ``coupling`` was derived from.
        coupling: the analysis.
        kept: kept unit numbers by group name.
        sizes: what :func:`new_sizes` returns for them, if it is at hand.
    """
    sizes = new_sizes(coupling, kept) if sizes is None else sizes
    shapes = {name: sizes[value.index] for value in coupling.graph.values for name in value.names}
    changed = {name.rpartition(".")[0] for value in coupling.graph.values for name in value.names
               if value.kind in ("parameter", "buffer") and sizes[value.index] != value.shape}  # fmt: skip
    edits: Edits = {}
    for path, module in walk(model, every_path=True):
        prefix = f"{path}." if path else ""
        computed = module._modules.get("parametrizations")
        if path in changed or computed is not None:
            own = {
                name: shapes[prefix + name]
                for name in (*module._parameters, *module._buffers)
                if prefix + name in shapes
            }
            for name in () if computed is None else computed._modules:
                own[name] = _computed(shapes, f"{prefix}parametrizations.{name}.original")
            for name, value in _known(module, own):
                if getattr(module, name, None) != value:
                    edits[id(module), name] = (module, value)
        if isinstance(module, nn.Transformer):
            width = next((shapes[name][-1] for name in shapes if name.startswith(f"{prefix}encoder.layers.0.norm")), 0)
            if width and module.d_model != width:
                edits[id(module), "nhead"] = (module, module.nhead * width // module.d_model)
                edits[id(module), "d_model"] = (module, width)
    uses = attribute_uses(model, coupling.graph)
    likely = {(id(use.module), use.name) for use in uses if use.likely}
    for use in uses:
        key = (id(use.module), use.name)
        if key in likely and not use.likely:
            continue  # the same number by accident: heads of the size that the head count has
        after = sizes[use.value][use.dim]
        if after != coupling.graph.values[use.value].shape[use.dim]:
            edits.setdefault(key, (use.module, after))
    return edits


def _computed(shapes: Mapping[str, tuple[int, ...]], original: str) -> tuple[int, ...]:
    """Return the shape of a parametrized weight: that of what it is computed from, or of the largest of several."""
    several = [shapes[name] for name in (original, f"{original}0", f"{original}1") if name in shapes]
    return max(several, key=math.prod, default=())


def _known(module: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, Any]]:
    """Yield the attributes of torch's layers that follow from the shapes of their parameters."""
    weight = shapes.get("weight", ())
    if isinstance(module, _TRANSPOSED) and weight:
        groups = module.groups
        if groups > 1 and (module.in_channels == groups or module.out_channels == groups):
            groups = weight[0] * groups // module.in_channels
        yield from (("in_channels", weight[0]), ("out_channels", weight[1] * groups), ("groups", groups))
    elif isinstance(module, _CONVOLUTIONS) and weight:
        groups = module.groups
        if groups > 1 and (module.in_channels == groups or module.out_channels == groups):
            groups = weight[0] * groups // module.out_channels
        yield from (("in_channels", weight[1] * groups), ("out_channels", weight[0]), ("groups", groups))
    elif isinstance(module, nn.Linear) and weight:
        yield from (("in_features", weight[1]), ("out_features", weight[0]))
    elif isinstance(module, _NORMS) and shapes:
        yield "num_features", next(iter(shapes.values()))[0] if weight == () else weight[0]
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm) and weight:
        yield "normalized_shape", weight
    elif isinstance(module, nn.GroupNorm) and weight:
        yield "num_channels", weight[0]
        if module.num_groups == module.num_channels:
            yield "num_groups", weight[0]
    elif isinstance(module, nn.Embedding) and weight:
        yield from (("num_embeddings", weight[0]), ("embedding_dim", weight[1]))
    elif isinstance(module, nn.MultiheadAttention):
        yield from attention_attributes(module, shapes)
    elif isinstance(module, nn.PReLU) and weight:
        yield "num_parameters", weight[0]
    elif isinstance(module, nn.RNNBase | nn.RNNCell | nn.LSTMCell | nn.GRUCell) and shapes:
        last = "_l0" if isinstance(module, nn.RNNBase) else ""
        rows, columns = shapes[f"weight_ih{last}"]
        gates = _GATES.get(str(module.mode) if last else type(module).__name__.removesuffix("Cell"), 1)
        yield from (("input_size", columns), ("hidden_size", rows // gates))
        if f"weight_hr{last}" in shapes:
            yield "proj_size", shapes[f"weight_hr{last}"][0]


def attribute_uses(model: nn.Module, graph: Graph) -> list[Use]:
    """Return where an integer attribute of a user's module was, as far as names and values tell, used as a size."""
    modules = dict(walk(model))
    integers: dict[str, list[tuple[str, int]]] = {}
    uses: list[Use] = []
    for node in graph.nodes:
        if not node.op.startswith(_RESIZING):
            continue
        module = modules.get(node.module)
        if module is None or type(module).__module__.startswith("torch.nn.modules."):
            continue
        if node.module not in integers:
            integers[node.module] = [(name, value) for name, value in module.__dict__.items() if type(value) is int]
        own = integers[node.module]
        if not own:
            continue
        for index in node.outputs:
            shape = graph.values[index].shape
            asked = node.args.get("size", node.args.get("shape", ()))
            cut = node.op.startswith(("aten.split", "aten.slice"))
            for dim, size in enumerate(shape):
                if isinstance(asked, tuple) and len(asked) == len(shape) and asked[dim] == -1:
                    continue  # left to torch
                if cut and dim != node.args["dim"] % len(shape):
                    continue
                inner = dim < len(shape) - 1 and not cut
                patterns = (_HEADS, _SIZES) if inner else (_SIZES, _HEADS)
                uses += [Use(module, name, index, dim, likely) for name, likely in _fitting(own, size, patterns)]
    return uses


def _fitting(
    integers: list[tuple[str, int]], size: int, patterns: tuple[re.Pattern[str], re.Pattern[str]]
) -> list[tuple[str, bool]]:
    """Return the attributes of this value with a fitting name; where both kinds of names have it, the likelier kind."""
    same = [name for name, value in integers if value == size and size > 1]
    found = [(name, True) for name in same if patterns[0].fullmatch(name)]
    return found or [(name, False) for name in same if patterns[1].fullmatch(name)]


def names_a_size(name: str) -> bool:
    """Return whether ``name`` is one that :func:`attribute_edits` may give to an attribute of a user's module."""
    return bool(_HEADS.fullmatch(name) or _SIZES.fullmatch(name))
