"""Module attributes that repeat a size: what they must become when units go.

Torch's own layers are known by class. In a user's module, an integer attribute follows where the module's forward passed
its value as a size of a dimension that shrinks, and it has a name that says what it is. The probe then decides.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from slim_core.graph.resize import new_sizes
from slim_core.graph.types import Coupling, Node, Ref

Edits = dict[tuple[int, str], tuple[nn.Module, Any]]
Kept = Mapping[str, NDArray[np.int64]]

_HEADS = re.compile(
    r"(n|num)?_?(q|kv|key_value|attention|attn)?_?heads?|groups|(n|num)_groups|num_key_value_heads|num_attention_heads"
)
_SIZES = re.compile(
    r"(attention_|attn_)?(head|d|dim)_?(dim|size|k|v|head)|(all_)?head_size|(embed|embedding|hidden|inner|model|feature|mlp)_?(dim|size|channels|features)s?"
    r"|d_model|dim|channels|planes|width|(in|out|num)_?(channels|features|planes)|split_size|c|n_embd|n_state|d_inner"
)
_RESIZING = ("aten.view", "aten.reshape", "aten._unsafe_view", "aten.unflatten", "aten.expand", "aten.split", "aten.slice", "aten.zeros",
             "aten.new_zeros", "aten.ones", "aten.full", "aten.empty")  # fmt: skip

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (nn.modules.batchnorm._NormBase,)


def attribute_edits(model: nn.Module, coupling: Coupling, kept: Kept) -> Edits:
    """Return the new value of every attribute that changes, keyed by module id and attribute name."""
    sizes = new_sizes(coupling, kept)
    shapes = {name: sizes[value.index] for value in coupling.graph.values for name in value.names}
    changed = {name.rpartition(".")[0] for value in coupling.graph.values for name in value.names
               if value.kind in ("parameter", "buffer") and sizes[value.index] != value.shape}  # fmt: skip
    edits: Edits = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if path in changed:
            prefix = f"{path}." if path else ""
            own = {
                name: shapes[prefix + name]
                for name in (*module._parameters, *module._buffers)
                if prefix + name in shapes
            }
            for name, value in _known(module, own):
                if getattr(module, name, None) != value:
                    edits[id(module), name] = (module, value)
    modules = dict(model.named_modules())
    for node in coupling.graph.nodes:
        _follow(node, modules.get(node.module), coupling, sizes, edits)
    return edits


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
    elif isinstance(module, nn.PReLU) and weight:
        yield "num_parameters", weight[0]


def _follow(
    node: Node, module: nn.Module | None, coupling: Coupling, sizes: list[tuple[int, ...]], edits: Edits
) -> None:
    """A size that the user's forward took from an attribute: let the attribute follow."""
    if module is None or not node.op.startswith(_RESIZING) or type(module).__module__.startswith("torch.nn.modules."):
        return
    touched = [*node.outputs, *(v.index for v in node.args.values() if isinstance(v, Ref))]
    for index in touched:
        old, new = coupling.graph.values[index].shape, sizes[index]
        if old == new:
            continue
        for position, (before, after) in enumerate(zip(old, new, strict=True)):
            if before != after:
                is_heads = position < len(old) - 1 and index in node.outputs and "split" not in node.op
                for name, value in _integers(module):
                    pattern = (_HEADS, _SIZES) if is_heads else (_SIZES, _HEADS)
                    if value == before and (id(module), name) not in edits and _matches(name, pattern, module, before):
                        edits[id(module), name] = (module, after)


def _matches(name: str, patterns: tuple[re.Pattern[str], re.Pattern[str]], module: nn.Module, value: int) -> bool:
    """Whether a name fits; where both kinds of names have this value, only the likelier kind does."""
    likely, other = patterns
    if likely.fullmatch(name):
        return True
    if not other.fullmatch(name):
        return False
    return not any(v == value and likely.fullmatch(n) for n, v in _integers(module))


def _integers(module: nn.Module) -> Iterator[tuple[str, int]]:
    for name, value in module.__dict__.items():
        if type(value) is int:
            yield name, value
