"""Recurrent layers and cells: a hidden unit goes with its row in every gate, its column in the recurrent weights and
its place in the state. A stack shares one state tensor, so its layers and directions lose the same units.

A masked unit stays at zero where it starts there: ``tanh`` of zero is zero, and gates only scale what a unit held.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from slim_core.graph.rules.base import Context, Labels, Rule, UnsupportedError
from slim_core.graph.types import Node, Ref

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


def layers(node: Node, ctx: Context) -> None:
    """``lstm``, ``gru``, ``rnn_*`` over (T, N, C), (N, T, C) or packed (T·N, C)."""
    kind = node.op.split(".")[1]
    x: Ref = node.args["input"] if isinstance(node.args.get("input"), Ref) else node.args["data"]
    states = _states(node)
    for ref in states:
        ctx.freeze(ctx.dims(ref)[0], "has one entry per layer and direction")
    *lead, inside = ctx.dims(x)
    for labels in lead:
        ctx.freeze(labels, "a recurrent layer runs along this dimension")
    hidden = [ctx.dims(ref)[-1] for ref in states]
    weights: list[Ref] = list(node.args["params"])
    directions = 2 if node.args["bidirectional"] else 1
    biases = 2 if node.args["has_biases"] else 0
    each, rest = divmod(len(weights), node.args["num_layers"] * directions)
    if rest or each - biases not in (2, 3):
        raise UnsupportedError(f"{kind}: weights of an unknown arrangement")
    given = inside
    for layer in range(node.args["num_layers"]):
        made: list[Labels | None] = []
        for direction in range(directions):
            start = (layer * directions + direction) * each
            own = weights[start : start + each]
            made.append(_cell(ctx, GATES[kind], given, hidden, own, own[2 + biases :]))
        given = made[0] if directions == 1 else _joined(made)
    zero = kind.startswith("rnn") or all(ctx.zero(ref)[-1] for ref in states)
    ctx.set((*lead, given), (*([False] * len(lead)), zero))
    for position, (ref, labels) in enumerate(zip(states, hidden, strict=True), 1):
        middle = ctx.dims(ref)[1:-1]
        ctx.set((None, *middle, labels), (*([False] * (1 + len(middle))), zero), output=position)


def cell(node: Node, ctx: Context) -> None:
    """``lstm_cell``, ``gru_cell``, ``rnn_*_cell`` on (N, C)."""
    kind = node.op.split(".")[1].removesuffix("_cell")
    x: Ref = node.args["input"]
    states = _states(node)
    hidden = [ctx.dims(ref)[-1] for ref in states]
    names = ("w_ih", "w_hh", "b_ih", "b_hh")
    own = [ref for ref in (node.args.get(name) for name in names) if isinstance(ref, Ref)]
    _cell(ctx, GATES[kind], ctx.dims(x)[-1], hidden, own, ())
    zero = kind.startswith("rnn") or all(ctx.zero(ref)[-1] for ref in states)
    lead = ctx.dims(x)[:-1]
    for position, labels in enumerate(hidden):
        ctx.set((*lead, labels), (*([False] * len(lead)), zero), output=position)


def _states(node: Node) -> list[Ref]:
    return [node.args["hx"]] if isinstance(node.args["hx"], Ref) else list(node.args["hx"])


def _cell(
    ctx: Context, gates: int, given: Labels | None, hidden: list[Labels | None], own: Sequence[Ref],
    projection: Sequence[Ref],
) -> Labels | None:  # fmt: skip
    """Tie the weights of one layer in one direction, and return the labels of what it gives."""
    w_ih, w_hh = own[:2]
    for ref in (w_ih, w_hh):
        ctx.role(ref, 0, "out")
        ctx.role(ref, 1, "in")
    _tied(ctx, given, ctx.dims(w_ih)[1])
    units = ctx.tie_columns(ctx.dims(w_ih)[0], gates)
    for ref in own[1 : len(own) - len(projection)]:
        _tied(ctx, units, ctx.tie_columns(ctx.dims(ref)[0], gates))
    _tied(ctx, hidden[-1], units)  # the cell's state, or the only one
    if not projection:
        _tied(ctx, hidden[0], units)
        _tied(ctx, ctx.dims(w_hh)[1], units)
        return units
    made, inside = ctx.dims(projection[0])
    ctx.role(projection[0], 0, "out")
    ctx.role(projection[0], 1, "in")
    _tied(ctx, inside, units)
    if units is not None and made is not None and len(units) % len(made) == 0:
        # torch takes a state as wide as the projection for one without: several units go with each projected one
        ctx.tie(ctx.tie_rows(units, len(made)), made)
    else:
        ctx.freeze(units, "must be more than the projection of the state has")
    _tied(ctx, hidden[0], made)
    _tied(ctx, ctx.dims(w_hh)[1], made)
    return made


def _tied(ctx: Context, first: Labels | None, second: Labels | None) -> None:
    if first is not None or second is not None:
        ctx.tie(first, second)


def _joined(made: list[Labels | None]) -> Labels | None:
    parts = [part for part in made if part is not None]
    return np.concatenate(parts) if len(parts) == len(made) else None


def packed(node: Node, ctx: Context) -> None:
    """``_pack_padded_sequence``: (N, T, …) -> (T·N, …), and the number of sequences at each step."""
    x: Ref = node.args["input"]
    dims, zero = ctx.dims(x), ctx.zero(x)
    for labels in dims[:2]:
        ctx.freeze(labels, "sequences are packed along this dimension")
    ctx.set((None, *dims[2:]), (False, *zero[2:]))
    ctx.set((None,), output=1)


def padded(node: Node, ctx: Context) -> None:
    """``_pad_packed_sequence``: back again."""
    x: Ref = node.args["data"]
    dims, zero = ctx.dims(x), ctx.zero(x)
    same = node.args["padding_value"] == 0
    ctx.set((None, None, *dims[1:]), (False, False, *(flag and same for flag in zero[1:])))
    ctx.set((None,), output=1)


def unsupported(node: Node, ctx: Context) -> None:
    ctx.freeze_all(f"{node.op}: the weights of this recurrent layer are packed")


RULES: Mapping[str, Rule] = {
    **{f"aten.{name}": layers for name in GATES},
    **{f"aten.{name}_cell": cell for name in GATES},
    "aten._pack_padded_sequence": packed,
    "aten._pad_packed_sequence": padded,
    **{
        f"aten.{name}": unsupported
        for name in ("_cudnn_rnn", "_thnn_fused_lstm_cell", "_thnn_fused_gru_cell", "mkldnn_rnn_layer")
    },
}
