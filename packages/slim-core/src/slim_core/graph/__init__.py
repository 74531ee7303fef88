"""What a model computes and which of its dimensions belong together.

:func:`record` writes down one forward pass, :func:`couple` derives the channel groups, :func:`analyse` does both and
proves every group on the user's own forward, :func:`shrink` removes units, :func:`resize_graph` says what the graph
would look like then.
"""

from __future__ import annotations

from slim_core.graph.analyse import analyse
from slim_core.graph.dims import couple
from slim_core.graph.probe import Failure, check
from slim_core.graph.record import record
from slim_core.graph.resize import resize_graph
from slim_core.graph.shrink import shrink
from slim_core.graph.types import ChannelGroup, Coupling, Frozen, Graph, Member, Node, Ref, SourceLine, Value

__all__ = [
    "ChannelGroup",
    "Coupling",
    "Failure",
    "Frozen",
    "Graph",
    "Member",
    "Node",
    "Ref",
    "SourceLine",
    "Value",
    "analyse",
    "check",
    "couple",
    "record",
    "resize_graph",
    "shrink",
]
