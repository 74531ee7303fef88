"""``nn.MultiheadAttention``: its forward insists that the width outside equals heads times the size of a head inside.

A head goes as a whole, together with the slice of the embedding that has its positions; the size of a head stays, and
with it the scale of the scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from torch import nn

from slim_core.graph.isolate import walk
from slim_core.graph.rules.base import Context, Labels


def tie_attention(model: nn.Module, ctx: Context) -> None:
    """Tie the embedding's slices to the heads, for every such layer of ``model``."""
    state = {name: value for value in ctx.graph.values for name in value.names if value.kind == "parameter"}

    def labels(path: str, name: str, dim: int) -> Labels | None:
        value = state.get(f"{path}.{name}" if path else name)
        return None if value is None else ctx.labels_of(value.index)[dim]

    for path, module in walk(model):
        if not isinstance(module, nn.MultiheadAttention):
            continue
        heads = module.num_heads
        if module._qkv_same_embed_dim:
            rows = ctx.tie_rows(labels(path, "in_proj_weight", 1), heads)
            inner = ctx.tie_rows(labels(path, "in_proj_weight", 0), 3 * heads)
            ctx.tie(inner, None if rows is None else np.tile(rows, 3))
        else:
            rows = ctx.tie_rows(labels(path, "q_proj_weight", 1), heads)
            for name in ("q_proj_weight", "k_proj_weight", "v_proj_weight"):
                ctx.tie(ctx.tie_rows(labels(path, name, 0), heads), rows)


def attention_attributes(
    module: nn.MultiheadAttention, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, Any]]:
    """Yield the attributes that follow from the shapes of the projections."""
    packed = module._qkv_same_embed_dim
    width = shapes["in_proj_weight" if packed else "q_proj_weight"][1]
    yield from (("embed_dim", width), ("num_heads", width // module.head_dim))
    yield "kdim", width if packed else shapes["k_proj_weight"][1]
    yield "vdim", width if packed else shapes["v_proj_weight"][1]
