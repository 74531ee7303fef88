"""Recurrent layers: their weights are packed per gate, so their sizes stay as they are."""

from __future__ import annotations

from collections.abc import Mapping

from slim_core.graph.rules.base import Context, Rule
from slim_core.graph.types import Node


def recurrent(node: Node, ctx: Context) -> None:
    kind = node.op.split(".")[1].replace("_cell", " cell").upper().split("_")[0]
    ctx.freeze_all(f"{kind}: recurrent layers keep their sizes")


NAMES = (
    "lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell", "_cudnn_rnn",
    "_thnn_fused_lstm_cell", "_thnn_fused_gru_cell", "mkldnn_rnn_layer",
)  # fmt: skip

RULES: Mapping[str, Rule] = {f"aten.{name}": recurrent for name in NAMES}
